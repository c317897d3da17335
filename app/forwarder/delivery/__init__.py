"""Delivery of one partition: from a received message to an acknowledged one."""
