"""The storage account's container, which checkpoints and dead letters share.

A client gets no retries of its own: each caller retries at its own pace, and must see an outage at
once instead of waiting behind it.
"""

from typing import TYPE_CHECKING, Any, Final

from forwarder.config.settings import Settings

if TYPE_CHECKING:
    from azure.storage.blob.aio import ContainerClient

_OPTIONS: Final[dict[str, Any]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 10}


def has_account(settings: Settings) -> bool:
    """Return whether state is kept in a storage account, and not in the state directory."""
    return bool(settings.blob_connection or settings.blob_account_url)


def open_container(settings: Settings, credential: Any) -> "ContainerClient":
    """Return a client of the container, to be used as an asynchronous context manager."""
    from azure.storage.blob.aio import ContainerClient  # noqa: PLC0415 - takes 24 MB of memory

    container: ContainerClient = open_client(ContainerClient, settings, credential)
    return container


def open_client(client: Any, settings: Settings, credential: Any) -> Any:
    """Return a client of this class, by connection string or by the account's URL and a login."""
    name, connection = settings.blob_container_name, settings.blob_connection
    if connection:
        return client.from_connection_string(connection.text, name, **_OPTIONS)
    return client(str(settings.blob_account_url), name, credential=credential, **_OPTIONS)
