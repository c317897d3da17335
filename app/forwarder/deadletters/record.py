"""A dead letter: an undeliverable event, record or message, and its line of JSON."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Self

import msgspec

from forwarder.audit.envelope import Unusable


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where in the hub it was, why nobody takes it, and its bytes, in base64 if no text."""

    time: datetime
    reason: str
    partition: str
    sequence_number: int
    body: str | None = None
    body_base64: bytes | None = None

    @classmethod
    def of(cls, partition: str, sequence_number: int, refused: Unusable) -> Self:
        """Return the letter of what was refused now."""
        head = (datetime.now(UTC), refused.reason, partition, sequence_number)
        try:
            return cls(*head, body=refused.body.decode())
        except UnicodeDecodeError:
            return cls(*head, body_base64=refused.body)

    @property
    def original(self) -> bytes:
        """The bytes as they were."""
        return (self.body or "").encode() if self.body_base64 is None else self.body_base64

    def line(self) -> bytes:
        """Return it as a line of JSON."""
        return msgspec.json.encode(self) + b"\n"


_decoder = msgspec.json.Decoder(Record)


def letters(lines: bytes) -> Iterator[tuple[bytes, Record | None]]:
    """Yield each line with its letter, or None if it is none.

    A last line without its end was being written when the process died: its message was not
    settled, and is read again.
    """
    for line in io.BytesIO(lines):
        if line.endswith(b"\n"):
            try:
                yield line, _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeError):
                yield line, None
