"""Tells owners' addresses what happened to their jobs."""
