"""The commands: everything that is not the running forwarder."""
