"""The request-response nodes: ``$cbs`` accepts tokens, ``$management`` describes hubs."""

import hmac
import time
from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from support.eventhubs import codec
from support.eventhubs.codec import AmqpError, Incoming, typed
from support.eventhubs.links import Replies

if TYPE_CHECKING:
    from support.eventhubs.session import Session

_TRACE = "TrackingId:0_G0, SystemTracker:local, Timestamp:2026-01-01T00:00:00"
_RIGHTS = {"Listen", "Send"}


class _RequestError(Exception):
    """An error response: status code and description."""


def responder(session: "Session", node: str) -> Callable[[Incoming], None]:
    """Return a function that handles a request and responds on its reply-to link."""
    operation, success = (_put_token, 202) if node == "$cbs" else (_read, 200)

    def accept(request: Incoming) -> None:
        value, status, description = None, success, "OK"
        try:
            value = operation(session, request)
        except _RequestError as error:
            status, description = error.args
        response = codec.reply(
            request,
            {"status-code": status, "status-description": description}
            | {"statusCode": status, "statusDescription": description},
            value,
        )
        links = [li for li in session.links.values() if isinstance(li, Replies) and li.node == node]
        # The Python client sends no reply-to: use the node's newest link.
        links.sort(key=lambda link: request.reply_to in {link.address, link.name})
        for link in links[-1:]:  # none if they were just detached
            link.put(response)

    return accept


def _put_token(session: "Session", request: Incoming) -> None:
    server, claims = session.connection.server, session.connection.claims
    refusal = server.faults.refusal("put-token")
    if isinstance(refusal, str):
        for link in list(session.links.values()):
            link.detach(AmqpError(refusal, server.faults.error_description))
        return
    if refusal is not None:
        raise _RequestError(refusal, server.faults.error_description)
    if request.application[b"type"] == b"jwt":  # of Entra ID: it cannot be verified here
        claims[_hub(request.application[b"name"].decode())] = _RIGHTS
    else:
        _claim(session, request.value)


def _claim(session: "Session", signed_token: bytes) -> None:
    """Grant the connection the rights of a shared access signature."""
    server = session.connection.server
    token = signed_token.decode().partition(" ")[2]
    fields = dict(part.split("=", 1) for part in token.split("&"))
    key_name = unquote(fields["skn"])
    signed = f"{fields['sr']}\n{fields['se']}".encode()
    digest = b64encode(hmac.digest(server.keys.get(key_name, "").encode(), signed, "sha256"))
    if key_name not in server.keys or digest != unquote(fields["sig"]).encode():
        raise _RequestError(401, f"InvalidSignature: The token has an invalid signature. {_TRACE}")
    if int(fields["se"]) < time.time() + server.faults.clock_offset:
        raise _RequestError(401, f"ExpiredToken: The token is expired. {_TRACE}")
    resource = unquote(fields["sr"])
    hub = _hub(resource)
    if hub and hub not in map(str.lower, server.hubs):
        raise _RequestError(404, f"The messaging entity '{resource}' could not be found. {_TRACE}")
    session.connection.claims[hub] = server.claims.get(key_name, _RIGHTS)


def _read(session: "Session", request: Incoming) -> dict[str, Any]:
    server = session.connection.server
    refusal = server.faults.refusal("management")
    if refusal is not None:
        raise _RequestError(int(refusal), server.faults.error_description)
    token = request.application.get(b"security_token", b"")
    if token.startswith(b"SharedAccessSignature "):  # the Java client does not use $cbs
        _claim(session, token)
    properties = {k: v.decode() for k, v in request.application.items() if isinstance(v, bytes)}
    name, kind = properties.get(b"name", ""), properties.get(b"type", "")
    if not any(session.connection.allows(right, name) for right in _RIGHTS):
        raise _RequestError(401, f"no claim for {name}")
    try:
        hub = server.hub(name)
        if kind == "com.microsoft:eventhub":
            ids = [typed("STRING", partition.id) for partition in hub.partitions]
            return {
                "name": hub.name,
                "type": kind,
                "created_at": typed("TIMESTAMP", hub.created),
                "partition_count": len(ids),
                "partition_ids": typed("ARRAY", ids),
                "georeplication_factor": 1,
            }
        partition = hub.partition(properties.get(b"partition", ""))
    except AmqpError as error:
        raise _RequestError(404, error.description) from error
    return {
        "name": hub.name,
        "type": kind,
        "partition": partition.id,
        "begin_sequence_number": typed("LONG", partition.begin),
        "last_enqueued_sequence_number": typed("LONG", partition.last),
        "last_enqueued_sequence_number_epoch": 0,  # the Rust client requires it
        "last_enqueued_offset": partition.last_offset,
        "last_enqueued_time_utc": typed("TIMESTAMP", partition.last_enqueued),
        "is_partition_empty": not partition.messages,
    }


def _hub(resource: str) -> str:
    """Return the hub in a resource's address, in lower case; the whole namespace is ``""``."""
    return urlsplit(resource.lower()).path.strip("/").split("/")[0]
