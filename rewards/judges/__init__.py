"""Judges: a model behind an OpenAI-compatible endpoint scores completions by a rubric."""
