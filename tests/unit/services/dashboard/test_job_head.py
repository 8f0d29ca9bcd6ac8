from __future__ import annotations

from typing import Any

import pytest

from services.dashboard.job_head import engines_told


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, ""),
        ({"serving": 1, "of": 1}, ""),
        ({"serving": 0, "of": 1}, "0 of 1 engines serve"),
        ({"serving": 3, "of": 4}, "3 of 4 engines serve"),
        ({"serving": 4, "of": 4}, "4 of 4 engines serve"),
    ],
)
def test_engines_are_told_of_unless_there_is_one_and_it_serves(told: Any, said: str) -> None:
    assert engines_told(told) == said
