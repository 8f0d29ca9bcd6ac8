"""The arena: every weighting rule on the same tasks, seeds and budget, and what can honestly be said of them."""
