"""What `make demo` shows: a forwarder that loses nothing, or the events of a hub of yours."""
