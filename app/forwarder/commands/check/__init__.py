"""The check: whether the way from hub to sink is open; `command` walks its steps."""
