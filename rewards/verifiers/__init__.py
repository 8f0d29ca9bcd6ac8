"""Rewards that a program decides from the text alone: no model, no network."""
