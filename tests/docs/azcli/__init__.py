"""The commands of chart/docs/azure.md: `python -m docs.azcli` prints or runs them."""
