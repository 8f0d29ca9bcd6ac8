"""The quickstart for real, in short: the trained policy gets better at what it is rewarded for."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec import load_spec
from tests.support import parse_spec, run_job

JOB = Path(__file__).parents[3] / "deploy" / "jobs" / "quickstart.yaml"


def test_twelve_steps_make_the_policy_visibly_better(quickstart_policy, redis_url, state_dir):
    """Under greedy decoding too: it learns to work step by step before it answers."""
    document = load_spec(JOB).model_dump(mode="json")
    document |= {"steps": 12, "init_checkpoint": str(quickstart_policy)}
    document["evaluation"] |= {"every": 12}
    store, job_id = run_job(parse_spec(document), redis_url, state_dir)
    front = store.front(job_id)
    tests = {point["step"]: point["test"] for point in front["points"] if point["test"]}
    for decoding in ("sampled", "greedy"):
        before, after = (tests[step][decoding]["objectives"]["accuracy"] for step in (0, 12))
        assert after - before >= 0.15, decoding
    assert tests[0]["greedy"]["styles"]["short"]["share"] > 0.5  # the initial policy answers at once
    assert front["hypervolume"] > front["hypervolume_base"]
    timings = [step["timings_s"] for step in store.steps(job_id)]
    assert sum(timing["step"] for timing in timings) == pytest.approx(
        sum(value for timing in timings for key, value in timing.items() if key != "step"), rel=1e-3
    )
