"""Test helpers: a local hub, sinks, storage accounts, child processes, and the ledger."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""Root of the repository."""
