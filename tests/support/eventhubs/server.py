"""The server: hubs, listening socket, connections."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Self

from support.eventhubs.codec import AmqpError
from support.eventhubs.connection import Connection
from support.eventhubs.faults import Faults
from support.eventhubs.hub import Hub
from support.eventhubs.links import Receiver


class Server:
    """An Event Hubs namespace on a local port, for both AMQP and AMQP over WebSockets.

    ``hubs`` maps names to partition counts. ``retention`` is in seconds; None keeps all messages.
    ``keys`` maps names of shared access policies to keys; a change applies to the next token.
    ``claims`` restricts the rights of a policy: ``{"reader": {"Listen"}}``.
    """

    def __init__(  # noqa: PLR0913 - a server's options
        self,
        hubs: Mapping[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        retention: float | None = None,
        keys: Mapping[str, str] | None = None,
        claims: Mapping[str, set[str]] | None = None,
        idle_timeout: float = 240,
    ) -> None:
        self.hubs = {name: Hub(name, partitions) for name, partitions in hubs.items()}
        self.host = host
        self.port = port
        self.retention = retention
        self.keys = dict(keys or {"RootManageSharedAccessKey": "bm90IGEgc2VjcmV0"})
        self.claims = dict(claims or {})
        self.idle_timeout = idle_timeout
        self.connections: set[Connection] = set()
        self.receivers: set[Receiver] = set()
        self.faults = Faults(self)
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self.listen()
        if self.retention is not None:
            self._expire(self.retention)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        self.stop_listening()
        for connection in list(self.connections):
            connection.drop()

    def connection(self) -> Connection:
        """Create the protocol of a new connection."""
        return Connection(self)

    async def listen(self) -> None:
        """Start accepting connections, on the same port as before."""
        if self._listener is None:
            self._listener = await asyncio.get_running_loop().create_server(
                self.connection, self.host, self.port, ssl=self._tls
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """Refuse new connections; open ones stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def connection_string(self, hub: str | None = None, *, key: str | None = None) -> str:
        """Return the connection string of the namespace or a hub; ``key`` is a policy name.

        With TLS, clients also need ``custom_endpoint_address`` and ``connection_verify``.
        """
        name = key or next(iter(self.keys))
        return (
            f"Endpoint=sb://{self.host}:{self.port};SharedAccessKeyName={name};"
            f"SharedAccessKey={self.keys[name]}"
            + ("" if self._tls else ";UseDevelopmentEmulator=true")
            + (f";EntityPath={hub}" if hub else "")
        )

    def hub(self, name: str) -> Hub:
        """Return a hub by its name, ignoring case, or raise AmqpError."""
        for hub in self.hubs.values():
            if hub.name.lower() == name.lower():
                return hub
        raise AmqpError("amqp:not-found", f"The messaging entity '{name}' could not be found.")

    def recreate(self, name: str) -> Hub:
        """Delete and recreate a hub: empty, sequence numbers restart, receivers are detached."""
        hub, old = Hub(name, len(self.hubs[name].partitions)), self.hubs[name]
        hub.groups = set(old.groups)
        self.hubs[name] = hub
        self.faults.detach("amqp:not-found", hub=name)
        return hub

    def _expire(self, retention: float) -> None:
        """Delete messages older than the retention, now and periodically."""
        for hub in self.hubs.values():
            for partition in hub.partitions:
                partition.expire_older((time.time() - retention) * 1000)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(1, retention / 4), self._expire, retention)
