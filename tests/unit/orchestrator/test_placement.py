"""What a job's actors ask of Ray, and the bundles that are reserved for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.build import placement, resolve_device
from orchestrator.gang import bundles_of
from orchestrator.spec import JobSpec, parse_spec


def spec(*, device: str = "auto", **rollout: Any) -> JobSpec:
    return parse_spec(
        {
            "name": "x",
            "steps": 1,
            "policy": {"model": "quickstart"},
            "data": {"type": "quickstart"},
            "objectives": [{"name": "conciseness", "reward": {"name": "conciseness"}}],
            "rollout": rollout,
            "resources": {"device": device},
        }
    )


def bundles(job: JobSpec, device: str, gpus: int | None) -> list[dict[str, float]]:
    _, engine, learner = placement(job, device, gpus)
    return bundles_of([engine] * job.rollout.engines + [learner])[0]


def test_each_actor_has_a_place_of_its_own_where_none_shares_a_gpu() -> None:
    assert bundles(spec(engines=2), "cpu", 0) == [{"CPU": 1}] * 3
    assert bundles(spec(engines=2, tensor_parallel=4), "cuda", None) == [
        {"CPU": 1, "GPU": 4},
        {"CPU": 1, "GPU": 4},
        {"CPU": 1, "GPU": 1},
    ]


@pytest.mark.parametrize("engines", range(1, 13))
def test_who_shares_the_gpu_of_one_machine_shares_one_place(engines: int) -> None:
    """Every share is one that Ray can count, so that all fit on one GPU."""
    job = spec(engines=engines)
    transport, engine, learner = placement(job, "cuda", 1)
    assert transport == "ipc"
    assert bundles(job, "cuda", 1) == [{"CPU": engines + 1, "GPU": 1}]
    share = engine["num_gpus"]
    assert share == learner["num_gpus"]
    assert share * 10_000 == pytest.approx(round(share * 10_000), abs=1e-6)
    assert round(share * 10_000) * (engines + 1) <= 10_000


def test_on_a_cluster_nobody_shares_a_gpu_unless_the_spec_asks_for_it() -> None:
    assert placement(spec(), "cuda", None)[0] == "nccl"
    assert bundles(spec(), "cuda", None) == [{"CPU": 1, "GPU": 1}] * 2
    assert bundles(spec(transport="ipc"), "cuda", None) == [{"CPU": 2, "GPU": 1}]


def test_an_engine_of_several_gpus_does_not_share_them() -> None:
    assert placement(spec(tensor_parallel=2), "cuda", 1)[1]["num_gpus"] == 2


@given(
    st.lists(
        st.fixed_dictionaries(
            {"num_cpus": st.integers(0, 8)}, optional={"num_gpus": st.sampled_from([0, 0.25, 0.3333, 1, 2])}
        ),
        min_size=1,
        max_size=8,
    )
)
def test_bundles_hold_what_their_actors_ask_for(actors: list[dict[str, float]]) -> None:
    made, places = bundles_of(actors)
    assert sorted(set(places)) == list(range(len(made)))
    for i, bundle in enumerate(made):
        mine = [actor for actor, place in zip(actors, places, strict=True) if place == i]
        assert bundle["CPU"] == sum(actor["num_cpus"] for actor in mine)
        gpus = math.fsum(actor.get("num_gpus", 0) for actor in mine)
        assert gpus <= bundle.get("GPU", 0) + 1e-9 < gpus + 1
        assert len(mine) == 1 or all(0 < actor["num_gpus"] < 1 for actor in mine)


def test_where_a_job_runs() -> None:
    assert [resolve_device(spec(device=device), gpus) for device, gpus in [
        ("auto", 0), ("auto", 1), ("cpu", 1), ("cuda", 1)]] == ["cpu", "cuda", "cpu", "cuda"]  # fmt: skip
    with pytest.raises(ValueError, match=r"resources\.device"):
        resolve_device(spec(device="cuda"), 0)
    assert resolve_device(spec(device="cuda"), 0, grows=True) == "cuda"  # it waits for a machine that has one
