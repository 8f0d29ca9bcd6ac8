"""Figures of an evaluation against hand-made cases and independent formulas."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from rewards.training import EvalReport
from rewards.training.correlation import ranks, spearman, verbosity_share
from rewards.training.data import RatingRow
from rewards.training.evaluation import _head_figures, _Judged


def judged(*margins, domains=None):
    return _Judged(list(domains or [None] * len(margins)), [np.array(row, dtype=float) for row in margins])


def rated(*values, name="a"):
    return [RatingRow(messages=(), completion="", ratings={} if v is None else {name: v}) for v in values]


def test_a_pair_counts_once_and_a_tie_half():
    assert judged([1.0], [-1.0], [0.0], [2.0, 3.0]).accuracy() == pytest.approx(3.5 / 5)
    assert judged().accuracy() is None


def test_best_of_four_needs_all_three_below():
    rows = judged([1, 2, 3], [1, 2, -1], [1, 2, 0], [5, 5, 5], [9.0])
    assert rows.best_of_4() == pytest.approx(2 / 4)
    assert judged([1.0]).best_of_4() is None


def test_calibration_error_by_hand():
    # two pairs at sigmoid(2) = 0.8808, one right; two at sigmoid(0.2) = 0.5498, both right
    rows = judged([2.0], [-2.0], [0.2], [0.2])
    assert [(part["rows"], part["observed"]) for part in rows.reliability()] == [(2, 1.0), (2, 0.5)]
    assert rows.ece() == pytest.approx(0.5 * abs(0.549834 - 1) + 0.5 * abs(0.880797 - 0.5), abs=1e-5)


def test_preferences_drawn_from_the_model_are_calibrated():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 20_000)
    flipped = np.where(rng.random(20_000) < 1 / (1 + np.exp(-margins)), margins, -margins)
    assert judged(*flipped[:, None]).ece() < 0.015
    assert judged(*(4 * flipped)[:, None]).ece() > 0.1  # overconfident


def test_head_figures_by_hand():
    figures = _head_figures(rated(1.0, None, 3.0, 5.0), "a", np.array([2.0, 100.0, 3.0, 4.0]))
    assert figures == {"r2": pytest.approx(1 - 2 / 8), "mae": pytest.approx(2 / 3), "spearman": 1.0, "rows": 3}
    assert _head_figures(rated(2.0, 2.0), "a", np.array([1.0, 2.0]))["r2"] is None
    assert _head_figures(rated(None), "a", np.array([1.0]))["rows"] == 0


def test_ranks_share_ties():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_spearman_equals_the_textbook_formula_without_ties():
    rng = np.random.default_rng(1)
    left, right = rng.permutation(50).astype(float), rng.permutation(50).astype(float)
    distance = float(np.square(ranks(left) - ranks(right)).sum())
    assert spearman(left, right) == pytest.approx(1 - 6 * distance / (50 * (50**2 - 1)))
    assert spearman(left, np.ones(50)) is None


@pytest.mark.parametrize("slope", [-2.0, -0.3, 0.4, 5.0])
def test_the_verbosity_share_drives_the_rank_correlation_to_zero(slope):
    rng = np.random.default_rng(2)
    verbosity = rng.gamma(2.0, size=2000)
    head = slope * verbosity + rng.normal(size=2000) ** 3
    assert abs(spearman(head, verbosity)) > 0.2
    share = verbosity_share(head, verbosity)
    assert abs(spearman(head - share * verbosity, verbosity)) < 1e-3
    assert np.sign(share) == np.sign(slope)


def test_the_verbosity_share_at_the_edges():
    verbosity = np.arange(10.0)
    assert verbosity_share(verbosity.copy(), verbosity) == 1.0
    assert verbosity_share(np.ones(10), verbosity) == 0.0
    assert verbosity_share(verbosity, np.ones(10)) == 0.0
    assert verbosity_share(3 * verbosity, verbosity) == pytest.approx(3.0)  # nothing else is left


REPORT = EvalReport(
    rows=3,
    pairwise_accuracy=0.5,
    best_of_4_accuracy=None,
    ece=0.1,
    heads={"<script>alert(1)</script>": {"r2": 0.5, "mae": 1.0, "spearman": None, "rows": 3}},
    correlations={"a": {"a": 1.0, "b": None}, "b": {"a": None, "b": 1.0}},
    domains={"</script><img src=x>": {"rows": 3, "pairwise_accuracy": 0.5}},
    reliability=[{"predicted": 0.6, "observed": 0.5, "rows": 2}],
    points={"'><b>": [(1.0, 1.5)]},
)


def test_a_report_is_one_page_that_loads_nothing_and_says_nothing_foreign(tmp_path):
    document, page = REPORT.write(tmp_path / "out")
    assert json.loads(document.read_text())["heads"] == REPORT.heads
    text = page.read_text()
    before, after = text[: text.index("<script>")], text[text.rindex("<script>") :]
    assert "default-src 'none'" in before
    assert not re.search(r"(src|href)=", before.replace("&lt;img src", "") + after)
    for foreign in ("<script>alert", "<img src=x>", "<b>"):
        assert foreign not in before + after
    assert before.count('class="plot"') == 3
    figures = [json.loads(raw.replace("&quot;", '"')) for raw in re.findall(r'data-figure="([^"]*)"', before)]
    assert figures[0]["data"][1]["y"] == [0.5]
