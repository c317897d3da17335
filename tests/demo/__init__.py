"""`make demo`: a forwarder that loses nothing, or the events of your own hub."""
