"""A hub and a sink in this process, and forwarders between them as children of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import forwarder
from support.azurite import Azurite
from support.eventhubs import Hub, Server
from support.harness import HUB
from support.ledger import Ledger
from support.process import Forwarder
from support.webhook import Webhook

APP = Path(forwarder.__file__).parents[1]  # the one that tests import, a changed copy perhaps
CHILD = Path(__file__).with_name("child")
"""A folder for PYTHONPATH that lets tests change a forwarder from within."""
# Intervals are as short as keeps the behaviour, so that no test waits for a clock.
_QUICK = {
    "CheckpointInterval": "0.2",
    "LoadBalancingInterval": "0.5",
    "OwnershipExpiry": "4",
    "ShutdownGrace": "3",
    "WebSinkTimeout": "20",
    "WebSinkMaxEvents": "20",
}


class Environment:
    """A running hub and sink, the ledger between them, and how to start a forwarder there."""

    def __init__(self, server: Server, webhook: Webhook, state: Path) -> None:
        self.server = server
        self.webhook = webhook
        self.state = state
        self.ledger = Ledger(lambda: self.hub, webhook)

    @property
    def hub(self) -> Hub:
        """The hub that forwarders read."""
        return self.server.hubs[HUB]

    def settings(self, state: Path | None = None, **settings: str) -> Mapping[str, str]:
        """Return the environment of a forwarder."""
        state = state or self.state
        self.ledger.states.add(state)
        return {
            **_QUICK,
            "EhubNamespaceConnectionString": self.server.connection_string(),
            "WebSinkURL": self.webhook.url,
            "StateDirectory": str(state),
            **settings,
        }

    def forwarder(self, state: Path | None = None, **settings: str) -> Forwarder:
        """Return a forwarder with the embedded store."""
        return Forwarder(self.settings(state, **settings), app=APP)

    def replica(self, name: str, azurite: Azurite, **settings: str) -> Forwarder:
        """Return a forwarder with a store that it shares with others."""
        shared = {"BlobStorageConnectionString": azurite.connection_string, **settings}
        return self.forwarder(self.state / name, **shared)

    @asynccontextmanager
    async def traffic(self, per_second: int = 500, *, refuse: int = 0) -> AsyncIterator[None]:
        """Publish events, ten a message, as long as the block runs.

        At most 20 s of them wait: a busy machine could never catch up.
        """
        ledger, taken = self.ledger, self.webhook.taken

        async def publish() -> None:
            while True:
                if len(ledger.published) - len(taken) - len(ledger.refused) < 20 * per_second:
                    ledger.publish(10, refuse=refuse)
                await asyncio.sleep(10 / per_second)

        task = asyncio.create_task(publish())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def environment(state: Path, partitions: int = 4) -> AsyncIterator[Environment]:
    """Start hub and sink; `state` is the forwarders' state directory."""
    async with Server({HUB: partitions}) as server, Webhook() as webhook:
        yield Environment(server, webhook, state)
