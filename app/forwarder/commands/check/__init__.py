"""The command `check`: one module per component, whose steps `command` runs and prints."""
