"""Delivers Kubernetes audit events from Azure Event Hubs to a security sensor's webhook."""

__version__ = "0.1.0"
