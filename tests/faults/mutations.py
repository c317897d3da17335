"""The lines that guard against loss, and the test that fails when such a line is changed.

Such a line ends with the comment `# guard: name`, or has it on the line above. `MUTATIONS` has the
replacements. `make faults MUTATE=1` (`python -m faults.mutations [PART_OF_A_NAME ...]`) changes one
line at a time in a copy of the app, runs the test for this line, and reports every mutation that
the test did not detect.
"""

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.process import APP

ROOT = APP.parent
AT_ONCE = 3
SECONDS = 1000.0
"""Limit for a run; each test has a shorter timeout of its own."""

STORES = "tests/integration/test_checkpoint_stores.py"
WATERMARK = "tests/unit/delivery/test_watermark.py"
START = "tests/faults/test_start.py::test_a_partition_is_not_read_while_its_start_cannot_be_written"
ANOTHER_HUB = (
    "tests/integration/test_checkpoints.py"
    "::test_a_checkpoint_of_another_hub_is_replaced_by_start_position"
)
NEW = "tests/integration/test_delivery.py::test_latest_skips_no_message_of_a_new_hub_or_partition"

_MARK = re.compile(r"^(?P<indent> *)(?P<code>.*?) *# guard: (?P<name>[a-z0-9-]+)$")


class Mutation(NamedTuple):
    """The replacement of a marked line, without indentation, and the test that must fail."""

    replacement: str
    test: str


class Guard(NamedTuple):
    """A marked line: its module, and where the line and its mark are (from 0)."""

    module: Path
    line: int
    mark: int


def scenario(name: str) -> str:
    """Return the test of a scenario."""
    return f"tests/faults/test_scenarios.py::test_nothing_is_lost[{name}]"


def guards(app: Path) -> Iterator[tuple[str, Guard]]:
    """Yield the marks in the code, by name."""
    for module in sorted((app / "forwarder").rglob("*.py")):
        for number, line in enumerate(module.read_text().splitlines()):
            if found := _MARK.match(line):
                yield found["name"], Guard(module, number + (not found["code"]), number)


def guard_of(mutation: str) -> str:
    """Return the name of the mark; it is followed by a colon if a line has several mutations."""
    return mutation.partition(":")[0]


MUTATIONS: dict[str, Mutation] = {
    "contiguous-acknowledgement": Mutation("while self._messages:", scenario("sink unavailable")),
    "checkpoint-in-order": Mutation("self.position = self._messages.pop()", scenario("killed")),
    "pending-records": Mutation("message.pending = 0", WATERMARK),
    "acknowledged-records": Mutation("message.pending = 0", WATERMARK),
    "compaction": Mutation("if kept and not message.pending:", WATERMARK),
    "evicted-dead-letter": Mutation(
        "self.watermark.acknowledge(message, len(records))",
        "tests/integration/test_disk.py::test_dead_letters_above_the_memory_limit_are_evicted_and_received_again_after_a_restart",
    ),
    "durable-dead-letter": Mutation(
        "dropped = 0",
        "tests/integration/test_disk.py::test_delivery_continues_while_writes_fail_and_dead_letters_are_written_later",
    ),
    "loss-is-counted": Mutation("elif lost := 0:", scenario("messages expired")),
    "already-received": Mutation("return message", scenario("hub drops")),
    "nothing-received-while-stopping": Mutation(
        "pass", "tests/integration/test_shutdown.py::test_stops_at_any_moment"
    ),
    "drain": Mutation("consumer.owned.cancel()", scenario("stopped while the sink is slow")),
    "drain-before-release": Mutation(
        "pass",
        "tests/integration/test_balancer.py::test_adding_and_stopping_replicas_cause_no_duplicates",
    ),
    "away-from-hub": Mutation("return False", scenario("replica cut off from the hub")),
    "cancel-until-done": Mutation(
        "for _ in (0,):",
        "tests/integration/test_shutdown.py::test_ends_a_task_that_swallows_its_cancellation",
    ),
    "unwritten-ownership-asks-the-hub": Mutation(
        "return added",
        "tests/integration/test_unwritable_store.py::test_replicas_do_not_take_partitions_from_each_other",
    ),
    "position-is-kept": Mutation(
        "pass",
        "tests/integration/test_unwritable_store.py::test_a_reclaimed_partition_resumes_from_its_position",
    ),
    "never-behind-another-process": Mutation("if False:", scenario("replica frozen")),
    "conditional-write": Mutation(
        "blob.set_blob_metadata(metadata)",
        f"{STORES}::TestBlob::test_a_checkpoint_behind_that_of_another_process_is_not_written",
    ),
    "ownership-age-by-store-clock": Mutation("ahead = 0.0", scenario("clock of a replica jumps")),
    "quarantine-after-three-deaths": Mutation("return False", scenario("poison message")),
    "count-starts": Mutation(
        "self._notes.starts[partition] = checkpoint, 1", scenario("poison message")
    ),
    "survivor-is-cleared": Mutation('name = ""', "tests/unit/checkpoints/test_quarantine.py"),
    "end-of-one-by-one": Mutation("pass", scenario("poison message")),
    "start-is-written": Mutation("if False:", START),
    "start-replaces-nothing": Mutation(
        "if False:", f"{STORES}::TestBlob::test_a_start_position_does_not_replace_a_checkpoint"
    ),
    "failed-checkpoint-is-retried": Mutation("raise errors[0]", scenario("store unavailable")),
    "accepted-statuses": Mutation(
        "if status == 500 or status in range(200, 300):", scenario("sink returns errors")
    ),
    "rejected-statuses: 429": Mutation(
        "_REJECTING: Final = {400, 413, 415, 422, 429}", scenario("sink returns errors")
    ),
    "rejected-statuses: 404": Mutation(
        "_REJECTING: Final = {400, 404, 413, 415, 422}", scenario("sink returns errors")
    ),
    "no-response-is-retried": Mutation("return", scenario("sink unavailable")),
    "timeout-is-retried": Mutation("return", scenario("sink slow")),
    "post-timeout": Mutation("timeout=aiohttp.ClientTimeout(total=None),", scenario("sink slow")),
    "token-reread": Mutation("if not self._versions:", scenario("token rotated")),
    "split-rejected-list": Mutation("if not events:", scenario("killed")),
    "no-verdict-in-an-outage": Mutation(
        "if True:",
        "tests/integration/test_sink_pressure.py::test_an_event_is_retried_while_the_sink_accepts_none",
    ),
    "second-half": Mutation("pass", scenario("killed")),
    "earliest": Mutation('return "latest"', scenario("killed")),
    "no-position": Mutation('return [offset or "@latest"]', START),
    "same-millisecond": Mutation(
        'by_time: Position = datetime.fromtimestamp(enqueued, UTC) if enqueued else "-1"',
        "tests/integration/test_refused_receivers.py::test_a_refused_sequence_number_is_replaced_by_the_time",
    ),
    "instant-is-included": Mutation(
        "return instant",
        "tests/integration/test_delivery.py::test_an_instant_includes_the_message_enqueued_at_it",
    ),
    "latest-at-the-start": Mutation("if True:", START),
    "latest-in-a-new-hub": Mutation("pass", NEW),
    "latest-in-an-added-partition": Mutation(
        'number, offset = self._latest.get(partition, (self.last[partition], "@latest"))', NEW
    ),
    "checkpoints-on-disk": Mutation(
        'database = sqlite3.connect(":memory:", check_same_thread=False, timeout=5)',
        scenario("killed"),
    ),
    "checksum": Mutation(
        "if key != _key(entry):",
        f"{STORES}::test_a_damaged_file_is_reported_and_only_intact_checkpoints_are_read",
    ),
    "buffer-limit": Mutation("return True", "tests/unit/delivery/test_buffer.py"),
    "bounded-response": Mutation(
        "content = await response.content.read()", "tests/integration/test_misbehaving_sinks.py"
    ),
    "recreated-hub": Mutation("if False:", scenario("hub recreated")),
    "gap-asks-the-hub": Mutation("if last is None or number > last:", scenario("hub recreated")),
    "checkpoint-of-this-hub: created": Mutation(
        "if written < self.created - _RESOLUTION:", scenario("hub recreated while stopped")
    ),
    "checkpoint-of-this-hub: written": Mutation(
        "if created not in {None, self.created}:",
        "tests/integration/test_checkpoints.py::test_a_checkpoint_older_than_the_hub_is_stale",
    ),
    "checkpoint-ahead-of-hub": Mutation("pass", ANOTHER_HUB),
    "checkpoint-passed-by-hub": Mutation("if False:", ANOTHER_HUB),
    "stale-checkpoint": Mutation("return True", ANOTHER_HUB),
    "stale-checkpoint-has-no-position": Mutation("rest = dict(entry)", ANOTHER_HUB),
    "checkpoint-names-its-hub": Mutation("pass", scenario("hub recreated while stopped")),
    "added-partitions": Mutation("if False:", scenario("partitions added")),
    "silent-receiver: ignored": Mutation(
        "if not behind or partition.watermark.oldest or reader.blocked or behind:",
        scenario("receivers silent"),
    ),
    "silent-receiver: without room": Mutation(
        "if not behind or partition.watermark.oldest or now < due:",
        "tests/integration/test_health.py::test_a_partition_that_waits_for_the_buffer_is_not_stalled_and_its_age_is_reported",
    ),
    "reopen-client": Mutation(
        "reader.reopen()",
        "tests/integration/test_health.py::test_a_silent_receiver_is_reopened_and_then_the_client",
    ),
    "silence-outlives-reopening": Mutation(
        "self._stalls = {n: s for n, s in self._stalls.items() if s.since > since}",
        "tests/integration/test_health.py::test_a_silent_receiver_is_reopened_and_then_the_client",
    ),
    "close-after-statement": Mutation(
        "if True:", f"{STORES}::test_close_waits_for_the_statement_of_a_cancelled_task"
    ),
    "html-is-logged": Mutation(
        'return body[:64].lstrip()[:1] == b"<"', "tests/integration/test_misbehaving_sinks.py"
    ),
}


def mutate(guard: Guard, replacement: str) -> None:
    """Change the marked line in its module."""
    lines = guard.module.read_text().splitlines()
    line = lines[guard.line]
    lines[guard.line] = line[: len(line) - len(line.lstrip())] + replacement
    guard.module.write_text("\n".join(lines) + "\n")


async def survives(name: str, mutation: Mutation) -> str:
    """Return why a mutation was not detected; empty if it was."""
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app"
        shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
        mutate(dict(guards(app))[guard_of(name)], mutation.replacement)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "--exitfirst", "-m", "", "-p", "no:cacheprovider"),
            *("-o", f"pythonpath={app} {ROOT / 'tests'}", "--basetemp", Path(folder) / "tests"),
            mutation.test,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"no result after {SECONDS:g} s"
        # 1: a test failed. Any other status except 0 is an error of the run itself.
        return {0: "not detected", 1: ""}.get(process.returncode or 0, output.decode()[-500:])


async def main(names: Sequence[str]) -> int:
    """Run the mutations whose names contain one of these, or all; return 1 if one survived."""
    chosen = [one for one in MUTATIONS if not names or any(name in one for name in names)]
    turns = asyncio.Semaphore(AT_ONCE)
    survivors = 0

    async def run(name: str) -> None:
        nonlocal survivors
        async with turns:
            why = await survives(name, MUTATIONS[name])
        survivors += bool(why)
        print(f"{'SURVIVED' if why else 'detected':8} {name}{': ' * bool(why)}{why}", flush=True)  # noqa: T201 - the tool's output

    await asyncio.gather(*map(run, chosen))
    print(f"{len(chosen)} mutations, {survivors} survived")  # noqa: T201 - as above
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
