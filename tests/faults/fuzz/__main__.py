"""`python -m faults.fuzz SECONDS`: coverage-guided fuzzing of what a message of the hub passes.

Needs `tests/faults/fuzz/requirements.txt`. Any exception ends it; the input is then written to the
current folder as crash-…, and given as an argument it is tried again.
"""

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["forwarder"]):
    from forwarder.audit.envelope import Unpacked, unpack
    from forwarder.audit.requestinfo import object_reference
    from forwarder.audit.truncated import complete, is_rfc3339
    from forwarder.errors import PolicyError, UnusableError
    from forwarder.policy import document
    from forwarder.policy.filter import filter_for

from support.events import TIME, real_events, record, wrap
from support.events.odd import ODD

CATEGORIES = frozenset({"kube-audit"})
FILTERS = [
    None,
    *(filter_for(document.load(name), ["*/a*"], annotates=True) for name in document.PRESETS),
]


def check(message: bytes, unpacked: Unpacked) -> None:
    """Check what holds for any message: each record has its end, and each event can be posted."""
    found = unpacked.records
    assert found or json.loads(message.decode("utf-8-sig")) in ([], {"records": []}), message
    for event in unpacked.events:
        fields = json.loads(event.body)
        assert {"auditID", "stage", "verb", "user"} <= fields.keys()
        assert "stageTimestamp" not in fields or is_rfc3339(fields["stageTimestamp"])


def message(data: bytes) -> None:
    """Unpack bytes as a message of the hub, and the same as a log, with each policy."""
    inside = record(data.decode("utf-8", "ignore"))
    for body in data, wrap([inside, inside[: len(inside) // 2]]):
        for one in FILTERS:
            check(body, unpack(body, CATEGORIES, one))


def text(data: bytes) -> None:
    """Complete bytes as an event that was cut off, and read them as a policy."""
    log = data.decode("utf-8", "ignore")
    try:
        completed = complete(log, TIME)
    except UnusableError:
        pass
    else:
        assert complete(completed, TIME) == completed
    object_reference(log, whole=bool(len(log) % 2))
    with suppress(PolicyError):
        document.parse(log)


def one_input(data: bytes) -> None:
    """Try an input; its first byte chooses what it is taken for."""
    (text if data[:1] > b"\x80" else message)(data[1:])


def main() -> None:
    """Fuzz for the seconds given, from the odd messages and real events."""
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name)
        for number, odd in enumerate(one for one in ODD if len(one.body) < 20_000):
            (corpus / f"odd{number}").write_bytes(b"\0" + odd.body)
        for number, event in enumerate(real_events()[:30]):
            (corpus / f"event{number}").write_bytes(b"\0" + event)
            (corpus / f"cut{number}").write_bytes(b"\xff" + event[: len(event) * 2 // 3])
        (corpus / "policy").write_bytes(b"\xff" + document.text("quiet").encode())
        given = sys.argv[1]
        limits = [f"-max_total_time={given}", str(corpus)] if given.isdecimal() else [given]
        atheris.Setup([sys.argv[0], "-max_len=20000", *limits], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
