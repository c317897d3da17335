"""Checks the store: access to it, the checkpoints of this hub in it, and the dead letters."""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from azure.core.exceptions import ResourceNotFoundError

from forwarder.checkpoints import listing
from forwarder.checkpoints.sqlite import intact
from forwarder.commands.check.steps import Check, Finding, Steps
from forwarder.config.settings import Settings
from forwarder.config.state_directory import WITHOUT_LOCKS, file_system
from forwarder.deadletters.blobs import DeadLetterBlobs
from forwarder.deadletters.files import DIRECTORY, DeadLetterFiles
from forwarder.deadletters.record import parse
from forwarder.deadletters.writer import DeadLetterStore
from forwarder.diagnosis import causes
from forwarder.errors import StateError

_MAX_READ: Final = 20_000_000  # bytes of dead letters
_REASON: Final = 80  # characters


class StoreCheck(Check):
    """The steps for the container in a storage account, or without one for the state directory."""

    def __init__(self, settings: Settings, container: Any) -> None:
        super().__init__(settings, causes.of_store)
        self._container = container
        self._dead_letters: DeadLetterStore | None = None
        self._scope = listing.scope_of(settings)
        self.checkpoints: dict[str, int] | None = None
        """The checkpoints' sequence numbers by partition; None if they cannot be seen."""
        local: Steps = {"state directory": self._directory, "checkpoints": self._read}
        account: Steps = {"store login": self._login, "checkpoints": self._list}
        self.steps = {**(account if container else local), "dead letters": self._count}

    async def _login(self) -> str:
        name = self.settings.blob_container_name
        try:
            async for _ in self._container.list_blobs(results_per_page=1):
                break
        except ResourceNotFoundError:
            return f"container '{name}' is not there yet, the forwarder creates it"
        with suppress(ResourceNotFoundError):  # a missing blob, which only tests the right to write
            await self._container.get_blob_client("aks-audit/no-such-blob").set_blob_metadata({})
        self._dead_letters = DeadLetterBlobs(self._container)
        return f"container '{name}' is there"

    async def _list(self) -> Finding | str:
        self.checkpoints = {}
        if not self._dead_letters:
            return "none"
        others = await listing.other_prefixes(self._container, self._scope)
        for entry in await listing.read_checkpoints(self._container, self._scope, others):
            partition, number = entry["partition_id"], entry["sequence_number"]
            if number is not None:
                self.checkpoints[partition] = max(number, self.checkpoints.get(partition, number))
        if owner := await listing.active_owner(self._container, others):
            text = f"consumer group is read by another program: '{owner}'"
            return Finding("warn", text, listing.GO_READER)
        return f"{len(self.checkpoints)} of this hub and consumer group"

    async def _directory(self) -> Finding | str:
        path = self.settings.state_directory
        if not path.is_dir():
            deployment = os.uname().nodename.rpartition("-check")[0] or "aks-audit"  # of helm test
            ask = f"kubectl exec deployment/{deployment} -- python -m forwarder check"
            return Finding("skipped", f"'{path}' is not in this pod, ask the forwarder: {ask}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise StateError(f"'{path}' cannot be written by user {os.getuid()}")
        if (path / DIRECTORY).is_dir():
            most = self.settings.dead_letter_max_bytes
            self._dead_letters = DeadLetterFiles(path / DIRECTORY, most)
        kind = file_system(path)
        if kind in WITHOUT_LOCKS:
            why = causes.of_file(StateError(f"'{path}'"), path)
            return Finding("warn", why.what, why.remedy)
        return f"'{path}' may be written, on {kind}"

    async def _read(self) -> Finding | str:
        path = self.settings.state_directory / "checkpoints.db"
        if not path.parent.is_dir():
            return Finding("skipped", "none here")
        self.checkpoints = {
            entry["partition_id"]: entry["sequence_number"]
            for entry in await asyncio.to_thread(intact, path)
            if all(entry[name].lower() == value.lower() for name, value in self._scope.items())
        }
        return f"{len(self.checkpoints)} of this hub and consumer group"

    async def _count(self) -> Finding | str:
        """Count the dead letters in the newest files or blobs by reason."""
        if not self._dead_letters:
            return Finding("skipped", "none here")
        counts, read, more = Counter[str](), 0, ""
        for name, size in reversed((await self._dead_letters.sizes()).items()):
            read += size
            if counts and read > _MAX_READ:
                more = "at least "
                break
            for _, record in parse(await self._dead_letters.read(name)):
                reason = record.reason if record else "not a dead letter"
                counts[": ".join(reason.split(": ")[:2])[:_REASON]] += 1
        if not counts:
            return "none"
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(5))
        return Finding(
            "warn",
            f"{more}{counts.total():,} ({reasons})",
            "repair the cause, then post them again: python -m forwarder replay; --show prints "
            "them, --discard --reason TEXT removes those that can never be accepted",
        )
