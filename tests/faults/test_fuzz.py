"""Coverage-guided fuzzing of all external input; see `faults.fuzz`."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not find_spec("atheris"),
    reason="atheris is missing: it has wheels for Linux on x86-64, up to Python 3.14",
)
@pytest.mark.full
@pytest.mark.timeout(1200)
def test_fuzzing_finds_no_message_that_is_lost_or_raises(tmp_path: Path) -> None:
    """Runs for ten minutes, or FUZZ_SECONDS, with low priority beside other tests."""
    path = os.pathsep.join([str(ROOT / "app"), str(ROOT / "tests")])
    done = subprocess.run(
        ["nice", sys.executable, "-m", "faults.fuzz", os.environ.get("FUZZ_SECONDS", "600")],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    # The traceback is on standard output, and the input and the progress on standard error.
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Done " in done.stderr
