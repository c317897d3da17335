"""Compares what was published with what was delivered: the assertions of every fault test."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from support import events
from support.eventhubs import Hub
from support.events import Key, key
from support.harness import Samples
from support.stores import Stored
from support.webhook import Post, Webhook

_AUDIT_ID = re.compile(rb'"auditID":"([^"]+)')
OUTCOMES = ("delivered", "dead_lettered", "skipped", "filtered", "dropped")


class Entry(NamedTuple):
    """A published event, byte for byte, and the position of its message in the hub."""

    partition: str
    sequence_number: int
    event: bytes


class Ledger:
    """Publishes real events and checks their outcome. auditID and stage identify an event."""

    def __init__(self, hub: Callable[[], Hub], webhook: Webhook) -> None:
        self.published: dict[Key, Entry] = {}
        self.rejected: set[Key] = set()
        """Events that the sink rejects with 400."""
        self.states: set[Path] = set()
        """State directories, where dead letters are kept."""
        self.lost: set[tuple[str, int]] = set()
        """Partition and sequence number of messages that expired before they were delivered."""
        self.blobs: dict[str, bytes] = {}
        """Dead-letter blobs of the storage account, as last read."""
        self._hub = hub
        self._webhook = webhook
        self._audit_ids: set[bytes] = set()
        self._restarts: list[tuple[Stored, Stored]] = []
        self._stored: Stored = {}
        self._read: dict[Path, tuple[tuple[int, int], list[Key]]] = {}
        webhook.rule = self.respond

    def publish(
        self,
        count: int,
        partition: int | None = None,
        *,
        per_message: int = 10,
        reject_every: int = 0,
        templates: Sequence[bytes] | None = None,
    ) -> None:
        """Publish events built from templates, to all partitions in turn or to a single one.

        The sink rejects every `reject_every`-th of them.
        """
        hub = self._hub()
        for message in events.messages(count, per_message=per_message, events=templates):
            log = hub.choose(None) if partition is None else hub.partitions[partition]
            number = hub.publish(int(log.id), message.body)
            for event in message.events:
                name = key(event)
                self.published[name] = Entry(log.id, number, event)
                if reject_every and len(self.published) % reject_every == 0:
                    self.rejected.add(name)
                    self._audit_ids.add(name[0].encode())

    def respond(self, post: Post) -> int:
        """Return the sink's status for a POST: 400 if it contains a rejected event."""
        return 200 if self._audit_ids.isdisjoint(_AUDIT_ID.findall(post.body)) else 400

    def dead_lettered(self) -> Counter[Key]:
        """Return the events in dead letters, in state directories and in blobs."""
        files = [one for state in self.states for one in (state / "deadletters").rglob("*.jsonl")]
        found = Counter(name for file in files for name in self._dead_letters(file))
        return found + Counter(name for blob in self.blobs.values() for name in _names(blob))

    def _dead_letters(self, file: Path) -> list[Key]:
        """Return the events in a dead-letter file; it is read again only if it has changed."""
        try:
            stat = file.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if self._read.get(file, ((0, 0), []))[0] != version:
                self._read[file] = version, _names(file.read_bytes())
        except FileNotFoundError:  # it has just been moved
            return []
        return self._read[file][1]

    def unsettled(self) -> set[Key]:
        """Return the events that are neither delivered nor dead letters."""
        return self.published.keys() - self._webhook.accepted.keys() - self.dead_lettered().keys()

    def unsettled_positions(self) -> list[tuple[str, int, bool]]:
        """List unsettled events: partition, sequence number, and whether the sink rejects them."""
        unsettled = self.unsettled()
        return sorted((*self.published[name][:2], name in self.rejected) for name in unsettled)

    async def wait_until_settled(self, timeout: float = 90) -> None:  # noqa: ASYNC109 - reports what is missing
        """Wait until every published event is accounted for."""
        accepted = self._webhook.accepted
        await self._webhook.until(
            lambda: (
                len(accepted) + len(self.rejected) >= len(self.published) and not self.unsettled()
            ),
            timeout,
        )

    def reader_restarted(self, stored: Stored) -> None:
        """Note that a reader started at these checkpoints: later messages may be duplicates."""
        self._restarts.append((stored, {log.id: log.last for log in self._hub().partitions}))

    def messages_expired(self) -> None:
        """Note that messages expired in the hub: undelivered ones must be counted as lost."""
        begins = {log.id: log.begin for log in self._hub().partitions}
        for name in self.unsettled():
            entry = self.published[name]
            if entry.sequence_number < begins[entry.partition]:
                self.lost.add(self.published.pop(name)[:2])
                self.rejected.discard(name)

    def hub_recreated(self) -> dict[Key, Entry]:
        """Note that the hub was recreated; return the unsettled events: lost or in flight."""
        unsettled = {name: self.published.pop(name) for name in self.unsettled()}
        self.published = {
            name: e._replace(sequence_number=-1) for name, e in self.published.items()
        }
        self._stored = {}
        return unsettled

    def drop_undelivered(self, unsettled: Mapping[Key, Entry]) -> None:
        """Stop expecting the events of the old hub that are not delivered by now."""
        done = self._webhook.accepted.keys() | self.dead_lettered().keys()
        self.published |= {
            n: e._replace(sequence_number=-1) for n, e in unsettled.items() if n in done
        }
        self.rejected -= unsettled.keys() - done

    def check_checkpoints(self, stored: Stored) -> None:
        """Assert that no checkpoint is past an unsettled event, has moved back, or is missing."""
        unsettled = self.unsettled()
        early = {
            name: self.published[name][:2]
            for name in unsettled
            if self.published[name].sequence_number
            <= stored.get(self.published[name].partition, -1)
        }
        assert not early, f"checkpoints {stored} are past unsettled events {early}"
        back = {
            n: (was, stored.get(n)) for n, was in self._stored.items() if stored.get(n, -1) < was
        }
        assert not back, f"checkpoints went back: {back}"
        self._stored = stored

    def check_stop(self, stored: Stored) -> None:
        """Assert that a graceful stop causes no duplicates beyond those of earlier crashes."""
        self.check_checkpoints(stored)
        delivered = [
            (self.published[name], count) for name, count in self._webhook.accepted.items()
        ]
        duplicates = {
            entry[:2]
            for entry, count in delivered
            if entry.sequence_number > stored.get(entry.partition, -1)
            and count > self._repeats(entry)
        }
        assert not duplicates, (
            f"not in the checkpoints {stored}, but delivered: {sorted(duplicates)}"
        )

    def verify(self, *, duplicates_allowed: bool = False) -> None:
        """Assert that published = delivered + dead letters, and that restarts explain duplicates.

        With `duplicates_allowed`, any duplicate passes: the sink accepted POSTs without responding.
        """
        accepted, dead_letters = self._webhook.accepted, self.dead_lettered()
        assert not self.unsettled(), f"{len(self.unsettled())} of {len(self.published)} missing"
        assert accepted.keys() <= self.published.keys(), "events that were not published"
        assert dead_letters.keys() == self.rejected, (
            "dead letters differ from what the sink rejects"
        )
        assert not accepted.keys() & dead_letters.keys(), "both delivered and dead letters"
        changed = [n for n in accepted if self._webhook.bytes[n] != self.published[n].event]
        assert not changed, f"events with changed bytes: {changed}"
        unexplained = {
            name: (count, self.published[name][:2])
            for name, count in (*accepted.items(), *dead_letters.items())
            if count > 1 + self._repeats(self.published[name])
        }
        assert duplicates_allowed or not unexplained, (
            f"duplicates that no restart explains: {unexplained}"
        )

    def _repeats(self, entry: Entry) -> int:
        """Return the number of restarts at which an event was after the checkpoint."""
        return sum(
            stored.get(entry.partition, -1) < entry.sequence_number <= last.get(entry.partition, -1)
            for stored, last in self._restarts
        )


def _names(dead_letters: bytes) -> list[Key]:
    """Return the events in dead-letter lines; an incomplete last line is ignored."""
    lines = (line for line in dead_letters.splitlines(keepends=True) if line.endswith(b"\n"))
    bodies = (json.loads(line)["body"] for line in lines)
    return [key(event.encode()) for body in bodies for event in _events(body)]


def _events(body: str) -> list[str]:
    """Return the event of a dead letter, or all of them if it is a whole message."""
    if not body.startswith('{"records"'):
        return [body]
    return [record["properties"]["log"] for record in json.loads(body)["records"]]


def check_sums(samples: Samples) -> None:
    """Assert that a forwarder with nothing in flight has an outcome for each record."""
    records = samples.total("aks_audit_records_total")
    outcomes = {o: samples.total("aks_audit_events_total", outcome=o) for o in OUTCOMES}
    assert records == sum(outcomes.values()), f"{records} records, {outcomes}"
