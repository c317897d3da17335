"""Converts the blocks of commands on a page into a bash program. No I/O."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_NAMES = "1. Names"
_DOWN = "Remove everything"
_IDENTITY = "Identity instead of keys"
_MARKED = re.compile(r"\*Costs\*|\*deletes\*|\(optional\)")
PARTS = ("install", "identity", "down")

_HEAD = """\
set -euo pipefail
ask() {
  local answer
  read -r -p "$1 [y/N] " answer || true
  [[ $answer == [yY]* ]]
}
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A fenced block of sh: its headings, the prose before it, and its commands."""

    section: str  # heading of level 2
    heading: str  # of level 3, or of the section
    prose: str  # since the previous block or heading
    commands: str

    @property
    def optional(self) -> bool:
        """Whether the installation can continue without it."""
        return "(optional)" in self.heading + self.prose

    @property
    def question(self) -> str:
        """The question before it: the heading, and what it costs or deletes; "" for none."""
        prose = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(self.prose.split()))
        marked = [one for one in re.split(r"(?<=[.:])\s", prose) if _MARKED.search(one)]
        if not marked and not self.optional:
            return ""
        return " ".join([f"{self.heading}?", *marked]).replace("*", "").replace("`", "")


def blocks(markdown: str) -> Iterator[Step]:
    """Yield every block of sh, in order."""
    section = heading = prose = ""
    parts = re.split(r"^ *```(\w*)\n(.*?)^ *```\n", markdown, flags=re.MULTILINE | re.DOTALL)
    for text, language, commands in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        for line in text.splitlines():
            if found := re.match(r"(##+) (.*)", line):
                heading, prose = found[2], ""
                section = heading if found[1] == "##" else section
            else:
                prose += line + "\n"
        if language == "sh":
            yield Step(section, heading, prose, commands)
        prose = ""


def of(page: str, part: str) -> list[Step]:
    """Return the steps of a part of azure.md, preceded by those that set the names."""
    found = list(blocks(page))
    names = [step for step in found if step.heading == _NAMES]
    match part:
        case "identity":
            chosen = [step for step in found if step.section == _IDENTITY]
        case "down":
            chosen = [step for step in found if step.heading == _DOWN]
        case _:
            numbered = [step for step in found if re.match(r"\d+\. ", step.heading)]
            chosen = [step for step in numbered if step.heading != _NAMES]
    return names + chosen


def program(steps: Sequence[Step], environ: Mapping[str, str], *, ask: bool) -> str:
    """Return the steps as a bash program; variables in `environ` override the names of the page.

    With `ask`, it prints each heading, and asks before a step that is optional, costs or deletes.
    """
    text = _HEAD if ask else ""
    for step in steps:
        commands = _named(step.commands, environ) if step.heading == _NAMES else step.commands
        question = shlex.quote(step.question)
        if not ask:
            text += f"# {step.heading}\n{commands}\n"
        elif step.optional:
            text += f"if ask {question}; then\n{commands}fi\n"
        elif step.question:
            text += f"ask {question} || exit 0\n{commands}"
        else:
            text += f"echo {shlex.quote(step.heading)}\n{commands}"
    return text


def _named(commands: str, environ: Mapping[str, str]) -> str:
    def given(found: re.Match[str]) -> str:
        value = environ.get(found["name"])
        return found[0] if value is None else f"{found['name']}={shlex.quote(value)}"

    return re.sub(r"^(?P<name>[A-Z_]+)=(\$\(.*\)|\S*)", given, commands, flags=re.MULTILINE)
