"""The table of rewards: a score without a bound has none to show."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from services.tables import rewards_table


def test_a_range_without_bounds_is_shown_as_such():
    common = {"options": {"properties": {"model": {}}}, "summary": "Learned."}
    screen = Console(file=StringIO(), width=80)
    screen.print(
        rewards_table(
            [
                {"name": "regression", "range": [None, None], **common},
                {"name": "math", "range": [0.0, 1.0], **common},
            ]
        )
    )
    lines = screen.file.getvalue().splitlines()
    assert any("regression" in line and "– to –" in line for line in lines)
    assert any("math" in line and "0 to 1" in line for line in lines)
