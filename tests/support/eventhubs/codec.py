"""AMQP 1.0 as bytes: frames and messages.

Uses the codec of azure-eventhub. Like the service, it sends performatives with all of their
fields: the Python client reads them by position.
"""

import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from azure.eventhub._pyamqp import _decode, _encode
from azure.eventhub._pyamqp.error import AMQPError
from azure.eventhub._pyamqp.types import TYPE, VALUE

Buffer = bytes | memoryview

MAX_FRAME = 65536
WINDOW = 5000  # transfer frames of a session
SERIALS = 1 << 32  # serial numbers (RFC 1982) wrap here
EMPTY_FRAME = b"\x00\x00\x00\x08\x02\x00\x00\x00"
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
SASL_INIT = 0x41
ANNOTATIONS, PROPERTIES, APPLICATION, DATA, SEQUENCE, AMQP_VALUE = range(0x72, 0x78)

# A transfer's eleven fields: handle, delivery-id, delivery-tag, format, settled, more, five nulls.
_TRANSFER = struct.Struct(">I2sH6scIcI2sI8s")
_LAST, _MORE = b"\x43\x41\x42" + b"\x40" * 5, b"\x43\x41\x41" + b"\x40" * 5
_MAX_FIELDS = 14  # no performative has more


class AmqpError(Exception):
    """An error for the client: a condition, such as ``amqp:not-found``, and a description."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(condition, description)
        self.description = description
        self.wire = AMQPError(condition, description, None)


class Incoming(NamedTuple):
    """A message that a client sent; ``message_id`` and ``sections`` are still encoded."""

    annotations: Mapping[bytes, Any]
    reply_to: str
    message_id: bytes
    application: Mapping[bytes, Any]
    data: list[bytes]
    value: Any
    sections: bytes


def typed(kind: str, value: Any) -> dict[str, Any]:
    """Set the AMQP type of a value, instead of the one that the codec infers."""
    return {TYPE: kind, VALUE: value}


def section(code: int, value: Any) -> bytes:
    """Encode a message section."""
    output = bytearray()
    _encode.encode_value(output, typed("DESCRIBED", (typed("ULONG", code), value)))
    return bytes(output)


def frame(performative: NamedTuple, channel: int = 0, kind: bytes = b"\x00") -> bytes:
    """Encode a frame without payload; ``kind`` 1 is SASL."""
    head, body = _encode.encode_frame(performative, kind)
    return b"".join((head, channel.to_bytes(2, "big"), body or b""))


def parse(body: memoryview) -> tuple[int, list[Any], memoryview]:
    """Decode a frame's body: code, fields (None for those omitted), and payload."""
    if body[3] == 0x45:  # list0: clients may omit trailing nulls, even all fields
        return body[2], [None] * _MAX_FIELDS, body[4:]
    fields: list[Any]
    code, fields = _decode.decode_frame(body)
    payload = fields.pop() if code == TRANSFER else body[:0]
    return code, fields + [None] * (_MAX_FIELDS - len(fields)), payload


def transfers(
    parts: tuple[Buffer, ...], handle: int, channel: int, delivery: int, max_frame: int
) -> Iterator[tuple[list[Buffer], bool]]:
    """Split a settled delivery into frames: buffers, not copied, and whether more follow."""
    views = [memoryview(part) for part in parts]
    left = sum(map(len, views))
    while True:
        size = min(left, max_frame - _TRANSFER.size)
        left -= size
        buffers: list[Buffer] = [
            _TRANSFER.pack(
                size + _TRANSFER.size, b"\x02\x00", channel, b"\x00\x53\x14\xc0\x19\x0b",
                b"\x70", handle, b"\x70", delivery, b"\xa0\x04", delivery, _MORE if left else _LAST,
            )
        ]  # fmt: skip
        while size:
            buffers.append(views[0][:size])
            size -= len(buffers[-1])
            views[0] = views[0][len(buffers[-1]) :]
            if not views[0]:
                del views[0]
        yield buffers, left > 0
        if not left:
            return


def stored_head(sequence: int, offset: str, enqueued: int, key: str | None) -> bytes:
    """Encode the annotations of a stored message; ``enqueued`` is in milliseconds."""
    entries = b"\xa3\x15x-opt-sequence-number\x81%b\xa3\x0cx-opt-offset\xa1%c%b" % (
        struct.pack(">q", sequence), len(offset), offset.encode(),
    ) + b"\xa3\x13x-opt-enqueued-time\x83" + struct.pack(">q", enqueued)  # fmt: skip
    if key is not None:
        raw = key.encode()
        entries += b"\xa3\x13x-opt-partition-key\xb1" + struct.pack(">I", len(raw)) + raw
    count = 6 if key is None else 8
    return b"\x00\x53\x72\xd1" + struct.pack(">II", len(entries) + 4, count) + entries


def data_head(size: int) -> bytes:
    """Encode the header of a data section of ``size`` bytes."""
    return b"\x00\x53\x75\xb0" + struct.pack(">I", size)


def application(properties: Mapping[str, Any] | None) -> bytes:
    """Encode application properties; empty if there are none."""
    fields: dict[Any, Any] = dict(properties or {})
    return section(APPLICATION, _encode.encode_application_properties(fields)) if fields else b""


def runtime_metrics(sequence: int, offset: str, enqueued: int) -> bytes:
    """Encode the delivery annotations about the last message of the partition."""
    annotations: dict[Any, Any] = {
        b"last_enqueued_sequence_number": typed("LONG", sequence),
        b"last_enqueued_offset": offset,
        b"last_enqueued_time_utc": typed("TIMESTAMP", enqueued),
        b"runtime_info_retrieval_time_utc": typed("TIMESTAMP", time.time() * 1000),
    }
    return section(0x71, _encode.encode_annotations(annotations))


def reply(request: Incoming, properties: Mapping[str, Any], value: Any) -> bytes:
    """Encode the response to a request; correlation-id is the sixth of 13 properties."""
    fields = b"\x40" * 5 + request.message_id + b"\x40" * 7
    head = b"\x00\x53\x73\xd0" + struct.pack(">II", len(fields) + 4, 13) + fields
    return head + application(properties) + section(AMQP_VALUE, value)


def read_message(payload: memoryview) -> Incoming:
    """Decode a message. Sections that are stored unchanged are kept in encoded form."""
    found: dict[int, Any] = {}
    data: list[bytes] = []
    message_id, sections = b"\x40", b""
    while payload:
        code = payload[2]
        rest, content = _value(payload[3:])
        raw = payload[: len(payload) - len(rest)]
        if code == DATA:
            data.append(content)
        elif code in (PROPERTIES, APPLICATION, SEQUENCE, AMQP_VALUE):
            sections += raw
        if code == PROPERTIES and content:
            first = raw[12 if raw[3] == 0xD0 else 6 :]
            message_id = bytes(first[: len(first) - len(_value(first)[0])])
        found[code] = content
        payload = rest
    reply_to = (found.get(PROPERTIES, []) + [None] * 5)[4]
    return Incoming(
        annotations=found.get(ANNOTATIONS) or {},
        reply_to=(reply_to or b"").decode(),
        message_id=message_id,
        application=found.get(APPLICATION) or {},
        data=data,
        value=found.get(AMQP_VALUE),
        sections=sections,
    )


def _value(buffer: memoryview) -> tuple[memoryview, Any]:
    rest, value = _decode._DECODE_BY_CONSTRUCTOR[buffer[0]](buffer[1:])  # noqa: SLF001 - no public decoder
    return rest, value
