from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from services.tables import judge_line, rewards_table


@pytest.mark.parametrize("end", [None, math.inf])
def test_a_reward_without_bounds_is_listed(end):
    """Null is how JSON has infinity."""
    bounded = {"name": "a", "range": [0.0, 1.0], "options": {}, "summary": "A.", "plugin": None}
    unbounded = {"name": "b", "range": [-end if end else None, end], "options": {}, "summary": "B.", "plugin": None}
    console = Console(width=120, file=io.StringIO())
    console.print(rewards_table([bounded, unbounded]))
    text = console.file.getvalue()
    assert "0 to 1" in text
    assert "-∞ to ∞" in text


@pytest.mark.parametrize(
    ("cost", "evaluation", "told"),
    [
        (None, None, ", not known how many for evaluations"),
        (None, {"calls": 0, "cost": None}, ""),
        (1.5, {"calls": 2000, "cost": 2.0}, ", 2,000 for evaluations: up to 3.50, prompts and rubric aside"),
    ],
)
def test_a_dry_run_tells_a_judges_calls(cost, evaluation, told):
    judge = {"profile": "gpt", "training": {"calls": 1500, "cost": cost}, "evaluation": evaluation}
    assert judge_line(judge) == f"1,500 calls of judge 'gpt' for training{told}"
