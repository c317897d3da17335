"""What tests share: the local hub and its peers, a sink, processes, a ledger of what happened."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The checkout."""
