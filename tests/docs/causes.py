"""`python -m docs.causes` writes the table of causes in operations.md, from causes.toml."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from support import ROOT

PAGE = ROOT / "chart" / "docs" / "operations.md"
_CAUSES = ROOT / "app" / "forwarder" / "diagnosis" / "causes.toml"
_BETWEEN = re.compile(r"(<!-- causes -->\n).*?(<!-- /causes -->)", re.DOTALL)
_SECTIONS = {"hub": "Event Hubs", "store": "Storage account", "login": "Microsoft Entra ID"}
_PARTS = {
    "hub": "event hub",
    "store": "storage account",
    "login": "Microsoft Entra ID",
    "sink": "sink",
    "proxy": "proxy",
}


def table() -> str:
    """Return the tables as Markdown."""
    causes = tomllib.loads(_CAUSES.read_text())
    rows = {"Network, proxies and certificates": list(_network(causes))}
    for part, title in _SECTIONS.items():
        own = causes["texts"] | {"connection": "check EhubNamespaceConnectionString"}
        logins = ("store_identity", "store_key") if part == "store" else ("identity", "policy")
        identity, policy = (own[login]["rights"] for login in logins)
        own["rights"] = f"*identity*: {identity}<br>*connection string*: {policy}"
        rows[title] = [(one["what"], _filled(one["remedy"], own)) for one in causes[part]]
    token, silence = causes["token"], causes["silence"]
    rows[_SECTIONS["login"]] += [(token[one], token["remedy"]) for one in ("missing", "incomplete")]
    rows["Quiet hub, state directory"] = [
        *((silence[one], silence["remedy"]) for one in ("never", "since")),
        (causes["file"]["what"], causes["file"]["remedy"]),
    ]
    lines = []
    for title, found in rows.items():
        lines += [f"### {title}", "", "| cause | remedy |", "|---|---|"]
        lines += [f"| {_shown(what)} | {_shown(remedy)} |" for what, remedy in found]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def _network(causes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for one in causes["network"].values():
        by_remedy: dict[str, list[str]] = {}
        for part, name in _PARTS.items():
            by_remedy.setdefault(one[part if part in one else "azure"], []).append(name)
        remedies = [f"*{', '.join(parts)}*: {remedy}" for remedy, parts in by_remedy.items()]
        yield one["what"], "<br>".join(remedies)
    for one in causes["http"].values():
        yield one.get("what", "HTTPS_PROXY is set, and HubTransport is amqp"), one["remedy"]


def _filled(remedy: str, texts: dict[str, str]) -> str:
    """Replace references in a remedy with their texts."""
    while found := re.search(r"{(rights|keys|connection|federate|signature)}", remedy):
        remedy = remedy.replace(found[0], texts[found[1]])
    return remedy


def _shown(text: str) -> str:
    """Format placeholders in capital letters and commands as code."""
    text = text.replace("{hub_option}", " --eventhub-name {hub}").replace("{level}", "eventhub")
    text = text.replace("AADSTS{code}", "AADSTS…").replace("; tried {tried}", "")
    text = re.sub(r"\{(\w+)\}", lambda name: name[1].upper(), text).replace("|", "\\|")
    return re.sub(r"\b(az|kubectl) [a-z][^;<]*", lambda command: f"`{command[0]}`", text)


def written(page: str) -> str:
    """Return the page with up-to-date tables."""
    found, number = _BETWEEN.subn(lambda marks: marks[1] + table() + marks[2], page)
    if number != 1:
        raise ValueError("operations.md has no <!-- causes --> marks")
    return found


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
