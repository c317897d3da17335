"""The storage account's container, which checkpoints and dead letters share."""

from typing import TYPE_CHECKING, Any

from azure.core.credentials import AzureSasCredential

from forwarder.config.network import azure_options
from forwarder.config.settings import Settings
from forwarder.imports import import_storage

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient


def has_account(settings: Settings) -> bool:
    """Return whether state is kept in a storage account instead of the state directory."""
    return bool(settings.blob_connection or settings.blob_account_url)


def open_container(settings: Settings, credential: Any) -> "ContainerClient":
    """Return a client of the container, to be used as an asynchronous context manager.

    A connection string in a file is read again for each request, because its key or signature may
    have been renewed. azure-storage-blob 12.31 calls the hook right before it signs a request.
    """
    import_storage()
    from azure.storage.blob.aio import ContainerClient  # noqa: PLC0415 - takes 5 MiB of memory

    connection, name = settings.blob_connection, settings.blob_container_name
    url: Any = connection.url if connection else settings.blob_account_url
    options = azure_options(settings, url)
    if not connection:
        return ContainerClient(str(url), name, credential=credential, **options)
    signature = AzureSasCredential(connection.signature or "-")  # it refuses an empty one
    key = {"account_name": connection.account, "account_key": connection.key}

    def renew(_: object) -> None:
        renewed = settings.current("blob_connection")
        if connection.key:
            container.credential.account_key = renewed.key
        else:
            signature.update(renewed.signature or "-")

    container = ContainerClient(
        str(url),
        name,
        credential=key if connection.key else signature,
        raw_request_hook=renew if "blob_connection" in settings.files else None,
        **options,
    )
    return container
