"""`python -m faults.fuzz SECONDS [KIND]`: coverage-guided fuzzing of all external input.

Messages of the hub, truncated logs, policies, responses of the sink, and stored state.

Needs `tests/faults/fuzz/requirements.txt`. An exception ends the run, and the input is written to
the current folder as crash-…; to reproduce the error, pass this file as the argument.
"""

import asyncio
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["forwarder"]):
    from forwarder.audit.envelope import Unpacked, Unusable, unpack
    from forwarder.audit.requestinfo import object_reference
    from forwarder.audit.truncated import complete, is_rfc3339
    from forwarder.checkpoints import listing, sqlite
    from forwarder.checkpoints.generation import GenerationStore
    from forwarder.deadletters.record import Record, batches, parse
    from forwarder.errors import PolicyError, Rejected, RetryableError, UnusableError
    from forwarder.policy import document
    from forwarder.policy.filter import filter_for
    from forwarder.sink.response import classify, is_html

from azure.storage.blob import BlobProperties

from forwarder import log
from support.events import TIME, real_events, record, wrap
from support.events.odd import ODD

CATEGORIES = frozenset({"kube-audit"})
FILTERS = [
    None,
    *(filter_for(document.load(name), ["*/a*"], annotates=True) for name in document.PRESETS),
]

# An empty list of records; the envelope may be truncated after it.
EMPTY = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*\]|\{\s*"records"\s*:\s*\[\s*\]\s*\}?)\s*')


def check(message: bytes, unpacked: Unpacked) -> None:
    """Check the invariants of a message: each record is accounted for, each event is valid."""
    found = unpacked.records
    assert found or EMPTY.fullmatch(message), message
    for event in unpacked.events:
        fields = json.loads(event.body)
        assert {"auditID", "stage", "verb", "user"} <= fields.keys()
        assert "stageTimestamp" not in fields or is_rfc3339(fields["stageTimestamp"])


def message(data: bytes) -> None:
    """Unpack bytes as a message of the hub, and as a log, with each policy."""
    inside = record(data.decode("utf-8", "ignore"))
    for body in data, wrap([inside, inside[: len(inside) // 2]]):
        for one in FILTERS:
            check(body, unpack(body, CATEGORIES, one))


def text(data: bytes) -> None:
    """Complete bytes as a truncated event, and parse them as a policy."""
    log = data.decode("utf-8", "ignore")
    try:
        completed = complete(log, TIME)
    except UnusableError:
        pass
    else:
        assert complete(completed, TIME) == completed
    object_reference(log, whole=bool(len(log) % 2))
    with suppress(PolicyError):
        document.parse(log)


def response(data: bytes) -> None:
    """Classify bytes as a response of the sink: a status, Retry-After, and a body."""
    status, header = int.from_bytes(data[:2]) % 700, data[2:].partition(b"\n")[0]
    body = data[3 + len(header) :]
    is_html("text/plain", body)
    after, reason = 0.0, ""
    try:
        classify(status, body, header.decode("utf-8", "surrogateescape"))
    except RetryableError as error:
        after, reason = error.after, str(error)
    except Rejected as error:
        reason = str(error)
    assert bool(reason) == (status not in range(200, 300))
    assert 0 <= after <= 300
    assert "\n" not in reason


class Listed:
    """A checkpoint store that returns given entries."""

    entries: Sequence[dict[str, Any]] = ()

    async def list_checkpoints(self, _: object) -> Sequence[dict[str, Any]]:
        """Return the entries."""
        return self.entries


PARTITION = dict(zip((*listing.SCOPE, "partition_id"), ("n", "h", "g", "0"), strict=True))
FIELDS = b"sequence_number", b"offset", b"hub_created", b"enqueued", b"written"
METADATA = ("sequencenumber", "offset", "hubcreated", "enqueued")
NAME = re.compile(r"[0-9]+T[0-9.]+Z-[0-9a-f]{16}-[a-z-]+\.jsonl")


def checkpoint(data: bytes) -> None:
    """Parse bytes as a row of the embedded store, its fields, and the metadata of a blob."""
    value = data.decode("utf-8", "replace")
    found = []
    for row in (
        value,
        f"{json.dumps(PARTITION | {'sequence_number': 7, 'offset': '8'})[:-1]},{value}}}",
    ):
        with suppress(*sqlite.UNUSABLE):
            found.append(sqlite.decode("n/h/g/0/", row))
    blob = BlobProperties(name="n/h/g/checkpoint/0")
    blob.last_modified = datetime.now(UTC)
    blob.metadata = dict(zip(METADATA, value.split("\n"), strict=False))
    found.append({**PARTITION, **listing.entry(blob)})
    STORE.entries = found
    for one in LOOP.run_until_complete(GenerationStore(STORE).list_checkpoints(PARTITION)):
        assert one["sequence_number"] is None or -1 <= one["sequence_number"] < 2**63
        assert all(math.isfinite(one.get(name) or 0) for name in ("written", "hub_created"))
        datetime.fromtimestamp(one.get("enqueued") or 0, UTC)


def dead_letters(data: bytes) -> None:
    """Parse bytes as dead letters, and write the result again."""
    lines = list(parse(data))
    assert data.startswith(b"".join(line for line, _ in lines))
    found = [one for _, one in lines if one]
    written = []
    for name, batch in batches(found, 1000):
        assert NAME.fullmatch(name), name
        written += [one for _, one in parse(batch)]
    assert sorted(map(repr, written)) == sorted(map(repr, found))
    assert b"".join(one.original for one in found) is not None


KINDS = [
    kind
    for kind in (message, message, text, response, checkpoint, dead_letters)
    if kind.__name__ in sys.argv[2:] or not sys.argv[2:]
]
STORE: Any = Listed()
LOOP = asyncio.new_event_loop()


def one_input(data: bytes) -> None:
    """Process an input; its first byte selects the kind."""
    KINDS[(data or b"\0")[0] % len(KINDS)](data[1:])


def main() -> None:
    """Fuzz for the given seconds; the corpus has the odd messages and real events."""
    log.silence()
    events = real_events()[:30]
    dead_letter = Record.of("0", 7, Unusable(events[0], "refused by the sink: 400"))
    inputs = {
        message: [*(odd.body for odd in ODD if len(odd.body) < 20_000), *events],
        text: [*(one[: len(one) * 2 // 3] for one in events), document.text("quiet").encode()],
        response: [
            b"\x01\xf7Wed, 21 Oct 2026 07:28:00 GMT\n<html>", b"\x01\xf7120\n", b"\x01\x90\nno"
        ],
        checkpoint: [
            b"7\n1:42:9216\n1.7e9\n1.7e9",
            *(b'"%b":%b' % (n, v) for n in FIELDS for v in (b"-7", b"1e30", b"[]", b'"7"', b"NaN")),
        ],
        dead_letters: [dead_letter.line(), Record.of("0", 7, Unusable(b"\xff", "x")).line()],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name)
        for kind in KINDS:
            for number, body in enumerate(inputs[kind]):
                selector = bytes([KINDS.index(kind)])
                (corpus / f"{kind.__name__}{number}").write_bytes(selector + body)
        given = sys.argv[1]
        limits = [f"-max_total_time={given}", str(corpus)] if given.isdecimal() else [given]
        atheris.Setup([sys.argv[0], "-max_len=20000", *limits], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
