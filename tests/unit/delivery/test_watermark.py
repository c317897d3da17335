"""The watermark follows the settled prefix, and the receive buffer counts what is held."""

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forwarder.delivery.buffer import ReceiveBuffer
from forwarder.delivery.watermark import Message, Watermark

ENTRY = 256
"""Bytes that a message holds beside its own until the watermark passes it."""


class WatermarkMachine(RuleBasedStateMachine):
    """Two partitions on one buffer, against lists of how many records are open."""

    @initialize()
    def start(self) -> None:
        self.buffer = ReceiveBuffer(2**30)
        self.windows = [Watermark(self.buffer) for _ in range(2)]
        self.messages: list[list[Message]] = [[], []]
        self.open: list[list[int]] = [[], []]

    @rule(which=st.sampled_from([0, 1]), size=st.integers(0, 2000), records=st.integers(0, 5))
    def receive(self, which: int, size: int, records: int) -> None:
        number = 7 * len(self.messages[which]) + 3
        message = Message(number, f"{number}00", number / 10, size)
        self.buffer.used += size
        self.windows[which].add(message, records)
        self.messages[which].append(message)
        self.open[which].append(records)

    @rule(which=st.sampled_from([0, 1]), data=st.data())
    def acknowledge(self, which: int, data: st.DataObject) -> None:
        waiting = [n for n, count in enumerate(self.open[which]) if count]
        if waiting:
            self._acknowledge(which, data.draw(st.sampled_from(waiting)), data)

    def _acknowledge(self, which: int, at: int, data: st.DataObject | None = None) -> None:
        count = self.open[which][at]
        if data:
            count = data.draw(st.integers(1, count))
        self.open[which][at] -= count
        self.windows[which].acknowledge(self.messages[which][at], count)

    def _prefix(self, which: int) -> int:
        """Return how many messages lie before the first open one."""
        return next((n for n, count in enumerate(self.open[which]) if count), len(self.open[which]))

    @invariant()
    def watermark_is_the_last_message_of_the_settled_prefix(self) -> None:
        for which, window in enumerate(self.windows):
            prefix, messages = self._prefix(which), self.messages[which]
            assert window.position is (messages[prefix - 1] if prefix else None)
            assert window.oldest is (messages[prefix] if prefix < len(messages) else None)

    @invariant()
    def buffer_holds_the_open_messages_and_the_entries_behind_them(self) -> None:
        held = 0
        for which in (0, 1):
            entries = [*zip(self.messages[which], self.open[which], strict=True)]
            held += sum(message.size for message, count in entries if count)
            held += ENTRY * (len(entries) - self._prefix(which))
        assert self.buffer.used == held

    def teardown(self) -> None:
        for which in (0, 1):
            for at in reversed(range(len(self.open[which]))):
                if self.open[which][at]:
                    self._acknowledge(which, at)
            last = self.messages[which][-1] if self.messages[which] else None
            assert self.windows[which].position is last
        assert self.buffer.used == 0


WatermarkMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
test_watermark = WatermarkMachine.TestCase


def _message(number: int) -> Message:
    return Message(number, str(number), 0.0, 10)


def test_the_watermark_waits_for_the_first_message_and_then_passes_all() -> None:
    window = Watermark(ReceiveBuffer(1000))
    first, second, empty = _message(5), _message(6), _message(9)
    for message, records in (first, 1), (second, 2), (empty, 0):
        window.add(message, records)
    window.acknowledge(second, 2)
    assert (window.position, window.oldest) == (None, first)
    window.acknowledge(first, 1)
    assert (window.position, window.oldest) == (empty, None)


def test_thousands_settled_behind_one_that_waits_cost_no_memory() -> None:
    """A dead letter may wait for a full disk for days; the checkpoint jumps when it is written."""
    buffer = ReceiveBuffer(2**30)
    window = Watermark(buffer)
    waiting = {0, 1, 777, 778, 5000}
    messages = [_message(number) for number in range(10_000)]
    for message in messages:
        buffer.used += message.size
        window.add(message, 2)
        if message.sequence_number not in waiting:
            window.acknowledge(message, 2)
        assert buffer.used < 200 * ENTRY
    for number in sorted(waiting):
        assert window.position is (messages[number - 1] if number else None)
        assert window.oldest is messages[number]
        window.acknowledge(messages[number], 2)
    assert (window.position, window.oldest) == (messages[-1], None)
    assert buffer.used == 0


def test_records_that_wait_for_the_disk_hold_back_the_checkpoint_and_no_bytes() -> None:
    buffer = ReceiveBuffer(1000)
    window = Watermark(buffer)
    message = _message(1)
    buffer.used += message.size
    window.add(message, 3)
    window.release_bytes(message, 1)
    window.acknowledge(message, 1)
    assert buffer.used == message.size + ENTRY
    window.acknowledge(message, 1)
    assert (buffer.used, window.oldest) == (ENTRY, message)
    window.acknowledge(message, 1, held=False)
    assert (buffer.used, window.position) == (0, message)


def test_nothing_behind_a_message_that_never_settles_is_remembered_or_becomes_a_checkpoint() -> (
    None
):
    buffer = ReceiveBuffer(2**30)
    window = Watermark(buffer)
    messages = [_message(number) for number in range(100)]
    for message in messages[:50]:
        buffer.used += message.size
        window.add(message, 1)
    window.release_bytes(messages[20], 1)
    window.mark_unsettleable(messages[20])
    for message in messages[50:]:
        buffer.used += message.size
        window.add(message, 1)
    for message in reversed(messages):
        if message is not messages[20]:
            window.acknowledge(message, 1)
    assert (window.position, window.oldest) == (messages[19], messages[20])
    assert buffer.used == ENTRY


async def _until_blocked() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_message_larger_than_the_buffer_passes_alone() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.take(60)
    giant = asyncio.create_task(buffer.take(1000))
    await _until_blocked()
    assert not giant.done()
    buffer.release(60)
    await asyncio.wait_for(giant, 5)
    assert not buffer.has_room(1)
    other = asyncio.create_task(buffer.take(1))
    await _until_blocked()
    assert not other.done()
    buffer.release(1000)
    await asyncio.wait_for(other, 5)
    assert buffer.used == 1


@pytest.mark.parametrize(("size", "fits"), [(40, True), (41, False)])
async def test_the_buffer_fills_to_its_limit_and_no_further(size: int, fits: bool) -> None:  # noqa: FBT001 - a column of the table
    buffer = ReceiveBuffer(100)
    await buffer.take(60)
    assert buffer.has_room(size) is fits
    waiting = asyncio.create_task(buffer.take(size))
    await _until_blocked()
    assert waiting.done() is fits
    buffer.release(60)
    await asyncio.wait_for(waiting, 5)


async def test_all_who_wait_get_their_turn_and_the_limit_holds() -> None:
    buffer = ReceiveBuffer(100)
    most = 0

    async def hold(size: int) -> None:
        nonlocal most
        await buffer.take(size)
        most = max(most, buffer.used)
        await asyncio.sleep(0)
        buffer.release(size)

    sizes = [1 + n * 37 % 90 for n in range(200)]
    await asyncio.wait_for(asyncio.gather(*map(hold, sizes)), 20)
    assert buffer.used == 0
    assert 80 < most <= 100


async def test_a_large_message_is_not_overtaken_by_small_ones() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.take(50)
    await buffer.take(40)
    large = asyncio.create_task(buffer.take(90))
    await _until_blocked()
    assert not buffer.has_room(10)
    small = asyncio.create_task(buffer.take(10))
    buffer.release(40)
    await _until_blocked()
    assert not large.done()
    assert not small.done()
    buffer.release(50)
    await asyncio.wait_for(asyncio.gather(large, small), 5)
    assert buffer.used == 100


async def test_one_who_gives_up_waiting_takes_nothing() -> None:
    buffer = ReceiveBuffer(100)
    await buffer.take(100)
    waiting = asyncio.create_task(buffer.take(1))
    await _until_blocked()
    waiting.cancel()
    await asyncio.wait([waiting])
    buffer.release(100)
    assert buffer.used == 0
    assert buffer.has_room(100)
