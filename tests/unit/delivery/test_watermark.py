"""The watermark is the end of the completely acknowledged prefix."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.watermark import Message, Watermark

ENTRY = 256
"""Bytes counted for a message, without its body, until the watermark passes it."""


class WatermarkMachine(RuleBasedStateMachine):
    """Two partitions with one buffer, compared with lists of pending record counts."""

    @initialize()
    def start(self) -> None:
        self.buffer = ReceiveBuffer(2**30)
        self.watermarks = [Watermark(self.buffer) for _ in range(2)]
        self.messages: list[list[Message]] = [[], []]
        self.pending: list[list[int]] = [[], []]

    @rule(which=st.sampled_from([0, 1]), size=st.integers(0, 2000), records=st.integers(0, 5))
    def track(self, which: int, size: int, records: int) -> None:
        number = 7 * len(self.messages[which]) + 3
        message = Message(number, f"{number}00", number / 10, size)
        self.watermarks[which].track(message, records)
        self.messages[which].append(message)
        self.pending[which].append(records)

    @rule(which=st.sampled_from([0, 1]), data=st.data())
    def acknowledge(self, which: int, data: st.DataObject) -> None:
        waiting = [n for n, count in enumerate(self.pending[which]) if count]
        if waiting:
            self._acknowledge(which, data.draw(st.sampled_from(waiting)), data)

    def _acknowledge(self, which: int, at: int, data: st.DataObject | None = None) -> None:
        count = self.pending[which][at]
        if data:
            count = data.draw(st.integers(1, count))
        self.pending[which][at] -= count
        self.watermarks[which].acknowledge(self.messages[which][at], count)

    def _prefix(self, which: int) -> int:
        """Return the number of messages before the first pending one."""
        return next(
            (n for n, count in enumerate(self.pending[which]) if count), len(self.pending[which])
        )

    @invariant()
    def position_is_the_last_message_of_the_complete_prefix(self) -> None:
        for which, watermark in enumerate(self.watermarks):
            prefix, messages = self._prefix(which), self.messages[which]
            assert watermark.position is (messages[prefix - 1] if prefix else None)
            assert watermark.oldest is (messages[prefix] if prefix < len(messages) else None)

    @invariant()
    def buffer_counts_tracked_messages(self) -> None:
        expected = 0
        for which in (0, 1):
            expected += ENTRY * (len(self.messages[which]) - self._prefix(which))
        assert self.buffer.used == expected

    def teardown(self) -> None:
        for which in (0, 1):
            for at in reversed(range(len(self.pending[which]))):
                if self.pending[which][at]:
                    self._acknowledge(which, at)
            last = self.messages[which][-1] if self.messages[which] else None
            assert self.watermarks[which].position is last
        assert self.buffer.used == 0


WatermarkMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_watermark = WatermarkMachine.TestCase


def _message(number: int) -> Message:
    return Message(number, str(number), 0.0, 10)


def test_the_watermark_waits_for_the_first_message_and_then_advances_past_all() -> None:
    watermark = Watermark(ReceiveBuffer(1000))
    first, second, empty = _message(5), _message(6), _message(9)
    for message, records in (first, 1), (second, 2), (empty, 0):
        watermark.track(message, records)
    watermark.acknowledge(second, 2)
    assert (watermark.position, watermark.oldest) == (None, first)
    watermark.acknowledge(first, 1)
    assert (watermark.position, watermark.oldest) == (empty, None)


def test_thousands_of_acknowledged_messages_after_a_pending_one_take_no_memory() -> None:
    """A dead letter may wait for days while the disk is full."""
    buffer = ReceiveBuffer(2**30)
    watermark = Watermark(buffer)
    waiting = {0, 1, 777, 778, 5000}
    messages = [_message(number) for number in range(10_000)]
    for message in messages:
        watermark.track(message, 2)
        if message.sequence_number not in waiting:
            watermark.acknowledge(message, 2)
        assert buffer.used < 200 * ENTRY
    for number in sorted(waiting):
        assert watermark.position is (messages[number - 1] if number else None)
        assert watermark.oldest is messages[number]
        watermark.acknowledge(messages[number], 2)
    assert (watermark.position, watermark.oldest) == (messages[-1], None)
    assert buffer.used == 0


def test_nothing_after_an_evicted_message_is_tracked_or_becomes_the_position() -> None:
    buffer = ReceiveBuffer(2**30)
    watermark = Watermark(buffer)
    messages = [_message(number) for number in range(100)]
    for message in messages[:50]:
        watermark.track(message, 1)
    watermark.mark_unsettleable(messages[20])
    for message in messages[50:]:
        watermark.track(message, 1)
    for message in reversed(messages):
        if message is not messages[20]:
            watermark.acknowledge(message, 1)
    assert (watermark.position, watermark.oldest) == (messages[19], messages[20])
    assert buffer.used == ENTRY
