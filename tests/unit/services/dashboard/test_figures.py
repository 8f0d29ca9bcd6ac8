"""Numbers in sentences are written as those in tables are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib import resources
from typing import Any

import pytest

from services.dashboard import charts
from services.dashboard.figures import change, figure

# The value, and how it is written in a sentence and in a table, in whichever language the browser speaks.
WRITTEN = [
    (999.6, "1,000"), (-999.6, "-1,000"), (999.4, "999"), (1234.6, "1,235"), (12345, "12,345"), (0, "0"),
    (0.1234, "0.123"), (None, "–"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "written"), WRITTEN)
def test_a_figure_in_a_sentence(value: Any, written: str) -> None:
    assert figure(value) == written


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        (0.1, 0.14, "+0.04"), (0.00043, 0.00081, "+3.80e-04"), (0.0004, 0.0001, "-3.00e-04"), (0.5, 0.5, "+0"),
        (0.9, 0.2, "-0.7"), (None, 0.5, ""), (0.5, None, ""),
    ],
)  # fmt: skip
def test_a_change_is_as_fine_as_its_figure(before: float | None, after: float | None, written: str) -> None:
    assert change(before, after) == written


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_a_figure_in_a_table() -> None:
    source = resources.files("services.dashboard").joinpath("static/format.js").read_text(encoding="utf-8")
    values = json.dumps([value for value, _ in WRITTEN])
    code = f"{source}\nconsole.log(JSON.stringify([{values}.map(figure), [0, 8, 30].map(colour)]))"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "LC_ALL": "de_DE.UTF-8"},
    )  # fmt: skip
    figures, colours = json.loads(done.stdout)
    assert figures == [written for _, written in WRITTEN]
    assert colours == [charts.colour(i) for i in (0, 8, 30)]
