"""Checkpoints: how far each partition was delivered, and who owns it."""
