"""The documentation, for tests that hold it against what is so."""

from support import ROOT

README = (ROOT / "README.md").read_text()
