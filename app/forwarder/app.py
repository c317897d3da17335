"""The composition root: builds the pipeline, runs it, and shuts it down in order."""

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack, closing
from typing import Final

from forwarder import log
from forwarder.checkpoints.blob import BlobCheckpointStore
from forwarder.checkpoints.generation import CheckpointStore, GenerationStore
from forwarder.checkpoints.quarantine import Quarantine
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from forwarder.checkpoints.writer import Checkpoints
from forwarder.config.settings import Settings
from forwarder.config.state_directory import state_directory
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DIRECTORY, DeadLetterFiles
from forwarder.deadletters.writer import DeadLetterStore, DeadLetterWriter
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext
from forwarder.hub.consumer import Consumer
from forwarder.hub.login import login
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.watchdog import Watchdog
from forwarder.metrics import Metrics
from forwarder.server.health import Health
from forwarder.server.http import serve
from forwarder.sink.webhook import Sink
from forwarder.storage import has_account, open_container

_LAST_CHECKPOINT: Final = 3.0  # seconds; after ShutdownGrace a pod has 10 for this and for closing
_CANCEL_AGAIN: Final = 2.0  # seconds


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Forward until `stop` is set, then drain for at most ShutdownGrace and return."""
    async with AsyncExitStack() as stack:
        parts = await _startup(settings, stack)
        consumer, _, checkpoints, _ = parts
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part.run()) for part in parts]
            await stop.wait()
            await _shutdown(settings.shutdown_grace, consumer, checkpoints)
            await end(tasks)
    log.info("stopped")


async def _startup(
    settings: Settings, stack: AsyncExitStack
) -> tuple[Consumer, Watchdog, Checkpoints, Health]:
    """Build the pipeline, from the sink back to the hub; `stack` closes what is opened."""
    state = stack.enter_context(state_directory(settings.state_directory))
    credential = login(settings, stack)
    metrics = Metrics()

    sink = await stack.enter_async_context(Sink(settings, metrics))
    if has_account(settings):
        container = await stack.enter_async_context(open_container(settings, credential))
        checkpoint_store: CheckpointStore = BlobCheckpointStore(container)
        dead_letter_store: DeadLetterStore = DeadLetterBlobs(container)
    else:
        embedded = EmbeddedCheckpointStore(state / "checkpoints.db")
        checkpoint_store = stack.enter_context(closing(embedded))
        dead_letter_store = DeadLetterFiles(state / DIRECTORY, settings.dead_letter_max_bytes)
    max_waiting = settings.receive_buffer_bytes // 4
    dead_letters = DeadLetterWriter(dead_letter_store, max_waiting=max_waiting)
    buffer = ReceiveBuffer(settings.receive_buffer_bytes)
    delivery = DeliveryContext(settings, sink, dead_letters, buffer, metrics)

    store = GenerationStore(checkpoint_store)
    checkpoints = Checkpoints(store, Quarantine(state / "poison.json"), settings)

    hub = HubMonitor(settings, credential)
    stack.push_async_callback(hub.close)
    consumer = Consumer(delivery, hub, store, checkpoints, credential)
    watchdog = Watchdog(delivery, hub, consumer, checkpoints)

    health = Health(
        settings.stall_timeout, hub, consumer, watchdog, sink, dead_letters, checkpoints
    )
    if settings.http_port:
        await stack.enter_async_context(serve(settings, metrics, health))
    return consumer, watchdog, checkpoints, health


async def _shutdown(grace: float, consumer: Consumer, checkpoints: Checkpoints) -> None:
    """Drain, write checkpoints, give up ownership: in this order, each with a time limit."""
    log.info("stopping", graceSeconds=grace)
    consumer.stop()
    try:
        async with asyncio.timeout(grace):
            await consumer.owned.drain()  # guard: drain
    except TimeoutError:
        log.error("stopping with messages undelivered, they are read again at the next start")
        consumer.owned.cancel()
    try:
        async with asyncio.timeout(_LAST_CHECKPOINT):
            await checkpoints.flush()
    except TimeoutError:
        log.error("stopping without a last checkpoint, messages may be delivered again")
    await consumer.close()


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are done.

    The SDK's management request (5.15.1) swallows a cancellation if its connection breaks at the
    same moment.
    """
    while not all(task.done() for task in tasks):  # guard: cancel-until-done
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_AGAIN)
