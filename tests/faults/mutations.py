"""The lines that guard against loss, and for each the scenario that fails when it is changed.

`make faults MUTATE=1` (`python -m faults.mutations [PART_OF_A_NAME …]`) changes one line at a time
in a copy of the app, runs the scenario named for it there, and lists those that nobody noticed.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from support.process import APP

ROOT = APP.parent
AT_ONCE = 3
SECONDS = 300.0
"""A scenario that does not end by then has noticed."""


class Mutation(NamedTuple):
    """A text that stands once in a module, what it becomes, and the test that must fail."""

    module: str
    text: str
    becomes: str
    test: str


def scenario(name: str) -> str:
    """Return the test that runs a line of the table."""
    return f"tests/faults/test_scenarios.py::test_nothing_is_lost[{name}]"


MUTATIONS: dict[str, Mutation] = {
    "a checkpoint passes what is under way": Mutation(
        "delivery/watermark.py",
        "while self._messages and not self._messages[0].pending:",
        "while self._messages:",
        scenario("sink away"),
    ),
    "the watermark ignores order": Mutation(
        "delivery/watermark.py",
        "self.position = self._messages.popleft()",
        "self._messages.popleft(); self.position = message",
        scenario("killed"),
    ),
    "a message read twice is taken twice": Mutation(
        "hub/consumer.py",
        "            return False\n        await self._hub.look()",
        "            return True\n        await self._hub.look()",
        scenario("hub drops"),
    ),
    "a receiver counts its errors": Mutation(
        "hub/consumer.py",
        "_FOR_EVER: Final = 2**31",
        "_FOR_EVER: Final = 0",
        scenario("hub refuses"),
    ),
    "messages are taken while it stops": Mutation(
        "hub/consumer.py",
        "                or self._stopping\n",
        "",
        "tests/test_shutdown.py::test_stops_at_any_moment",
    ),
    "nothing is drained at a stop": Mutation(
        "app.py",
        "await source.drain()",
        "source.cancel()",
        scenario("stopped while the sink is slow"),
    ),
    "a task is cancelled once": Mutation(
        "app.py",
        "while not all(task.done() for task in tasks):",
        "for _ in (0,):",
        "tests/test_shutdown.py::test_ends_a_task_that_forgets_that_it_was_cancelled",
    ),
    "another process's checkpoint moves back": Mutation(
        "checkpoints/blob.py",
        'if number is not None and number > checkpoint["sequence_number"]:',
        "if False:",
        scenario("replica frozen"),
    ),
    "a checkpoint is written whatever is there": Mutation(
        "checkpoints/blob.py",
        "set_blob_metadata(metadata, etag=etag, match_condition=MatchConditions.IfNotModified)",
        "set_blob_metadata(metadata)",
        scenario("replica frozen"),
    ),
    "a partition is given up by the tag that it was claimed with": Mutation(
        "checkpoints/blob.py",
        'one if one["owner_id"] else {**one, "etag": self._tags[_holding(one)]}',
        "one",
        "tests/test_embedded.py::TestBlob::"
        "test_a_partition_is_given_up_although_its_claim_is_being_renewed",
    ),
    "an owner's age is told by the clock here": Mutation(
        "checkpoints/blob.py",
        'one["last_modified_time"] + ahead}',
        'one["last_modified_time"]}',
        scenario("clocks of replicas jump"),
    ),
    "a claim grows old by the clock here": Mutation(
        "checkpoints/blob.py",
        '"holder": one["owner_id"], "last_modified_time": math.inf}',
        '"holder": one["owner_id"]}',
        scenario("clocks of replicas jump"),
    ),
    "a message that kills is taken again": Mutation(
        "checkpoints/quarantine.py",
        "return self._notes.deaths.get(_name(partition, message), 0) >= _DEATHS",
        "return False",
        scenario("poison"),
    ),
    "nothing is noted of a start": Mutation(
        "checkpoints/quarantine.py",
        "self._notes.starts[partition] = checkpoint, starts + 1 if before == checkpoint else 1",
        "self._notes.starts[partition] = checkpoint, 1",
        scenario("poison"),
    ),
    "whoever is taken when it dies is condemned": Mutation(
        "checkpoints/quarantine.py",
        "            self._notes.deaths.pop(name, None)\n"
        "            if self._notes.suspect == name:",
        "            if False:",
        "tests/test_poison.py",
    ),
    "messages are taken one by one for ever": Mutation(
        "hub/consumer.py",
        "self._checkpoints.quarantine.over()",
        "",
        scenario("poison"),
    ),
    "a failing store ends the writing of checkpoints": Mutation(
        "checkpoints/writer.py",
        'self._repeated.error("checkpoints cannot be written", reason=self.failure)',
        "raise errors[0]",
        scenario("store away"),
    ),
    "a 500 is acceptance": Mutation(
        "sink/response.py",
        "if status in range(200, 300):",
        "if status == 500 or status in range(200, 300):",
        scenario("sink answers badly"),
    ),
    "a 429 is a refusal": Mutation(
        "sink/response.py",
        "_REJECTING: Final = {400, 413, 415, 422}",
        "_REJECTING: Final = {400, 413, 415, 422, 429}",
        scenario("sink answers badly"),
    ),
    "a 404 is a refusal": Mutation(
        "sink/response.py",
        "_REJECTING: Final = {400, 413, 415, 422}",
        "_REJECTING: Final = {400, 404, 413, 415, 422}",
        scenario("sink answers badly"),
    ),
    "no answer is acceptance": Mutation(
        "sink/webhook.py",
        'raise RetryableError(why.what, reason="connection", do=why.do) from None',
        "return",
        scenario("sink away"),
    ),
    "a time-out is acceptance": Mutation(
        "sink/webhook.py",
        "        except TimeoutError:\n",
        "        except TimeoutError:\n            return\n",
        scenario("sink slow"),
    ),
    "a post may last for ever": Mutation(
        "sink/webhook.py",
        "total=self._settings.web_sink_timeout",
        "total=None",
        scenario("sink slow"),
    ),
    "a token is read once": Mutation(
        "bearer.py",
        "if version != self._version:",
        "if self._version is None:",
        scenario("token rotated"),
    ),
    "a refused list is refused as a whole": Mutation(
        "delivery/partition.py",
        "if len(events) == 1:",
        "if events:",
        scenario("killed"),
    ),
    "half of a refused list is forgotten": Mutation(
        "delivery/partition.py",
        "            await self._deliver(events[half:])\n",
        "",
        scenario("killed"),
    ),
    "a new forwarder starts at the end": Mutation(
        "hub/monitor.py",
        '"earliest": "-1"',
        '"earliest": "@latest"',
        scenario("killed"),
    ),
    "checkpoints are kept in memory": Mutation(
        "checkpoints/sqlite.py",
        "database = sqlite3.connect(path,",
        'database = sqlite3.connect(":memory:",',
        scenario("killed"),
    ),
    "the buffer has no bound": Mutation(
        "delivery/buffer.py",
        "return not self.used or self.used + size <= self.limit",
        "return True",
        "tests/test_memory.py",
    ),
    "an answer is read to its end": Mutation(
        "sink/webhook.py",
        "answer = await response.content.read(_ANSWER_BYTES)",
        "answer = await response.content.read()",
        "tests/test_lying_sinks.py",
    ),
    "a hub made anew is not noticed": Mutation(
        "hub/consumer.py",
        "if self._hub.created != self._store.created:",
        "if False:",
        scenario("hub made anew"),
    ),
    "a gap in a hub made anew is loss": Mutation(
        "hub/consumer.py",
        "if last is None or number == last + 1:",
        "if last is None or number > last:",
        scenario("hub made anew"),
    ),
    "checkpoints of an earlier hub serve": Mutation(
        "checkpoints/generation.py",
        "or created not in {None, self.created}:",
        "or False:",
        scenario("hub made anew while nobody reads"),
    ),
    "blobs of an earlier hub serve": Mutation(
        "checkpoints/generation.py",
        "written < self.created - _RESOLUTION or ",
        "",
        "tests/test_checkpoints.py::test_a_checkpoint_older_than_the_hub_is_another_hubs",
    ),
    "checkpoints of another hub serve": Mutation(
        "hub/consumer.py",
        "self._is_foreign(self.partitions[number])",
        "pass",
        "tests/test_checkpoints.py::test_a_checkpoint_of_another_hub_is_left_for_start_position",
    ),
    "new partitions are not noticed": Mutation(
        "hub/consumer.py",
        "elif self._read < self._hub.last.keys():",
        "elif False:",
        scenario("partitions added"),
    ),
    "a silent receiver is left alone": Mutation(
        "server/health.py",
        "or partition.blocked_message or now < due:",
        "or partition.blocked_message or waits:",
        scenario("receivers silent"),
    ),
    "the client is never reopened": Mutation(
        "server/health.py",
        "self._source.reopen()",
        "self._source.reopen(number)",
        "tests/test_health.py::test_a_receiver_that_is_silent_is_reopened_then_the_client",
    ),
    "a silence is forgotten by its age": Mutation(
        "server/health.py",
        "elif now - silence.owned",
        "elif now - silence.since",
        "tests/test_health.py::test_a_receiver_that_is_silent_is_reopened_then_the_client",
    ),
    "what finds no room is silence": Mutation(
        "server/health.py",
        "or partition.blocked_message or now < due:",
        "or now < due:",
        (
            "tests/test_health.py::"
            "test_a_partition_that_finds_no_room_is_not_silent_and_its_age_is_shown"
        ),
    ),
    "the client keeps delivery tags": Mutation(
        "app.py",
        "        mend_client()\n",
        "",
        "tests/test_memory.py::test_the_client_keeps_nothing_of_a_message",
    ),
    "the store is closed under a statement": Mutation(
        "checkpoints/sqlite.py",
        "with self._lock:  # SQLite",
        "if True:  # SQLite",
        "tests/test_embedded.py::test_closing_waits_for_a_statement_that_nobody_waits_for",
    ),
    "a page is not said": Mutation(
        "sink/response.py",
        'content_type == "text/html" or',
        "False and",
        "tests/test_lying_sinks.py",
    ),
}


async def survives(mutation: Mutation) -> str:
    """Return why a mutation was not noticed; empty if it was."""
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app"
        shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
        module = app / "forwarder" / mutation.module
        if module.read_text().count(mutation.text) != 1:
            return "its line is not there once"
        module.write_text(module.read_text().replace(mutation.text, mutation.becomes))
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
            return ""
        # 1: a test failed. Anything else but success is no verdict on the line.
        return {0: "nobody noticed", 1: ""}.get(process.returncode or 0, output.decode()[-500:])


async def main(names: Sequence[str]) -> int:
    """Run the mutations whose names contain one of these, all if none is given; print survivors."""
    chosen = [one for one in MUTATIONS if not names or any(name in one for name in names)]
    turns = asyncio.Semaphore(AT_ONCE)
    survivors = 0

    async def run(name: str) -> None:
        nonlocal survivors
        async with turns:
            why = await survives(MUTATIONS[name])
        survivors += bool(why)
        print(f"{'SURVIVED' if why else 'noticed ':8} {name}{': ' * bool(why)}{why}", flush=True)  # noqa: T201 - the tool's output

    await asyncio.gather(*map(run, chosen))
    print(f"{len(chosen)} mutations, {survivors} survived")  # noqa: T201 - as above
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
