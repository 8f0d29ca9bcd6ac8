from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from services.tables import rewards_table


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
