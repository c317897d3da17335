"""The README's way through Azure: `python -m azcli` prints or runs it, check.py has az parse it."""
