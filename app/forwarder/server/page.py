"""The status page: a report in, one self-contained HTML page without scripts out."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

_WIDTH, _HEIGHT = 120, 28  # of a curve's view box
_STYLE: Final = Path(__file__).with_suffix(".css").read_text()
_NONE: Final = "<p>This process owns no partition at the moment.</p>"


def page(status: Mapping[str, Any]) -> str:
    """Return the page for a report of `status.report`. It reloads every 10 s."""
    reasons = [*status["notLive"], *status["notReady"]]
    title = status["state"]
    behind = sum(state["lag"] for state in status["partitions"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>aks-audit: {title}</title><style>{_STYLE}</style></head><body>
<h1>aks-audit: <span class="{"bad" if reasons else "good"}">{title}</span></h1>
<ul>{"".join(f"<li class=bad>{escape(reason)}</li>" for reason in reasons)}</ul>
<p class="dim">Version {escape(status["version"])}, up for {_age(status["upSeconds"])}.
{len(status["partitions"])} partitions owned, {behind:,} messages behind;
at most {status["postConcurrency"]} POSTs at once.</p>
<h2>Components</h2>
<ul>{"".join(_component(*item) for item in status["components"].items())}</ul>
<h2>Partitions</h2>
<div class="cards">{"".join(map(_partition, status["partitions"])) or _NONE}</div>
<h2>Last errors</h2>
{_table(_errors(status["errors"])) or '<p class="dim">None</p>'}
<h2>Settings</h2>
{_table(status["settings"].items())}
</body></html>
"""


def _component(name: str, state: str) -> str:
    kind = "good" if state == "healthy" else "bad"
    return f'<li>{escape(name)}: <span class="{kind}">{escape(state)}</span></li>'


def _partition(state: Mapping[str, Any]) -> str:
    points = state["lastHour"]
    rows = "".join(
        f'<div class="row">{text} {_curve([(p["secondsAgo"], p[name]) for p in points])}</div>'
        for name, text in (
            ("lag", f"{state['lag']:,} messages behind"),
            ("rate", f"{points[-1]['rate']:,.1f} events/s"),
            ("oldest", f"oldest {_age(state['oldest'])}"),
        )
    )
    checkpoint = "none yet" if state["checkpoint"] is None else f"{state['checkpoint']:,}"
    return (
        f'<div class="card"><h3>Partition {escape(state["partition"])}</h3>{rows}'
        f'<div class="dim">checkpoint {checkpoint}, {state["delivered"]:,} events delivered; '
        f"curves: last {_age(points[0]['secondsAgo'])}</div></div>"
    )


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Draw points (seconds ago, value), scaled to their maximum and to the time that they cover."""
    top = max(value for _, value in points)
    span = points[0][0] or 1
    line = " ".join(
        f"{_WIDTH - ago / span * _WIDTH:.1f},{_HEIGHT - 1 - value / (top or 1) * (_HEIGHT - 2):.1f}"
        for ago, value in points
    )
    return (
        f'<span class="dim">max {top:,.0f}</span><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'preserveAspectRatio="none" aria-hidden="true"><polyline points="{line}"/></svg>'
    )


def _errors(errors: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for entry in errors:
        rest = (f"{k}: {v}" for k, v in entry.items() if k not in {"timestamp", "level", "message"})
        yield entry["timestamp"], f"{entry['message']} ({', '.join(rest)})"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in rows)
    return f"<table>{lines}</table>" if lines else ""


def _age(seconds: float) -> str:
    """Return a duration in the largest unit that it contains at least twice."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
