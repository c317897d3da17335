"""`python -m docs.azcli [--run] [install|identity|down]`: print or run the commands of azure.md."""

import argparse
import os
import sys
from pathlib import Path

from docs.azcli import steps


def main() -> None:
    """Print the program, or exec bash to run it."""
    parser = argparse.ArgumentParser("make azure", description=__doc__)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("part", choices=steps.PARTS, nargs="?", default="install")
    options = parser.parse_args()
    root = Path(__file__).parents[3]
    page = (root / "chart" / "docs" / "azure.md").read_text(encoding="utf-8")
    found = steps.of(page, options.part)
    if not options.run:
        sys.stdout.write(steps.program(found, os.environ, ask=False))
        return
    os.chdir(root)
    program = steps.program(found, os.environ, ask=True)
    os.execvp("bash", ["bash", "-c", program])  # noqa: S606 - bash needs the terminal


main()
