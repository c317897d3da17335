"""The sink: the security sensor's audit webhook."""
