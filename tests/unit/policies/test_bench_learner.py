"""The GPU's benchmark on a CPU, with a policy of a few thousand parameters: every figure is made."""

import pytest

from tests.gpu.bench_learner import SIZES, measure

MODES = ("plain", "lora", "exact", "sketch", "last_block", "step_response")


def test_every_mode_has_its_figures():
    size = SIZES["tiny"]
    found = measure(size, "cpu", rounds=1)
    for mode in MODES:
        figures = found[mode]
        assert figures["update_s"] > 0
        assert figures["tokens_per_s"] == pytest.approx(size.rollouts * size.tokens / figures["update_s"])
        assert figures["times_plain"] == pytest.approx(figures["update_s"] / found["plain"]["update_s"])
        assert figures["mfu"] is None  # of a GPU
    assert 10_000 < found["parameters"] < 100_000
