"""The composition root: wires hub, delivery and sink together and takes them down in order."""

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import stamina
from azure.eventhub.aio import CheckpointStore

from forwarder import __version__, log
from forwarder.checkpoints.generation import GenerationStore
from forwarder.checkpoints.quarantine import Quarantine
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from forwarder.checkpoints.writer import Checkpoints
from forwarder.config.settings import Settings
from forwarder.config.state_directory import state_directory
from forwarder.deadletters.blobs import open_dead_letter_blobs
from forwarder.deadletters.files import DeadLetterFiles
from forwarder.deadletters.writer import DeadLetterWriter
from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.partition import DeliveryContext
from forwarder.hub.consumer import Consumer
from forwarder.hub.monitor import HubMonitor
from forwarder.hub.transport import mend_client
from forwarder.metrics import Metrics
from forwarder.server.health import Health
from forwarder.server.http import serve
from forwarder.sink.webhook import Sink, shown_url

_LAST_CHECKPOINT: Final = 3.0  # seconds; with ShutdownGrace and the closing below 10 s more than it

_CANCEL_AGAIN: Final = 2.0  # seconds


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Forward until `stop` is set, then drain for ShutdownGrace at most and return."""
    stamina.instrumentation.set_on_retry_hooks([])  # our own entries and metrics say it
    async with AsyncExitStack() as stack:
        state = stack.enter_context(state_directory(settings.state_directory))
        _say_start(settings)
        mend_client()  # guard: no-delivery-tags
        credential = await login(settings, stack)
        store = GenerationStore(await _store(settings, credential, state, stack))
        metrics = Metrics(__version__)
        sink = await stack.enter_async_context(Sink(settings, metrics))
        dead_letters = DeadLetterWriter(
            DeadLetterFiles(state / "deadletters", settings.dead_letter_max_bytes),
            await stack.enter_async_context(open_dead_letter_blobs(settings, credential)),
            max_waiting=settings.receive_buffer_bytes // 4,
            retry=settings.checkpoint_interval,
        )
        delivery = DeliveryContext(
            settings,
            sink,
            dead_letters,
            ReceiveBuffer(settings.receive_buffer_bytes),
            metrics,
        )
        quarantine = Quarantine(state / "poison.json")
        checkpoints = Checkpoints(store, quarantine, settings)
        hub = HubMonitor(settings, credential)
        stack.push_async_callback(hub.close)
        source = Consumer(delivery, hub, store, checkpoints, credential)
        health = Health(delivery, hub, source, checkpoints)
        await stack.enter_async_context(serve(settings, metrics, health))
        async with asyncio.TaskGroup() as group:
            work = (source.run(), checkpoints.run(), health.run(), dead_letters.run())
            tasks = [group.create_task(one) for one in work]
            await stop.wait()
            await _wind_down(settings, source, checkpoints)
            await end(tasks)
    log.info("stopped")


async def _wind_down(settings: Settings, source: Consumer, checkpoints: Checkpoints) -> None:
    """Drain, checkpoint, give up ownership: in this order, each for a bounded time."""
    log.info("stopping", graceSeconds=settings.shutdown_grace)
    source.stop()
    try:
        async with asyncio.timeout(settings.shutdown_grace):
            await source.drain()  # guard: drain
    except TimeoutError:
        log.error("stopping with messages undelivered, they are read again at the next start")
        source.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_CHECKPOINT):
            await checkpoints.flush()
    await source.close()


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are done: the client forgets that when its connection just broke."""
    while not all(task.done() for task in tasks):  # guard: cancel-until-done
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_AGAIN)


async def login(settings: Settings, stack: AsyncExitStack) -> Any:
    """Return the login by Microsoft Entra ID, if a connection string is missing for something."""
    if not settings.event_hub_namespace and not settings.blob_account_url:
        return None
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 - costs half a second

    return await stack.enter_async_context(DefaultAzureCredential())


async def _store(
    settings: Settings, credential: Any, state: Path, stack: AsyncExitStack
) -> CheckpointStore:
    """Open the storage account's container, or without one a file in the state directory."""
    if not settings.blob_connection and not settings.blob_account_url:
        embedded = EmbeddedCheckpointStore(state / "checkpoints.db")
        return stack.enter_context(closing(embedded))
    from forwarder.checkpoints.blob import open_blob_store  # noqa: PLC0415 - costs 24 MB

    return await stack.enter_async_context(open_blob_store(settings, credential))


def _say_start(settings: Settings) -> None:
    log.info("start", version=__version__, url=str(shown_url(settings.web_sink_url)))
    hub, blob = settings.hub_connection, settings.blob_connection
    log.write(
        log.POST,
        "settings",
        EventHubName=settings.event_hub_name,
        BlobContainerName=settings.blob_container_name,
        WebSinkURL=str(shown_url(settings.web_sink_url)),
        VerboseLevel=settings.verbose_level,
        EhubNamespaceConnectionString=hub.length if hub else 0,
        BlobStorageConnectionString=blob.length if blob else 0,
    )
