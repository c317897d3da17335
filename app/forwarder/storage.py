"""The storage account's container, which checkpoints and dead letters share.

A client gets no retries of its own: each caller retries at its own pace, and must see an outage at
once instead of waiting behind it.
"""

from typing import TYPE_CHECKING, Any, Final

from forwarder.config.network import azure_transport
from forwarder.config.settings import Settings
from forwarder.imports import import_storage

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

_OPTIONS: Final[dict[str, Any]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 10}


def has_account(settings: Settings) -> bool:
    """Return whether state is kept in a storage account, and not in the state directory."""
    return bool(settings.blob_connection or settings.blob_account_url)


def open_container(settings: Settings, credential: Any) -> "ContainerClient":
    """Return a client of the container, to be used as an asynchronous context manager.

    A connection string in a file is read again for each request, because its key or signature is
    renewed there. azure-storage-blob 12.31 calls the hook right before it signs a request.
    """
    import_storage()
    from azure.core.credentials import AzureSasCredential  # noqa: PLC0415 - takes 5 MiB of memory
    from azure.storage.blob.aio import ContainerClient  # noqa: PLC0415 - the same

    connection = settings.blob_connection
    url: Any = connection.url if connection else settings.blob_account_url
    options = {**_OPTIONS, "transport": azure_transport(settings, url)}
    name = settings.blob_container_name
    if not connection:
        return ContainerClient(str(url), name, credential=credential, **options)
    signature = AzureSasCredential(connection.signature or "-")
    key = {"account_name": connection.account, "account_key": connection.key}

    def renew(_: object) -> None:
        now = settings.current("blob_connection")
        signature.update(now.signature or "-")
        if connection.key:
            opened.credential.account_key = now.key

    opened = ContainerClient(
        str(url),
        name,
        credential=key if connection.key else signature,
        raw_request_hook=renew if "blob_connection" in settings.files else None,
        **options,
    )
    return opened
