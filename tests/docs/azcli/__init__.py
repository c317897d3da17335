"""The README's way through Azure: `python -m docs.azcli` prints or runs it."""
