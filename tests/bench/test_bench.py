"""The parts of the benchmark workload; no test asserts a figure."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import baseline, plots, report, sizing
from bench.figures import Figure, Grown, Results, changes
from bench.run import run
from bench.workloads import DRAIN, WORKLOADS, Load, Point
from forwarder.checkpoints.sqlite import EmbeddedCheckpointStore
from support import events
from support.eventhubs import Server
from support.harness import HUB
from support.webhook import Webhook

MESSAGES = 4


class RecordingStore(EmbeddedCheckpointStore):
    """Records how many events the sink had at each checkpoint."""

    def __init__(self, path: Path, webhook: Webhook) -> None:
        super().__init__(path)
        self._webhook = webhook
        self.checkpoints: list[tuple[int, int]] = []

    async def update_checkpoint(self, checkpoint: dict[str, Any], **options: Any) -> None:
        self.checkpoints.append((checkpoint["sequence_number"], self._webhook.total))
        await super().update_checkpoint(checkpoint, **options)


async def test_baseline_posts_each_event_and_checkpoints_each_message(
    webhook: Webhook, tmp_path: Path
) -> None:
    store = RecordingStore(tmp_path / "checkpoints.db", webhook)
    made = list(events.messages(MESSAGES * 3, per_message=3))
    async with Server({HUB: 1}) as server:
        for message in made:
            server.hubs[HUB].publish(0, message.body)
        task = asyncio.create_task(baseline.forward(server.connection_string(), webhook.url, store))
        await webhook.until(lambda: len(store.checkpoints) == MESSAGES)
        task.cancel()
        await asyncio.wait([task])
    assert [*webhook.bytes.values()] == [event for message in made for event in message.events]
    assert webhook.sizes == [1] * MESSAGES * 3
    assert store.checkpoints == [(number, (number + 1) * 3) for number in range(MESSAGES)]


def results(*figures: Figure) -> Results:
    return Results("here", "today", list(figures))


@pytest.mark.parametrize(
    ("measure", "now", "better"),
    [
        ("rate", [150, 140, 160], True),
        ("rate", [80, 79, 81], False),
        ("cpu", [80, 79, 81], True),
        ("rate", [130, 105, 140], None),  # one round overlaps
        ("rate", [112, 112, 112], None),  # no overlap, but less than 5 % difference
    ],
)
def test_comparison_reports_only_changes_beyond_noise(
    measure: str,
    now: list[float],
    better: bool | None,  # noqa: FBT001  an example value
) -> None:
    old = results(Figure("lists", measure, [108.0, 107.0, 111.0]))
    found = list(changes(old, results(Figure("lists", measure, now))))
    assert [one for *_, one in found] == [better] * (better is not None)


def test_a_faster_machine_is_not_reported_as_a_change() -> None:
    old = results(Figure("lists", "rate", [100.0, 101.0], [10.0, 10.0]))
    machine = results(Figure("lists", "rate", [200.0, 202.0], [20.0, 20.1]))
    code = results(Figure("lists", "rate", [200.0, 202.0], [10.0, 10.1]))
    assert list(changes(old, machine)) == []
    assert len(list(changes(old, code))) == 1


def test_saved_results_can_be_read(tmp_path: Path) -> None:
    saved = results(Figure("lists", "rate", [2.0], [1.0]))
    saved.growth = [Grown("size", "", 1, 2, 3, 4, 5)]
    saved.write(tmp_path / "old.json")
    assert Results.read(tmp_path / "old.json") == saved


def test_figures_and_sizes_are_written_between_their_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n")
    measured = results(
        Figure("lists", "rate", [90_000, 91_000, 92_000], [1_000, 1_300, 1_400]),
        Figure("tls", "cpu", [12.5]),
        Figure("many", "memory", [100, 100]),
    )
    report.put(readme, "bench", report.markdown(measured))
    text = readme.read_text()
    assert text.startswith("a\n<!-- bench -->\n| workload ")
    assert text.endswith("1 to 3 rounds.\n<!-- /bench -->\nb\n")
    assert "| events per second | 91,000 | | 1,300 | 70 x | ± 1 % |" in text
    assert "| hub over TLS (to without) | CPU per event, us | 12.5 | | |" in text
    with pytest.raises(ValueError, match="no place"):
        report.put(readme, "sizing", sizing.markdown(measured))


def test_sizes_are_within_the_limits_of_the_service() -> None:
    for clusters in range(1, 2000, 7):
        size = sizing.Size(clusters, cpu=12)
        assert size.inward - 1e-6 <= size.units <= size.partitions <= 32
        assert size.units <= 40
        assert size.each * size.namespaces == pytest.approx(clusters)


async def test_a_small_workload_gives_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load(messages=400)
    workload = replace(WORKLOADS["lists"], load=load, rounds=1, seconds=0.5)
    monkeypatch.setitem(WORKLOADS, "lists", workload)
    growth = [Point("partitions", load.partitions, load, seconds=DRAIN)]
    console = Console(file=io.StringIO(), width=100)
    measured = await run(["lists"], growth, console, short=False)
    assert measured.failed == []
    assert [one.measure for one in measured.figures] == ["rate", "cpu", "memory", "start", "ramp"]
    assert all(min(*one.now, *one.baseline) > 0 for one in measured.figures if one.measure != "cpu")
    plots.draw(measured, tmp_path)
    svg = (tmp_path / "partitions.svg").read_text()
    assert "events per second</text>" in svg
    report.show(measured, console)
