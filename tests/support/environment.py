"""A hub and a sink in this process, and forwarders as child processes."""

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

APP = Path(forwarder.__file__).parents[1]  # in mutation tests, a mutated copy
CHILD = Path(__file__).with_name("child")
"""A folder for PYTHONPATH: its `sitecustomize` injects faults into a forwarder."""
# Short intervals, so that tests do not wait for timers.
_QUICK = {
    "CheckpointInterval": "0.2",
    "LoadBalancingInterval": "0.5",
    "OwnershipExpiry": "4",
    "ShutdownGrace": "3",
    "WebSinkTimeout": "20",
    "WebSinkMaxEvents": "20",
}


class Environment:
    """A running hub and sink, the ledger that compares them, and forwarders to start."""

    def __init__(self, server: Server, webhook: Webhook, state: Path) -> None:
        self.server = server
        self.webhook = webhook
        self.state = state
        self.ledger = Ledger(lambda: self.hub, webhook)

    @property
    def hub(self) -> Hub:
        """The event hub that forwarders read."""
        return self.server.hubs[HUB]

    def settings(self, state: Path | None = None, **settings: str) -> Mapping[str, str]:
        """Return the environment variables of a forwarder."""
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
        """Return a forwarder that shares a storage account with other replicas."""
        shared = {"BlobStorageConnectionString": azurite.connection_string, **settings}
        return self.forwarder(self.state / name, **shared)

    @asynccontextmanager
    async def traffic(self, per_second: int = 500, *, reject_every: int = 0) -> AsyncIterator[None]:
        """Publish events, ten per message, while the block runs.

        At most 20 s of events are pending: otherwise a busy machine would never catch up.
        """
        ledger, accepted = self.ledger, self.webhook.accepted

        async def publish() -> None:
            while True:
                if len(ledger.published) - len(accepted) - len(ledger.rejected) < 20 * per_second:
                    ledger.publish(10, reject_every=reject_every)
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
    """Start a hub and a sink; `state` is the state directory of the forwarders."""
    async with Server({HUB: partitions}) as server, Webhook() as webhook:
        yield Environment(server, webhook, state)
