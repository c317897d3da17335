"""Faults to inject into a running server."""

from collections import Counter
from typing import TYPE_CHECKING, Literal

from support.eventhubs.codec import AmqpError

if TYPE_CHECKING:
    from support.eventhubs.links import Receiver
    from support.eventhubs.server import Server

Request = Literal["attach", "put-token", "management"]


class Faults:
    """The faults of a server. Each is active until it is used up or lifted."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._refusals: list[tuple[Request, str | int, str | None, str | None]] = []
        self._left: list[float] = []  # remaining uses of each refusal
        self._quiet: set[str] = set()
        self.mute_next: Counter[str] = Counter()
        """Number of upcoming receivers that get no messages, by partition."""
        self.error_description = "injected fault"
        """The description of every error."""
        self.silent = False
        self.delay = 0.0
        """Seconds before a message is delivered, from its enqueued time or from the client's last
        credit, whichever is later."""
        self.clock_offset = 0.0
        """Seconds that the server's clock is ahead. Affects token expiry and HTTP dates."""
        self.duplicates = 0
        """Number of upcoming messages that are delivered twice."""
        self.drop_after: int | None = None
        """All connections drop after this number of transfer frames, counted over all of them."""
        self.cut_off: int | None = None
        """PID of a process that cannot connect. `drop` closes its open connections."""
        self.drop_mid_message = False
        """Every connection drops after the first frame of the next message of several frames."""

    def drop(self, *, flush: bool = False) -> None:
        """Drop all connections without an AMQP close; ``flush`` sends buffered data first."""
        self.drop_after, self.drop_mid_message = None, False
        for connection in list(self._server.connections):
            connection.drop(flush=flush)

    def cuts_off(self, port: int) -> bool:
        """Whether a connection from this port belongs to the process in `cut_off`."""
        if self.cut_off is None:
            return False
        import psutil  # noqa: PLC0415 - the image of make e2e does not have it

        found = psutil.Process(self.cut_off).net_connections("tcp")
        return any(one.laddr and one.laddr.port == port for one in found)

    def cut(self, *, more: bool) -> bool:
        """Count a transfer frame; return whether connections drop after it."""
        if self.drop_after is not None:
            self.drop_after -= 1
        return self.drop_after == 0 or (self.drop_mid_message and more)

    def silence(self, partition: int | None = None) -> None:
        """Stop reading, responding and delivering; connections stay open.

        With a partition number, only deliveries of that partition stop, in every hub.
        """
        if partition is not None:
            self._quiet.add(str(partition))
            return
        self.silent = True
        for connection in self._server.connections:
            connection.transport.pause_reading()

    def mute(self, partition: int, *, more: int = 0) -> None:
        """Deliver nothing to a partition's receivers, nor to the next ``more`` receivers."""
        self.mute_next[str(partition)] = more
        for receiver in self._server.receivers:
            receiver.mute |= receiver.partition == str(partition)

    def resume(self) -> None:
        """Resume reading and delivering, for all partitions."""
        self.silent = False
        self._quiet.clear()
        for connection in self._server.connections:
            connection.transport.resume_reading()
            connection.wake()

    def silenced(self, receiver: "Receiver") -> bool:
        """Whether deliveries to this receiver are suspended."""
        return self.silent or receiver.mute or receiver.partition in self._quiet

    def refuse(
        self,
        request: Request,
        error: str | int,
        times: int | None = None,
        *,
        hub: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Refuse the next requests of a kind; all of them until accept() if ``times`` is None.

        ``attach`` takes an AMQP error condition, such as ``com.microsoft:server-busy``, and can be
        narrowed to a hub or partition; ``put-token`` and ``management`` take a status code.
        ``put-token`` with a condition detaches the links to ``$cbs`` instead of responding.
        """
        partition_id = None if partition is None else str(partition)
        self._refusals.append((request, error, hub and hub.lower(), partition_id))
        self._left.append(float("inf") if times is None else times)

    def accept(self) -> None:
        """Accept all requests again."""
        self._refusals.clear()
        self._left.clear()

    def refusal(
        self, request: Request, hub: str | None = None, partition: str | None = None
    ) -> str | int | None:
        """Return the error for a request, None to accept it, and count it."""
        for index, (kind, error, which_hub, which_partition) in enumerate(self._refusals):
            fits = which_hub in {None, hub} and which_partition in {None, partition}
            if kind == request and fits and self._left[index] > 0:
                self._left[index] -= 1
                return error
        return None

    def detach(
        self, condition: str, *, hub: str | None = None, partition: int | None = None
    ) -> None:
        """Detach the receivers of a hub or partition, all if neither is given, with an error."""
        for receiver in list(self._server.receivers):
            if hub in {None, receiver.hub} and partition in {None, int(receiver.partition)}:
                receiver.detach(AmqpError(condition, self.error_description))

    def refuse_connections(self) -> None:
        """Stop listening: new TCP connections are refused, open ones stay."""
        self._server.stop_listening()

    async def accept_connections(self) -> None:
        """Listen again, on the same port."""
        await self._server.listen()
