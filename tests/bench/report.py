"""Tables for the terminal and for sizing.md."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.figures import MEASURES, Figure, Results, changes
from bench.workloads import WORKLOADS

COLUMNS = ("figure", "now", "target", "before", "now/before", "other", "ratio", "spread")
_BEFORE = COLUMNS[3:5]


def cells(figure: Figure) -> dict[str, str]:
    """Return the row of a figure, by COLUMNS."""
    measure = MEASURES[figure.measure]

    def shown(value: float) -> str:
        return f"{value:,.{measure.digits}f}{measure.unit}"

    ratio = statistics.median(figure.ratios) if figure.ratios else None
    aim = "" if figure.target is None else f"{'≥' if measure.more else '≤'} {figure.target:,g}"
    if figure.aim is not None:
        aim = f"≤ {figure.aim:g} × before"
    values = (
        measure.name,
        shown(figure.median),
        aim,
        shown(statistics.median(figure.before)) if figure.before else "",
        "" if figure.share is None else f"{figure.share:.2f}",
        shown(statistics.median(figure.baseline)) if figure.baseline else "",
        "" if ratio is None else f"{ratio:,.{1 if ratio < 10 else 0}f} x",
        f"± {spread(figure.now):.0%}".replace("%", " %") if len(figure.now) > 1 else "",
    )
    return dict(zip(COLUMNS, values, strict=True))


def _columns(results: Results) -> list[str]:
    """Return the columns that are not empty."""
    return [one for one in COLUMNS if one not in _BEFORE or any(f.before for f in results.figures)]


def spread(values: Sequence[float]) -> float:
    """Return half the range of the values, as a fraction of their median."""
    return (max(values) - min(values)) / 2 / (statistics.median(values) or 1)


def show(results: Results, console: Console) -> None:
    """Print the table."""
    table = Table(box=SIMPLE)
    columns = _columns(results)
    for column in columns:
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    colours = {None: "", True: "[green]", False: "[red]"}
    work = ""
    for figure in results.figures:
        if figure.work != work:
            work = figure.work
            table.add_section()
            table.add_row(f"[bold]{WORKLOADS[work].title}")
        row = cells(figure)
        row["now"] = colours[figure.met] + row["now"]
        table.add_row(*(f"  {row[one]}" if one == "figure" else row[one] for one in columns))
    console.print(f"{results.machine}; medians of {results.rounds} rounds", soft_wrap=True)
    console.print(table)
    if results.growth:
        console.print("one round each:")
        console.print(_growth(results))
    for line in results.failed:
        console.print(f"[red]failed[/] {line}", soft_wrap=True)


def _growth(results: Results) -> Table:
    titles = {
        "partitions": "partitions",
        "size": "KB per message",
        "backlog": "events waiting",
        "latency": "ms to respond",
    }
    table = Table(box=SIMPLE)
    for column in ("", "events per second", "CPU per event, us", "memory, MiB", "s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    growth = ""
    for one in results.growth:
        if one.growth != growth:
            growth = one.growth
            table.add_section()
        series = f", concurrency {one.series}" if one.series else ""
        seconds = f"{one.drained:.1f}" if growth == "backlog" else ""
        numbers = (f"{one.rate:,.0f}", f"{one.cpu:.1f}", f"{one.memory:.0f}", seconds)
        table.add_row(f"{one.x:,g} {titles[growth]}{series}", *numbers)
    return table


def compare(old: Results, new: Results, console: Console) -> None:
    """Print the figures that changed by more than noise."""
    if old.machine != new.machine:
        line = f"[yellow]the earlier run was on another machine: {old.machine}"
        console.print(line, soft_wrap=True)
    found = list(changes(old, new))
    for then, now, better in found:
        measure = MEASURES[now.measure]
        console.print(
            f"{'[green]better' if better else '[red]worse'}[/]  {WORKLOADS[now.work].title}, "
            f"{measure.name}: {cells(then)['now']} → {cells(now)['now']} "
            f"({now.median / then.median - 1:+.0%})",
            soft_wrap=True,
        )
    if not found:
        console.print("no change beyond noise")


def markdown(results: Results) -> str:
    """Return the table as Markdown."""
    columns = _columns(results)
    lines = ["| workload | " + " | ".join(columns) + " |"]
    lines.append("|---|---" + "|--:" * (len(columns) - 1) + "|")
    work = ""
    for figure in results.figures:
        title = WORKLOADS[figure.work].title if figure.work != work else ""
        work = figure.work
        row = cells(figure)
        if figure.met:
            row["now"] = f"**{row['now']}**"
        lines.append("| " + " | ".join((title, *(row[one] for one in columns))) + " |")
    lines += ["", f"{results.machine}; {results.when}, medians of {results.rounds} rounds."]
    return re.sub("  +", " ", "\n".join(lines))


def put(path: Path, mark: str, text: str) -> None:
    """Replace the text between `<!-- mark -->` and `<!-- /mark -->` in a file."""
    whole = path.read_text()
    between = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- /{mark} -->)", re.DOTALL)
    written, found = between.subn(lambda marks: marks[1] + text + marks[2], whole)
    if found != 1:
        raise ValueError(f"{path.name} has no place for this between <!-- {mark} --> marks")
    path.write_text(written)
