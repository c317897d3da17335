"""Sessions: windows, and the links that clients attach."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from azure.eventhub._pyamqp.endpoints import Source, Target
from azure.eventhub._pyamqp.performatives import AttachFrame, BeginFrame, DetachFrame, FlowFrame

from support.eventhubs import nodes
from support.eventhubs.codec import SERIALS, WINDOW, AmqpError, frame
from support.eventhubs.links import MAX_MESSAGE, Inbound, Link, Outgoing, Receiver, Replies, store

if TYPE_CHECKING:
    from support.eventhubs.connection import Connection

_ORIGIN = re.compile(r"^[a-z]+://[^/]*/")
_SELECTOR = b"apache.org:selector-filter:string"
_MAX_SHARING = 5  # receivers without an epoch, on one partition, in one consumer group


class Session:
    """A session; the server uses the channel number that the client chose."""

    def __init__(self, connection: "Connection", channel: int, fields: list[Any]) -> None:
        self.connection = connection
        self.channel = channel
        self.links: dict[int, Link] = {}
        self.window: int = fields[2]  # transfer frames that the client accepts
        self._incoming: int = fields[1]
        self._outgoing = 1
        self._delivery = 0
        self.send(BeginFrame(channel, 1, WINDOW, WINDOW, 255, None, None, None))

    def send(self, performative: NamedTuple) -> None:
        """Send a frame on this channel."""
        self.connection.transport.write(frame(performative, self.channel))

    def send_flow(self, handle: int, count: int, credit: int, *, drain: bool = False) -> None:
        """Send a link's state; this also renews the session window."""
        state = (self._incoming, WINDOW, self._outgoing, WINDOW, handle, count, credit)
        self.send(FlowFrame(*state, available=0, drain=drain, echo=False, properties=None))

    def next_id(self) -> int:
        """Return a delivery-id."""
        self._delivery = (self._delivery + 1) % SERIALS
        return self._delivery

    def spend(self) -> None:
        """Count a transfer frame against the client's window."""
        self.window -= 1
        self._outgoing = (self._outgoing + 1) % SERIALS

    def flow(self, fields: list[Any]) -> None:
        """Handle a flow frame, of a link or of the session alone."""
        seen = 1 if fields[0] is None else fields[0]
        self.window = (seen + fields[1] - self._outgoing) % SERIALS
        link = self.links.get(fields[4])
        if isinstance(link, Outgoing):
            link.flow(fields)
        self.wake()

    def transfer(self, fields: list[Any], payload: memoryview) -> None:
        """Handle a transfer; there is no link if the server has just detached it."""
        self._incoming = (self._incoming + 1) % SERIALS
        link = self.links.get(fields[0])
        if isinstance(link, Inbound):
            link.transfer(fields, payload)

    def detach(self, fields: list[Any]) -> None:
        """Respond to a detach; there is no link if the server detached first."""
        link = self.links.get(fields[0])
        if link:
            link.detach()

    def wake(self) -> None:
        """Resume sending on the links."""
        for link in self.links.values():
            if isinstance(link, Outgoing):
                link.wake()

    def end(self) -> None:
        """End the session and its links."""
        for link in self.links.values():
            link.ended()
        self.links.clear()

    def attach(self, fields: list[Any]) -> None:
        """Attach a link, or refuse it: attach with a null terminus, then detach."""
        handle, receiving = fields[1], bool(fields[2])
        source, target = fields[5] or [None], fields[6] or [None]
        link: Link | None = None
        error: AmqpError | None = None
        try:
            link = self._receiver(fields) if receiving else self._inbound(fields)
        except AmqpError as refusal:
            error = refusal
        selector = _selector(source)
        filters = {_SELECTOR: (_SELECTOR, selector)} if selector else None
        kept = Source._make((source[0], *[None] * 6, filters, *[None] * 3))
        own_source = None if error and receiving else kept
        own_target = None if error and not receiving else Target(target[0], *[None] * 6)
        ends = (fields[0], handle, not receiving, fields[3], fields[4], own_source, own_target)
        self.send(AttachFrame(*ends, None, None, 0, MAX_MESSAGE, None, None, None))
        if error:
            self.send(DetachFrame(handle, closed=True, error=error.wire))
        if link:
            self.links[handle] = link
        if isinstance(link, Inbound):
            link.grant()

    def _receiver(self, fields: list[Any]) -> Outgoing:
        source, server = fields[5], self.connection.server
        match path := _path(source):
            case [*_, ("$cbs" | "$management") as node]:
                return Replies(self, fields, node)
            case [hub_name, "consumergroups", group_name, "partitions", number]:
                self._admit("Listen", hub_name, number)
            case _:
                raise AmqpError("amqp:not-found", "/".join(path))
        hub = server.hub(hub_name)
        group = next((group for group in hub.groups if group.lower() == group_name), None)
        if group is None:
            raise AmqpError("amqp:not-found", f"no consumer group {group_name} in {hub.name}")
        log = hub.partition(number)
        start = log.find(_selector(source))
        identity = (hub.name, group, number)
        rivals = [r for r in server.receivers if (r.hub, r.group, r.partition) == identity]
        receiver = Receiver(self, fields, (hub, group, log), start)
        try:
            _apply_epoch(receiver.epoch, rivals)
        except AmqpError:
            receiver.ended()
            raise
        return receiver

    def _inbound(self, fields: list[Any]) -> Inbound:
        match path := _path(fields[6]):
            case [*_, ("$cbs" | "$management") as node]:
                return Inbound(self, fields, nodes.responder(self, node))
            case [hub_name] | [hub_name, "partitions", _]:
                number = path[2] if path[1:] else None
                self._admit("Send", hub_name, number)
            case _:
                raise AmqpError("amqp:not-found", "/".join(path))
        hub = self.connection.server.hub(hub_name)
        return Inbound(self, fields, store(hub, hub.partition(number) if number else None))

    def _admit(self, right: str, hub: str, partition: str | None) -> None:
        refusal = self.connection.server.faults.refusal("attach", hub, partition)
        if refusal:
            raise AmqpError(str(refusal), self.connection.server.faults.error_description)
        if not self.connection.allows(right, hub):
            raise AmqpError(
                "amqp:unauthorized-access",
                f"Unauthorized access. '{right}' claim(s) are required to perform this operation. "
                f"Resource: '{hub}'.",
            )


def _apply_epoch(epoch: int | None, rivals: list[Receiver]) -> None:
    """Apply the epoch rules: detach rivals with a lower epoch, the same one, or none."""
    highest = max((r.epoch for r in rivals if r.epoch is not None), default=None)
    if highest is not None and (epoch is None or epoch < highest):
        raise AmqpError(
            "amqp:link:stolen",
            f"At least one receiver for the endpoint is created with epoch of '{highest}', and so "
            "non-epoch receiver is not allowed.",
        )
    if epoch is None and len(rivals) >= _MAX_SHARING:
        raise AmqpError("amqp:resource-limit-exceeded", f"{len(rivals)} receivers are attached")
    for rival in rivals if epoch is not None else ():
        rival.detach(AmqpError("amqp:link:stolen", f"by a receiver of epoch {epoch}"))


def _selector(source: list[Any]) -> str | None:
    """Return the selector for a receiver's start position: an expression on annotations."""
    selector = ((source + [None] * 8)[7] or {}).get(_SELECTOR)
    return selector and selector.decode()


def _path(terminus: list[Any] | None) -> list[str]:
    """Split an address without its origin, in lower case: the service ignores case."""
    address = (terminus and terminus[0]) or b""
    return _ORIGIN.sub("", address.decode().lower()).strip("/").split("/")
