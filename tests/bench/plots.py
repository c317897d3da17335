"""Plots of the growth series, as SVG: readable on dark and on light pages."""

from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FuncFormatter

from bench.figures import Grown, Results

_GREY = "#7a828c"
_COLOURS = ("#2f81f7", "#e0752d", "#2da44e")
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bench",  # reproducible files
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "lines.linewidth": 2,
    "lines.marker": "o",
    "legend.frameon": False,
}
_thousands = EngFormatter(sep="")
_plain = FuncFormatter(lambda value, _: f"{value:g}")


def _line(
    axes: Axes, points: Iterable[Grown], y: Callable[[Grown], float], number: int = 0
) -> None:
    points = list(points)
    axes.plot([one.x for one in points], [y(one) for one in points], color=_COLOURS[number])


def _pair(
    canvas: Canvas, points: list[Grown], upper: tuple[str, Callable[[Grown], float]], x: str
) -> tuple[Axes, Axes]:
    """Draw a quantity next to the memory."""
    left, right = canvas.subplots(1, 2)
    for axes, (title, y) in ((left, upper), (right, ("MiB of memory", lambda one: one.memory))):
        _line(axes, points, y)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_ylim(0, 1.15 * max(map(y, points)))
        axes.yaxis.set_major_formatter(_thousands)
        axes.set_xscale("log")
        axes.set_xticks([one.x for one in points])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(_thousands)
        axes.set_xlabel(x)
    return left, right


def _backlog(canvas: Canvas, points: list[Grown]) -> None:
    left, _ = _pair(canvas, points, ("seconds", lambda one: one.drained), "events waiting")
    left.set_ylim(min(one.drained for one in points) / 2, 2 * max(one.drained for one in points))
    left.set_yscale("log")
    left.yaxis.set_major_formatter(_plain)


def _size(canvas: Canvas, points: list[Grown]) -> None:
    _pair(canvas, points, ("events per second", lambda one: one.rate), "KB per message")


def _partitions(canvas: Canvas, points: list[Grown]) -> None:
    _pair(canvas, points, ("events per second", lambda one: one.rate), "partitions")


def _latency(canvas: Canvas, points: list[Grown]) -> None:
    axes = canvas.subplots()
    for number, (series, line) in enumerate(groupby(points, lambda one: one.series)):
        _line(axes, line, lambda one: one.rate, number)
        axes.lines[-1].set_label(f"WebSinkConcurrency {series}")
    axes.set_title("events per second", fontsize=11, loc="left")
    axes.set_xscale("symlog", linthresh=5, linscale=0.5)
    axes.set_xticks(sorted({one.x for one in points}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel("ms until the sink responds")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_thousands)
    axes.legend()


_DRAWN = {"backlog": _backlog, "latency": _latency, "partitions": _partitions, "size": _size}
DOCUMENTED = ("backlog", "latency")


def draw(results: Results, folder: Path, names: Iterable[str] = tuple(_DRAWN)) -> None:
    """Draw these growth series into files `NAME.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        points = [one for one in results.growth if one.growth == name]
        if not points:
            continue
        with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # keys are literals there
            canvas = Canvas(figsize=(8, 3.2), layout="constrained")
            _DRAWN[name](canvas, points)
            canvas.savefig(
                folder / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None}
            )
