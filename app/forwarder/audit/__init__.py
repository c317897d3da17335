"""Audit events as Azure Monitor wraps them. Pure: bytes in, events out."""
