"""Connection strings of Event Hubs and Storage, as people paste them.

`azure.core.utils.parse_connection_string` refuses what portals and editors add: quotes, blanks
around the separators, `EntityPath=` without a value. No error shows a part of the string. A text
that holds a connection string, such as the JSON of Azure CLI, is refused by name.
"""

from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from yarl import URL

_STORAGE_KEYS = {"accountname", "accountkey", "defaultendpointsprotocol", "blobendpoint"}
_PUBLIC_CLOUD = "core.windows.net"
_FIND_HUB_STRING = "see az eventhubs namespace authorization-rule keys list"
_FIND_STORAGE_STRING = "see az storage account show-connection-string"
_QUOTES = " \t\r\n\"'`\u2018\u2019\u201c\u201d"  # of shells, Markdown, and word processors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connection:
    length: int  # of the text
    key: str = field(repr=False)
    signature: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no output may show; the part `sig` of a signature is also a secret by itself."""
        part = parse_qs(self.signature).get("sig", ())
        return tuple(filter(None, (self.key, self.signature, *part)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConnection(_Connection):
    """The connection string of a namespace or hub, with a policy and its key or a signature."""

    host: str  # with a port if there is one
    entity_path: str | None
    policy: str
    emulator: bool  # connect without TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobConnection(_Connection):
    """The connection string of a storage account, with an account key or a signature."""

    account: str
    url: URL = field(repr=False)  # of the blob service


def hub_connection(text: str) -> HubConnection:
    """Parse an Event Hubs connection string; ValueError explains what is wrong."""
    parts = _parts(text)
    if _STORAGE_KEYS & parts.keys():
        raise ValueError(
            "this is the connection string of a storage account, it belongs in "
            f"BlobStorageConnectionString; expected one of Event Hubs ({_FIND_HUB_STRING})"
        )
    endpoint = urlsplit(parts.get("endpoint", ""))
    if endpoint.scheme != "sb" or not endpoint.hostname:
        raise ValueError(
            f"has no Endpoint=sb://NAMESPACE.servicebus.windows.net/ ({_FIND_HUB_STRING})"
        )
    policy, key = parts.get("sharedaccesskeyname", ""), parts.get("sharedaccesskey", "")
    signature = parts.get("sharedaccesssignature", "")
    names = ("SharedAccessKeyName", "SharedAccessKey")
    missing = [name for name in names if name.lower() not in parts]
    if missing and not signature:
        raise ValueError(
            f"lacks {' and '.join(missing)} (or a SharedAccessSignature): copy all of it, "
            f"{_FIND_HUB_STRING}"
        )
    return HubConnection(
        length=len(text),
        host=endpoint.netloc,
        entity_path=parts.get("entitypath"),
        policy=policy,
        key=key,
        signature=signature,
        emulator=parts.get("usedevelopmentemulator", "").lower() == "true",
    )


def blob_connection(text: str) -> BlobConnection:
    """Parse the connection string of a storage account; ValueError explains what is wrong."""
    parts = _parts(text)
    if parts.get("endpoint", "").startswith("sb:"):
        raise ValueError(
            "this is an Event Hubs connection string, it belongs in EhubNamespaceConnectionString; "
            f"expected one of a storage account ({_FIND_STORAGE_STRING})"
        )
    key, signature = parts.get("accountkey", ""), parts.get("sharedaccesssignature", "")
    account = parts.get("accountname", "")
    if not (key or signature) or not (account or parts.get("blobendpoint")):
        raise ValueError(
            "lacks AccountName and AccountKey (or BlobEndpoint and SharedAccessSignature): copy "
            f"all of it, {_FIND_STORAGE_STRING}"
        )
    scheme = parts.get("defaultendpointsprotocol", "https")
    host = f"{account}.blob.{parts.get('endpointsuffix', _PUBLIC_CLOUD)}"
    url = URL(parts.get("blobendpoint") or f"{scheme}://{host}")
    if not url.host:
        raise ValueError(f"BlobEndpoint is not a URL such as https://ACCOUNT.blob.{_PUBLIC_CLOUD}/")
    return BlobConnection(length=len(text), account=account, url=url, key=key, signature=signature)


def _parts(text: str) -> dict[str, str]:
    """Split `Key=value;...` into a dict with lower-case keys, without keys that have no value."""
    parts = {}
    for part in filter(None, (piece.strip() for piece in text.strip(_QUOTES).split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError("is not a connection string: expected Key=value pairs joined by ';'")
        if not key.isalpha():
            raise ValueError(
                "is not a connection string alone: give it without the JSON around it (with az, "
                "--query primaryConnectionString --output tsv, or connectionString for a storage "
                "account), not in base64, and not only its key or signature"
            )
        if value:
            parts[key.lower()] = value
    return parts
