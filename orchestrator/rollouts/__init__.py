"""The first half of a step: prompts, engines, rewards side by side."""
