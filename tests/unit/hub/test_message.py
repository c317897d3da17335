"""The AMQP message parser agrees with the SDK's, and accepts messages that the SDK cannot."""

import random
import struct
import time

import pytest
from azure.eventhub import EventData
from azure.eventhub._pyamqp import _decode
from hypothesis import given
from hypothesis import strategies as st

from forwarder.hub.message import parse
from support.eventhubs import codec

NUMBER, OFFSET, ENQUEUED = 5_000_000_123, "8589934592", 1_764_000_000_123
HEAD = codec.stored_head(NUMBER, OFFSET, ENQUEUED, None)
DATA = b"\x00\x53\x75"
VALUE = b"\x00\x53\x77"
TEXT = "räuber".encode()


def binary(content: bytes) -> bytes:
    return b"\xb0" + struct.pack(">I", len(content)) + content


def test_a_stored_message_is_parsed_as_the_sdk_parses_it() -> None:
    sections = codec.application({"name": "value", "count": 3}) + codec.data_head(len(TEXT))
    metrics = codec.runtime_metrics(1, "2", 3)
    head = codec.stored_head(NUMBER, OFFSET, ENQUEUED, "a key")
    message = metrics + head + sections + TEXT
    event = EventData._from_message(_decode.decode_payload(memoryview(message)))  # noqa: SLF001 - no public way
    found = parse(memoryview(message))
    assert found.sequence_number == event.sequence_number == NUMBER
    assert found.offset == event.offset == OFFSET
    assert event.enqueued_time
    assert found.enqueued == pytest.approx(event.enqueued_time.timestamp())
    assert found.body == b"".join(event.body) == TEXT  # type: ignore[arg-type]
    assert found.problem == ""


@pytest.mark.parametrize(
    "body",
    [
        DATA + binary(TEXT),
        DATA + binary(TEXT[:3]) + DATA + binary(TEXT[3:]),
        VALUE + binary(TEXT),
        VALUE + b"\xa1" + bytes([len(TEXT)]) + TEXT,
        VALUE + b"\xa1" + bytes([len(TEXT)]) + TEXT + b"\x00\x53\x78\xc1\x01\x00",
    ],
    ids=["data", "data in two", "binary value", "text value", "footer"],
)
def test_a_body_of_bytes_or_text_is_extracted(body: bytes) -> None:
    found = parse(memoryview(HEAD + body))
    assert (found.body, found.problem) == (TEXT, "")


@pytest.mark.parametrize(
    "body",
    [
        VALUE + b"\x74\x00\x00\x00\x00",
        VALUE + b"\x73\x00\x11\x00\x00",
        VALUE + b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff",
        VALUE + b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
        VALUE + b"\x00" * 3000 + b"\x40",
        b"\x00\x53\x76" + b"\xc0\x02\x01\x40",
        DATA + b"\xb0\xff\xff\xff\xffshort",
        b"\x00\x53\x75",
        b"garbage",
        b"",
    ],
    ids=[
        "decimal32",
        "bad character",
        "list of four billion",
        "array of four billion nulls",
        "deep",
        "sequence",
        "cut off",
        "no value",
        "garbage",
        "empty",
    ],
)
def test_any_other_body_keeps_its_position_and_bytes(body: bytes) -> None:
    started = time.monotonic()
    found = parse(memoryview(HEAD + body))
    assert time.monotonic() - started < 1
    assert (found.sequence_number, found.offset, found.enqueued) == (
        NUMBER,
        OFFSET,
        ENQUEUED / 1000,
    )
    assert found.problem
    assert found.body == HEAD + body


def annotated(**values: bytes) -> bytes:
    """Return a message whose annotations have these encoded values."""
    entries = b""
    for name, value in values.items():
        key = f"x-opt-{name.replace('_', '-')}".encode()
        entries += b"\xa3" + bytes([len(key)]) + key + value
    head = b"\x00\x53\x72\xd1" + struct.pack(">II", len(entries) + 4, 2 * len(values))
    return head + entries + DATA + binary(TEXT)


@pytest.mark.parametrize(
    "value",
    [
        b"\x40",
        b"\x41",
        b"\x44",
        b"\xa1\x0212",
        b"\xa0\xc8" + b"\x7f" * 200,
        b"\x82" + struct.pack(">d", 5.0),
        b"\x81" + b"\xff" * 8,
        b"\x81\x80" + bytes(7),
        b"\x80" + b"\xff" * 8,
        b"\xc0\x02\x01\x40",
        b"\x00\x53\x01\x54\x05",
    ],
    ids=[
        *("null", "true", "unsigned zero", "text", "200 bytes", "double", "-1", "minimum"),
        *("maximum unsigned", "list", "described"),
    ],
)
def test_an_annotation_of_another_type_counts_as_missing(value: bytes) -> None:
    offset = b"\xa1\x02\xc3\xa9" if value.startswith(b"\xa1") else value
    found = parse(memoryview(annotated(sequence_number=value, offset=offset, enqueued_time=value)))
    assert found == (None, "", None, TEXT, "", 0)


def test_an_annotation_that_is_invalid_in_a_checkpoint_counts_as_missing() -> None:
    """A far date would be refused as a position, and a long offset as part of a checkpoint."""
    late, long = b"\x83" + struct.pack(">q", 10**14), b"\xb1\0\0\0\xc8" + b"9" * 200
    message = annotated(sequence_number=b"\x54\x05", offset=long, enqueued_time=late)
    assert parse(memoryview(message)) == (5, "", None, TEXT, "", 0)


@given(st.binary(max_size=64), st.randoms(use_true_random=False))
def test_no_message_raises(noise: bytes, rng: random.Random) -> None:
    message = bytearray(HEAD + codec.data_head(len(TEXT)) + TEXT)
    for byte in noise:
        message[rng.randrange(len(message))] = byte
    found = parse(memoryview(message))
    assert found.problem or found.body
    assert parse(memoryview(noise)).problem
