"""The documentation, for tests that compare it with the code."""

import re
from pathlib import Path

from support import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "app" / "README.md",
    ROOT / "tests" / "README.md",
    ROOT / "chart" / "README.md",
    *sorted((ROOT / "chart" / "docs").glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
]
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """Return a page's text by its path in the repository, or its name in chart/docs."""
    path = ROOT / name if "/" in name or name == "README.md" else ROOT / "chart" / "docs" / name
    return path.read_text()


def section(text: str, heading: str) -> str:
    """Return the text of a section, up to the next heading of its level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading '{heading}'"
    return re.split(rf"^#{{1,{len(found[1])}}} ", found[2], maxsplit=1, flags=re.MULTILINE)[0]


def prose(text: str) -> str:
    """Return a page's text without its fenced blocks."""
    return _FENCED.sub("", text)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", prose(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
