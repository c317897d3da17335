"""A dead-letter record: an event, Azure Monitor record or hub message that cannot be delivered.

A record is one line of JSON: `time` (when it was refused), `reason`, `partition`, `sequenceNumber`
and `body`, or `bodyBase64` if the bytes are not UTF-8. A batch is a file or blob of such lines.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from forwarder.audit.envelope import Unusable

_WORD: Final = re.compile("[a-z]+")
_CLASS_WORDS: Final = 4


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What was refused: its bytes, the reason, and its message in the hub."""

    time: Annotated[datetime, Meta(tz=True)]
    reason: str
    partition: str
    sequence_number: int
    body: str | None = None
    body_base64: bytes | None = None

    @classmethod
    def of(cls, partition: str, sequence_number: int, refused: Unusable) -> Self:
        """Return the record of something that is refused now, by the sink or as unusable."""
        head = (datetime.now(UTC), refused.reason, partition, sequence_number)
        try:
            return cls(*head, body=refused.body.decode())
        except UnicodeDecodeError:
            return cls(*head, body_base64=refused.body)

    @property
    def original(self) -> bytes:
        """The original bytes."""
        return (self.body or "").encode() if self.body_base64 is None else self.body_base64

    @property
    def reason_class(self) -> str:
        """The reason without details, such as `refused-by-the-sink`: its words up to a colon."""
        words = _WORD.findall(self.reason.partition(":")[0].lower())
        return "-".join(words[:_CLASS_WORDS]) or "other"

    def line(self) -> bytes:
        """Return the record as a line of JSON."""
        return msgspec.json.encode(self) + b"\n"


_decoder = msgspec.json.Decoder(Record)


def parse(lines: bytes) -> Iterator[tuple[bytes, Record | None]]:
    """Yield each line with its record, or with None if it cannot be read.

    A last line without a line end is ignored: version 0.1.0 was killed while it wrote the line, so
    its message had no checkpoint and was read again.
    """
    for line in io.BytesIO(lines):
        if line.endswith(b"\n"):
            try:
                yield line, _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeError):
                yield line, None


def batches(records: Iterable[Record], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield batches as names and lines; each has one reason class, and up to about `most` bytes.

    A name is `TIME-DIGEST-CLASS.jsonl`, with the time of the first record. It depends only on the
    content, so replicas never collide, and a batch that is written again replaces itself.
    """
    classes: dict[str, list[Record]] = {}
    for record in records:
        classes.setdefault(record.reason_class, []).append(record)
    for name, members in classes.items():
        lines: list[bytes] = []
        first, size = members[0].time, 0
        for record in members:
            line = record.line()
            if lines and size + len(line) > most:
                yield _batch(lines, first, name)
                lines, size, first = [], 0, record.time
            lines.append(line)
            size += len(line)
        yield _batch(lines, first, name)


def _batch(lines: list[bytes], time: datetime, reason_class: str) -> tuple[str, bytes]:
    data = b"".join(lines)
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{time:%Y%m%dT%H%M%S.%fZ}-{digest}-{reason_class}.jsonl", data
