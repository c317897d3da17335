"""Connection strings of Event Hubs and Storage, as people paste them."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from yarl import URL

_STORAGE_KEYS = {"accountname", "accountkey", "defaultendpointsprotocol", "blobendpoint"}
_HUB_KEYS = {
    "endpoint": "Endpoint",
    "sharedaccesskeyname": "SharedAccessKeyName",
    "sharedaccesskey": "SharedAccessKey",
    "sharedaccesssignature": "SharedAccessSignature",
    "entitypath": "EntityPath",
    "usedevelopmentemulator": "UseDevelopmentEmulator",
}
_PUBLIC_CLOUD = "core.windows.net"
_FIND_HUB_STRING = "see az eventhubs namespace authorization-rule keys list"


@dataclass(frozen=True, slots=True)
class HubConnection:
    """A namespace's or hub's connection string: `text` for the client, EntityPath taken out."""

    text: str = field(repr=False)
    length: int  # of what was given
    entity_path: str | None
    host: str  # with a port if one is given
    policy: str
    emulator: bool  # without TLS
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BlobConnection:
    """A storage account's connection string."""

    text: str = field(repr=False)
    length: int  # of what was given
    account: str
    url: URL = field(repr=False)  # of its blobs
    secrets: tuple[str, ...] = field(repr=False)


def hub_connection(text: str) -> HubConnection:
    """Parse an Event Hubs connection string; ValueError says what is wrong and shows no part."""
    parts = _parts(text)
    if _STORAGE_KEYS & parts.keys():
        raise ValueError(
            "this is a storage account's connection string, it belongs in "
            f"BlobStorageConnectionString; expected the Event Hubs namespace's ({_FIND_HUB_STRING})"
        )
    endpoint = urlsplit(parts.get("endpoint", ""))
    if endpoint.scheme != "sb" or not endpoint.hostname:
        raise ValueError(
            f"has no Endpoint=sb://NAMESPACE.servicebus.windows.net/ in it ({_FIND_HUB_STRING})"
        )
    if "sharedaccesssignature" not in parts:
        missing = [
            _HUB_KEYS[key]
            for key in ("sharedaccesskeyname", "sharedaccesskey")
            if not parts.get(key)
        ]
        if missing:
            raise ValueError(
                f"lacks {' and '.join(missing)} (or a SharedAccessSignature): copy it whole, "
                f"{_FIND_HUB_STRING}"
            )
    if parts.get("usedevelopmentemulator", "").lower() == "true":
        parts["usedevelopmentemulator"] = "true"  # the client takes lower case only
    entity_path = parts.pop("entitypath", None)
    joined = ";".join(f"{_HUB_KEYS.get(key, key)}={value}" for key, value in parts.items())
    secrets = _present(parts, "sharedaccesskey", "sharedaccesssignature")
    return HubConnection(
        joined,
        len(text),
        entity_path,
        endpoint.netloc,
        parts.get("sharedaccesskeyname", ""),
        parts.get("usedevelopmentemulator") == "true",
        secrets,
    )


def blob_connection(text: str) -> BlobConnection:
    """Parse a storage connection string; ValueError says what is wrong and shows no part of it."""
    parts = _parts(text)
    if parts.get("endpoint", "").startswith("sb:"):
        raise ValueError(
            "this is an Event Hubs connection string, it belongs in EhubNamespaceConnectionString; "
            "expected a storage account's (see az storage account show-connection-string)"
        )
    known = parts.keys() & {"accountkey", "sharedaccesssignature"}
    if not known or not parts.keys() & {"accountname", "blobendpoint"}:
        raise ValueError(
            "lacks AccountName and AccountKey (or BlobEndpoint and SharedAccessSignature): copy it "
            "whole, see az storage account show-connection-string"
        )
    secrets = _present(parts, "accountkey", "sharedaccesssignature")
    account, suffix = parts.get("accountname", ""), parts.get("endpointsuffix", _PUBLIC_CLOUD)
    scheme = parts.get("defaultendpointsprotocol", "https")
    url = URL(parts.get("blobendpoint") or f"{scheme}://{account}.blob.{suffix}")
    return BlobConnection(_unquoted(text), len(text), account, url, secrets)


def _parts(text: str) -> dict[str, str]:
    """Split `Key=value;…` into a dict with lower-case keys."""
    parts = {}
    for part in filter(None, (piece.strip() for piece in _unquoted(text).split(";"))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError("is not a connection string: expected Key=value pairs joined by ';'")
        parts[key.strip().lower()] = value.strip()
    return parts


def _unquoted(text: str) -> str:
    """Take off the white space and quotes that come along when a string is pasted."""
    return text.strip().strip("\"'").strip()


def _present(parts: dict[str, str], *keys: str) -> tuple[str, ...]:
    return tuple(parts[key] for key in keys if parts.get(key))
