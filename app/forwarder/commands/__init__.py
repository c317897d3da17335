"""The commands beside the running forwarder."""
