"""What a job's actors ask of Ray, and the bundles that are reserved for them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import build
from orchestrator.actors.gang import (
    GROWTH_VARIABLE,
    MACHINES_VARIABLE,
    ROLE_LABEL_VARIABLE,
    Gang,
    anywhere,
    bundles_of,
    growth_s,
    labels_of,
    machine_gpus,
    members,
    parted,
    reserve,
    role_label,
)
from orchestrator.actors.placement import (
    DEVICE_VARIABLE,
    as_it_runs,
    check_placement,
    cluster_device,
    engines_that_fit,
    gpus_wanted,
    placement,
    resolve_device,
    reward_gpus,
    shares_gpu,
)
from orchestrator.actors.threads import WAITING
from orchestrator.build import usable_gpus
from orchestrator.errors import DoesNotFit, ResourcesBusy
from orchestrator.hosting import hosted_rewards, reward_pool
from orchestrator.process_settings import engine_settings, learner_settings
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.spec_errors import SpecError
from orchestrator.specs.resources import ResourcesSpec
from policies.losses import ClippedSurrogate
from rewards import registry
from rewards.base import RewardOptions
from rewards.hosting import SINGLE, LocalReplica
from rewards.hosting import Hosting as HostedDefaults


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
    return bundles_of(members(engine, job.rollout.engines, learner, 1, []))[0]


def test_each_actor_has_a_place_of_its_own_where_none_shares_a_gpu() -> None:
    assert bundles(spec(engines=2), "cpu", 0) == [{"CPU": 1}] * 3
    assert bundles(spec(engines=2, tensor_parallel=4), "cuda", None) == [
        {"CPU": 1, "GPU": 1},  # the learner's
        {"CPU": 1, "GPU": 4},
        {"CPU": 1, "GPU": 4},
    ]


def test_a_cpu_engine_keeps_its_worker_in_its_core_unless_it_has_several() -> None:
    def variables(device: str, **rollout: Any) -> dict[str, str]:
        return placement(spec(**rollout), device, 2)[1]["runtime_env"]["env_vars"]

    alone, of_two = variables("cpu"), variables("cpu", tensor_parallel=2)
    assert alone["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in alone
    assert alone["TORCH_COMPILE_DISABLE"] == of_two["TORCH_COMPILE_DISABLE"] == "1"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in of_two
    assert of_two["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert not {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "TORCH_COMPILE_DISABLE"} & set(
        variables("cuda", tensor_parallel=2)
    )


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


@given(st.integers(1, 12), st.integers(1, 16), st.sampled_from([0, 0.25, 0.5, 1, 2]))
def test_where_all_share_one_gpu_no_other_is_idle(engines: int, gpus: int, rewards: float) -> None:
    """Unasked; and where that is refused, fewer engines have a GPU each."""
    job = with_rewards({"num_gpus": rewards} if rewards else {}, engines=engines)
    if shares_gpu(job, gpus):
        assert gpus - 1 - reward_gpus(job) < 1
    elif gpus_wanted(job) + reward_gpus(job) > gpus:
        fewer = engines_that_fit(job, gpus)
        assert 1 <= fewer < engines
        again = with_rewards({"num_gpus": rewards} if rewards else {}, engines=fewer)
        assert not shares_gpu(again, gpus)
        check_placement(again, "cuda", gpus)


@pytest.mark.parametrize(
    ("rollout", "gpus", "told"),
    [
        (
            {"engines": 4},
            4,
            r"^rollout\.engines: .*need 5, and there are 4; use rollout\.engines: 3 or .*transport: ipc",
        ),
        (
            {"engines": 2, "tensor_parallel": 2},
            4,
            r"^rollout\.engines: .*need 5, .*use rollout\.engines: 1 or a smaller",
        ),
        (
            {"transport": "nccl"},
            1,
            r"^rollout\.transport: nccl: .*need 2, and there is 1; use rollout\.transport: auto",
        ),
    ],
)
def test_too_few_gpus_are_told_before_anything_starts(rollout: dict[str, Any], gpus: int, told: str) -> None:
    with pytest.raises(DoesNotFit, match=told):
        check_placement(spec(**rollout), "cuda", gpus)
    check_placement(spec(**rollout), "cuda", None)  # a cluster may have them


def test_on_cpu_gpus_are_not_counted() -> None:
    check_placement(spec(engines=4, tensor_parallel=2), "cpu", 0)


@pytest.mark.parametrize(
    ("device", "rollout", "auto"),
    [
        ("cuda", {"transport": "shared_memory"}, "nccl, or ipc where all share one"),
        ("cuda", {"transport": "ipc", "tensor_parallel": 2}, "nccl, or ipc where all share one"),
        ("cpu", {"transport": "nccl"}, "shared_memory"),
        ("cpu", {"transport": "ipc"}, "shared_memory"),
    ],
)
def test_a_transport_that_the_device_does_not_have_is_told(device: str, rollout: dict[str, Any], auto: str) -> None:
    for gpus in (None, 8):
        with pytest.raises(
            ValueError, match=rf"^rollout\.transport: {rollout['transport']} .*; use auto, which is {auto}$"
        ):
            check_placement(spec(**rollout), device, gpus)
        check_placement(spec(**rollout | {"transport": "auto"}), device, gpus)
    goes_on = as_it_runs(spec(**rollout), device)  # a job of before it was refused
    assert goes_on == spec(**rollout | {"transport": "auto"})


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_job_that_names_a_transport_of_gpus_does_not_start_on_cpu(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody said which device, only the start can tell; weights would have gone another way than was said."""
    closed = machine_with(0, monkeypatch)
    with pytest.raises(ValueError, match=rf"^rollout\.transport: {transport} .*on CPU; use auto"):
        build.start(
            spec(transport=transport), "model", ray_address=None, on_stage=lambda _: None, on_gpus=lambda _: None
        )
    assert closed


def machine_with(count: int, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """In place of Ray on it, which must be closed again: then the list has something."""
    closed: list[bool] = []

    class Machine:
        grows, gpus = False, count

        def __init__(self, **_: Any) -> None: ...

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(build, "Cluster", Machine)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    return closed


@pytest.mark.parametrize(("gpus", "order"), [(1, ["all replicas", "engines"]), (3, ["engines"])])
def test_a_reward_on_the_engines_gpu_is_loaded_before_they_start(
    gpus: int, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM finds taken of its GPU between two looks while it starts, it counts as its own."""
    began: list[str] = []

    class Pool:
        def wait_ready(self, _: Any, *, every: bool = False) -> None:
            began.append("all replicas" if every else "one of each reward")

        def close(self) -> None: ...

    class Machine:
        grows = False

        def __init__(self, **_: Any) -> None:
            self.gpus = gpus

        def reserve(self, **_: Any) -> Any:
            return SimpleNamespace(place=lambda _: {}, machines=lambda _: {"this"})

        def start(self, *_: Any, **__: Any) -> tuple[None, None]:
            began.append("engines")
            return None, None

        def close(self) -> None: ...

    monkeypatch.setattr(build, "Cluster", Machine)
    monkeypatch.setattr(build, "reward_pool", lambda *_, **__: Pool())
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    job = with_rewards({"num_gpus": 0.25})
    build.start(job, "model", ray_address=None, on_stage=lambda _: None, on_gpus=lambda _: None)
    assert began == [*order, "one of each reward"]


def test_a_start_checks_the_placement_first(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = machine_with(4, monkeypatch)
    with pytest.raises(DoesNotFit, match=r"rollout\.engines: 3"):
        build.start(spec(engines=4), "model", ray_address=None, on_stage=lambda _: None, on_gpus=lambda _: None)
    assert closed


def test_an_engine_of_several_gpus_does_not_share_them() -> None:
    assert placement(spec(tensor_parallel=2), "cuda", 1)[1]["num_gpus"] == 2


def test_ranks_of_the_learner_have_a_gpu_each_and_share_none() -> None:
    """One machine with too few waits for more, or never fits: ranks on one GPU would save nothing."""
    job = spec().model_copy(update={"resources": ResourcesSpec(learner_ranks=3)})
    assert gpus_wanted(job) == 4
    for gpus in (None, 1, 8):
        assert not shares_gpu(job, gpus)
        transport, _, learner = placement(job, "cuda", gpus)
        assert (transport, learner["num_gpus"]) == ("nccl", 1)


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
    made, places = bundles_of([("rollout", actor) for actor in actors])
    assert sorted(set(places)) == list(range(len(made)))
    for i, bundle in enumerate(made):
        mine = [actor for actor, place in zip(actors, places, strict=True) if place == i]
        assert bundle["CPU"] == sum(actor["num_cpus"] for actor in mine)
        gpus = math.fsum(actor.get("num_gpus", 0) for actor in mine)
        assert gpus <= bundle.get("GPU", 0) + 1e-9 < gpus + 1
        assert len(mine) == 1 or all(0 < actor["num_gpus"] < 1 for actor in mine)


def packed(bundles: list[dict[str, float]], gpus_of_each: list[int]) -> dict[int, str]:
    """The machine of each bundle, as Ray's PACK finds it: the largest first, else in order, machine after machine."""
    left = sorted(range(len(bundles)), key=lambda i: (-bundles[i].get("GPU", 0), -bundles[i]["CPU"]))
    found: dict[int, str] = {}
    for machine, gpus in enumerate(gpus_of_each):
        free = float(gpus)
        for i in list(left):
            if bundles[i].get("GPU", 0) <= free:
                free -= bundles[i].get("GPU", 0)
                found[i] = f"machine {machine}"
                left.remove(i)
    assert not left
    return found


@pytest.mark.parametrize(
    ("engines", "ranks", "machines", "is_parted"),
    [
        (6, 8, [8, 8], False),
        (3, 4, [4, 4], False),
        (3, 4, [5, 2, 2], False),
        (8, 6, [2, 8, 8], True),  # as others have the rest
        (2, 8, [4, 4, 4], None),
    ],
)
def test_ranks_of_the_learner_stay_on_one_machine_where_they_fit(
    engines: int, ranks: int, machines: list[int], is_parted: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = parse_spec(spec(engines=engines).model_dump(mode="json") | {"resources": {"learner_ranks": ranks}})
    _, engine, learner = placement(job, "cuda", None)
    bundles, places = bundles_of(members(engine, engines, learner, ranks, [{"num_cpus": 0, "num_gpus": 1}]))
    nodes = packed(bundles, machines)
    monkeypatch.setattr("ray.util.placement_group_table", lambda _: {"bundles_to_node_id": nodes})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"GPU": float(n)}} for n in machines])
    gang = Gang(group=None, places=tuple(places))
    alone = len(gang.machines(range(engines, engines + ranks))) == 1
    assert alone is (is_parted is False)
    told = parted(gang, range(engines, engines + ranks))
    assert (told is not None) is bool(is_parted)  # None: no machine has as many
    assert told is None or told.startswith(f"the learner's {ranks} ranks are on 2 machines")


def test_each_actor_is_on_machines_for_its_role_and_a_shared_gpu_is_one_for_learners() -> None:
    def labels(engine: dict[str, Any], learner: dict[str, Any], name: str | None) -> list[Any]:
        actors = members(engine, 2, learner, 1, [{"num_cpus": 1, "num_gpus": 0.5}])
        return labels_of([role for role, _ in actors], bundles_of(actors)[1], name)

    own, share = {"num_cpus": 1, "num_gpus": 1}, {"num_cpus": 1, "num_gpus": 0.3333}
    roles = [("x/role", role) for role in ("learner", "rollout", "rollout", "reward")]
    assert labels(own, own, "x/role") == roles
    assert labels(share, share, "x/role") == [roles[0], roles[3]]
    assert labels(own, own, None) == [None] * 4


def test_on_cpu_threads_of_engine_and_learner_spin_for_a_moment_only() -> None:
    for device, expected in (("cpu", WAITING), ("cuda", {})):
        for options in placement(spec(), device, 2)[1:]:
            variables = options.get("runtime_env", {}).get("env_vars", {})
            assert {name: variables[name] for name in WAITING if name in variables} == expected


def test_an_engine_has_the_threads_that_it_is_given_and_one_for_the_quickstart_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise all cores, shared among the engines: Ray would give each of them one thread."""

    def threads(model: str, given: int | None, ranks: int = 1, engines: int = 1) -> str | None:
        changes = {"policy": {"model": model}, "resources": {"device": "cpu", "engine_threads": given}}
        changes["rollout"] = {"tensor_parallel": ranks, "engines": engines}
        _, engine, _ = placement(parse_spec(spec().model_dump(mode="json") | changes), "cpu", 0)
        found: str | None = engine["runtime_env"]["env_vars"].get("OMP_NUM_THREADS")
        return found

    assert [threads("quickstart", given) for given in (None, 2)] == ["1", "2"]
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [threads("some/model", given) for given in (None, 3)] == ["8", "3"]
    assert [threads("some/model", None, engines=engines) for engines in (2, 3, 16)] == ["4", "2", "1"]
    assert [threads("some/model", given, 2) for given in (None, 6, 1)] == ["4", "3", "1"]  # each rank's
    assert threads("quickstart", None, 2) == "1"


@pytest.mark.parametrize(
    ("device", "policy", "ranks", "threads"),
    [
        ("cpu", {}, 1, 8),
        ("cpu", {}, 4, 2),
        ("cuda", {}, 1, None),
        ("cuda", {"cpu_offload": True}, 1, 8),
        ("cuda", {}, 4, 2),  # each loads and tries the policy on the host
    ],
)
def test_a_learner_that_works_on_the_host_has_its_cores(
    device: str, policy: dict[str, Any], ranks: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    document = spec().model_dump(mode="json") | {"weighting": {"name": "fixed"}, "resources": {"learner_ranks": ranks}}
    job = parse_spec(document | {"policy": {"model": "quickstart", **policy}})
    assert learner_settings(job, "m", device).threads == threads


def test_a_learner_has_the_loss_and_the_optimizer_of_its_spec() -> None:
    loss = {"form": "cispo", "clip_low": 1.0, "clip_high": 4.0, "importance_cap": 3.0}
    optimizer = {
        "lr": 2e-5, "betas": (0.8, 0.99), "weight_decay": 0.1, "warmup_steps": 3, "schedule": "cosine",
        "min_lr_ratio": 0.1, "max_grad_norm": 0.5, "minibatches": 2, "tokens_per_microbatch": 64, "packing": True,
        "share_prompts": False,
    }  # fmt: skip
    document = spec().model_dump(mode="json") | {"loss": loss, "optimizer": optimizer}
    settings = learner_settings(parse_spec(document), "m", "cpu")
    assert settings.surrogate == ClippedSurrogate(**loss)
    assert {name: getattr(settings, name) for name in optimizer} == optimizer


@pytest.mark.parametrize(
    ("own", "drawn"), [({}, (0.9, 50, 0.1)), ({"top_p": 0.7, "top_k": 0, "min_p": 0}, (0.7, 0, 0.0))]
)
def test_a_policy_is_saved_with_what_its_held_out_figures_were_drawn_with(
    own: dict[str, Any], drawn: tuple[float, int, float]
) -> None:
    document = spec().model_dump(mode="json")
    document["rollout"] |= {"top_p": 0.9, "top_k": 50, "min_p": 0.1}
    document["evaluation"] |= own
    settings = learner_settings(parse_spec(document), "m", "cpu")
    assert (settings.evaluated_top_p, settings.evaluated_top_k, settings.evaluated_min_p) == drawn


@pytest.mark.parametrize(("transport", "asked", "share"), [("nccl", None, 0.9), ("ipc", None, 0.4), ("nccl", 0.5, 0.5)])
def test_an_engine_has_most_of_a_gpu_that_is_its_own(transport: Any, asked: float | None, share: float) -> None:
    settings = engine_settings(spec(gpu_memory_utilization=asked), "m", "cuda", transport)
    assert settings.gpu_memory_utilization == share


@pytest.mark.parametrize(("transport", "sleeps"), [("ipc", True), ("nccl", False), ("shared_memory", False)])
def test_engines_sleep_on_a_gpu_that_they_share_alone(transport: Any, sleeps: bool) -> None:
    assert engine_settings(spec(sleep=True), "m", "cuda", transport).sleep is sleeps
    assert engine_settings(spec(), "m", "cuda", transport).sleep is False


def with_rewards(*hosting: dict[str, Any], **rollout: Any) -> JobSpec:
    """A reward for each; every one needs a name of its own not to be shared."""
    rewards = [{"name": "conciseness", "options": {"free_tokens": i}, "hosting": one} for i, one in enumerate(hosting)]
    objectives = [{"name": f"o{i}", "reward": reward} for i, reward in enumerate(rewards)]
    document = spec(**rollout).model_dump(mode="json") | {"objectives": objectives}
    return parse_spec(document)


def whole_gang(job: JobSpec, device: str, gpus: int | None) -> list[dict[str, float]]:
    _, engine, learner = placement(job, device, gpus)
    replicas = [options for reward in hosted_rewards(job) for options in reward.reserved]
    return bundles_of(members(engine, job.rollout.engines, learner, 1, replicas))[0]


def test_rewards_that_ask_for_something_have_a_place_of_their_own() -> None:
    job = with_rewards({}, {"num_cpus": 2, "replicas": 2}, {"num_gpus": 0.5})
    assert whole_gang(job, "cpu", 0) == [{"CPU": 1}, {"CPU": 1}, {"CPU": 2}, {"CPU": 2}, {"CPU": 0, "GPU": 0.5}]
    assert whole_gang(job, "cuda", None)[-1] == {"CPU": 0, "GPU": 0.5}
    assert placement(job, "cuda", 3)[0] == "nccl"  # all have whole GPUs, and the reward half of the third


def test_a_reward_that_reserves_nothing_is_not_on_a_clusters_head() -> None:
    """Which has no role, no CPUs and little memory. One on this machine alone is anywhere."""
    seen: list[dict[str, Any]] = []

    def replica(factory: Any, **options: Any) -> LocalReplica:
        seen.append(options)
        return LocalReplica(factory)

    elsewhere = {
        "label_selector": {"x/role": "reward"},
        "fallback_strategy": [{"label_selector": {"x/role": "in(rollout,learner)"}}],
    }
    hosted = hosted_rewards(with_rewards({}, {"num_cpus": 2}))
    reward_pool(hosted, [{"place": 1}], elsewhere=anywhere("x/role"), replica=replica).close()
    assert seen == [elsewhere, {"num_cpus": 2, "num_gpus": 0, "place": 1}]
    assert anywhere(None) == {}


@pytest.mark.parametrize(("gpus", "sees"), [(0, True), (0.5, None)])
def test_a_reward_on_cuda_of_a_job_that_was_accepted_without_a_gpu_for_it_still_sees_them(
    gpus: float, sees: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[str, Any]] = []

    def replica(factory: Any, **options: Any) -> LocalReplica:
        seen.append(options)
        return LocalReplica(factory)

    (reward,) = hosted_rewards(with_rewards({"num_gpus": gpus}))
    reward_pool([replace(reward, options={"device": "cuda"})], [{}], replica=replica).close()
    assert [options.get("sees_gpus") for options in seen] == [sees]
    assert ["without a GPU of its own" in record.message for record in caplog.records] == [True] * (gpus == 0)


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_a_job_on_a_labelled_cluster_keeps_its_rewards_off_the_head(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parts:
        gpus, grows = 0, address is not None

        def __init__(self, **_: Any) -> None: ...

        def reserve(self, **_: Any) -> None: ...

        def close(self) -> None: ...

    def pool(*_: Any, elsewhere: Any) -> None:
        raise ValueError(f"{elsewhere}")

    monkeypatch.setenv(ROLE_LABEL_VARIABLE, "x/role")
    monkeypatch.setattr(build, "Cluster", Parts)
    monkeypatch.setattr(build, "reward_pool", pool)
    with pytest.raises(ValueError, match=r"^{}$" if address is None else "x/role"):
        build.start(spec(), "model", ray_address=address, on_stage=lambda _: None, on_gpus=lambda _: None)


@pytest.mark.parametrize("engines", range(1, 6))
@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5])
def test_a_reward_and_a_job_fit_on_one_gpu_together(engines: int, share: float) -> None:
    job = with_rewards({"num_gpus": share}, engines=engines)
    transport, engine, learner = placement(job, "cuda", 1)
    together, apart = whole_gang(job, "cuda", 1)
    assert (transport, apart) == ("ipc", {"CPU": 0, "GPU": share})
    assert together["GPU"] == pytest.approx(engine["num_gpus"] * engines + learner["num_gpus"])
    assert together["GPU"] + apart["GPU"] <= 1 + 1e-9
    for amount in (engine["num_gpus"], together["GPU"]):
        assert amount * 10_000 == pytest.approx(round(amount * 10_000), abs=1e-6)  # Ray can count it


def test_of_two_gpus_a_reward_has_one_and_the_job_the_other() -> None:
    job = with_rewards({"num_gpus": 1})
    assert whole_gang(job, "cuda", 2) == [{"CPU": 2, "GPU": 1}, {"CPU": 0, "GPU": 1}]
    assert whole_gang(job, "cuda", 3) == [{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 0, "GPU": 1}]


def test_objectives_of_one_reward_are_hosted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal but for the head, where a reward has heads; equal as its options are read, not as they are written."""

    class Options(RewardOptions):
        model: str = "here"
        head: str = "helpfulness"

    headed = type("Headed", (), {"name": "headed_for_a_test", "Options": Options, "head_option": "head"})
    monkeypatch.setitem(registry._registered, "headed_for_a_test", headed)
    rewards = [{"options": {"head": "a"}}, {"options": {"model": "here", "head": "b"}}, {"options": {"model": "there"}}]
    objectives = [{"name": f"o{i}", "reward": {"name": "headed_for_a_test", **r}} for i, r in enumerate(rewards)]
    objectives += [{"name": name, "reward": {"name": "clarity"}} for name in ("c", "d")]
    document = spec().model_dump(mode="json") | {"objectives": objectives}
    hosted = hosted_rewards(parse_spec(document))
    assert [reward.heads for reward in hosted] == [
        {"o0": "a", "o1": "b"}, {"o2": "helpfulness"}, {"c": SINGLE, "d": SINGLE},
    ]  # fmt: skip
    objectives[1]["reward"]["hosting"] = {"replicas": 2}
    with pytest.raises(SpecError, match=r"objectives\.1\.reward\.hosting: 'o1' and 'o0' share one reward"):
        parse_spec(document)


def test_hosting_goes_to_the_host_as_the_spec_has_it() -> None:
    hosting = {"replicas": 3, "batch_size": 7, "attempts": 2, "row_attempts": 4, "max_bad_share": 0.5, "backoff_s": 2.0}
    (reward,) = hosted_rewards(with_rewards(hosting))
    constants = reward.constants
    assert {name: getattr(constants, name) for name in hosting} == hosting
    assert constants.deadline_s == 60  # resources.reward_timeout_s
    (reward,) = hosted_rewards(with_rewards({"deadline_s": 5}))
    assert reward.constants.deadline_s == 5
    found = hosted_rewards(with_rewards({}))[0].constants
    assert HostedDefaults(rowwise=True) == found  # one default, wherever it is read; verifiers score row by row


@pytest.mark.parametrize(
    ("hosting", "told"),
    [
        ({"num_gpus": 1.5}, r"expected a share below 1 or a whole number, got 1\.5"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 9}, "replicas: 9 that reserve nothing"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"max_bad_share": 1.1}, "max_bad_share"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"retries": 5}, "retries"),
    ],
)
def test_hosting_that_cannot_be_is_refused(hosting: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        with_rewards(hosting)


def test_where_a_job_runs() -> None:
    assert [resolve_device(spec(device=device), gpus) for device, gpus in [
        ("auto", 0), ("auto", 1), ("cpu", 1), ("cuda", 1)]] == ["cpu", "cuda", "cpu", "cuda"]  # fmt: skip
    with pytest.raises(ValueError, match=r"resources\.device"):
        resolve_device(spec(device="cuda"), 0)
    assert resolve_device(spec(device="cuda"), 0, grows=True) == "cuda"  # it waits for a machine that has one


@pytest.mark.parametrize(
    ("device", "seen", "usable", "grows", "told"),
    [
        ("auto", 2, 0, False, True),
        ("cuda", 2, 0, False, True),
        ("cpu", 2, 0, False, False),  # asked for
        ("auto", 2, 2, False, False),
        ("auto", 0, 0, False, False),
        ("auto", 2, 0, True, False),  # the GPUs are elsewhere
    ],
)
def test_gpus_that_torch_cannot_use_are_told(
    device: str,
    seen: int,
    usable: int,
    grows: bool,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    assert usable_gpus(spec(device=device), seen, grows=grows) == (seen if grows else usable)
    assert ("has 2 GPUs, of which torch" in caplog.text) is told


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("chosen", ["cpu", "cuda"])
def test_on_a_cluster_its_operator_says_what_auto_is(chosen: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not whether another job's machines happen to be there; on one machine that counts as ever."""
    monkeypatch.setenv(DEVICE_VARIABLE, chosen)
    assert resolve_device(spec(), gpus, grows=True) == chosen
    assert resolve_device(spec(device="cpu"), gpus, grows=True) == "cpu"
    assert resolve_device(spec(device="cuda"), gpus, grows=True) == "cuda"
    assert resolve_device(spec(), gpus) == ("cuda" if gpus else "cpu")


def test_a_device_that_is_none_is_refused_by_the_variable_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "gpu")
    with pytest.raises(ValueError, match=f"^{DEVICE_VARIABLE}: expected cpu or cuda, got 'gpu'"):
        cluster_device()


@pytest.mark.parametrize("name", ["role", "example.com/role", "a-b.c_d", "ray.io/node-group", "R" * 63, ""])
def test_a_label_that_ray_takes_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROLE_LABEL_VARIABLE, name)
    assert role_label() == (name or None)


@pytest.mark.parametrize(
    "name", ["my role", "/role", "example.com/", "a/b/c", "-role", "role-", "R" * 64, "röle", "a=b"]
)
def test_another_is_refused_by_the_variable_s_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROLE_LABEL_VARIABLE, name)
    with pytest.raises(ValueError, match=f"^{ROLE_LABEL_VARIABLE}: .* expected one such as example.com/role"):
        role_label()


class GrowingCluster:
    """In place of Ray: one machine is there, others may come. A look at it takes a second of its own clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, comes_at_s: float = math.inf, free_at_s: float = math.inf):
        self.now, self.comes_at_s, self.free_at_s = 0.0, comes_at_s, free_at_s
        self.groups = 0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("ray.nodes", self.nodes)
        monkeypatch.setattr("ray.available_resources", dict)
        monkeypatch.setattr("ray.util.placement_group", self.group)
        monkeypatch.setattr("ray.util.remove_placement_group", self.remove)

    def nodes(self) -> list[dict[str, Any]]:
        gpus = {"GPU": 1.0} if self.now >= self.comes_at_s else {}
        return [{"Alive": True, "Resources": {"CPU": 8.0, **gpus}, "Labels": {}}]

    def group(self, *_: Any, **__: Any) -> GrowingCluster:
        self.groups += 1
        return self

    def remove(self, _: Any) -> None:
        self.groups -= 1

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.now >= self.free_at_s


ON_GPU: list[Any] = [("learner", {"num_cpus": 1, "num_gpus": 1})]


@pytest.mark.parametrize(
    ("growth_s", "comes_at_s", "ends_at_s", "error"),
    [
        (1800, math.inf, 1800, ResourcesBusy),  # it may come at the next try
        (1800, 600, 660, ResourcesBusy),  # it came, and others have it
        (10, math.inf, 60, ResourcesBusy),
        (0, math.inf, 60, DoesNotFit),  # nobody said that machines join this cluster
    ],
)
def test_machines_that_may_join_a_cluster_are_waited_for(
    growth_s: float, comes_at_s: float, ends_at_s: float, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = GrowingCluster(monkeypatch, comes_at_s=comes_at_s)
    heard: list[str] = []
    with pytest.raises(error):
        reserve(ON_GPU, timeout_s=60, grows=True, growth_s=growth_s, on_wait=heard.append)
    assert cluster.now == pytest.approx(ends_at_s, abs=1)
    assert heard[0] == "waiting for resources: the job needs 1 GPU at once, the cluster has 0"
    assert cluster.groups == 0  # what waits holds nothing


def test_a_machine_that_joins_late_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = GrowingCluster(monkeypatch, comes_at_s=600, free_at_s=610)
    assert reserve(ON_GPU, timeout_s=60, grows=True, growth_s=1800).places == (0,)
    assert cluster.groups == 1


def test_a_machine_of_its_own_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = GrowingCluster(monkeypatch)
    with pytest.raises(DoesNotFit):
        reserve(ON_GPU, timeout_s=60, grows=False, growth_s=1800)
    assert cluster.now <= 1


TWO_GPUS: list[Any] = [
    ("learner", {"num_cpus": 1, "num_gpus": 1}),
    ("rollout", {"num_cpus": 1, "num_gpus": 2}),
]


@pytest.mark.parametrize("most", [{"learner": 1, "rollout": 1}, {"rollout": 0}])
def test_what_no_machine_will_have_is_not_waited_for(most: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = GrowingCluster(monkeypatch)
    told = r"^resources: an actor needs 2 GPUs on one machine for rollout, and none has more than \d"
    with pytest.raises(DoesNotFit, match=told):
        reserve(TWO_GPUS, timeout_s=60, grows=True, growth_s=1800, machine_gpus=most)
    assert cluster.now <= 1


@pytest.mark.parametrize("most", [{}, {"learner": 1}, {"rollout": 2}, {"reward": 0}])
def test_what_a_machine_may_have_is_waited_for(most: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    GrowingCluster(monkeypatch)
    with pytest.raises(ResourcesBusy):
        reserve(TWO_GPUS, timeout_s=60, grows=True, growth_s=1800, machine_gpus=most)


def test_a_machine_that_is_there_counts_more_than_what_was_said_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    GrowingCluster(monkeypatch, comes_at_s=0, free_at_s=5)
    assert reserve(ON_GPU, timeout_s=60, grows=True, growth_s=1800, machine_gpus={"learner": 0}).places == (0,)


@pytest.mark.parametrize(
    ("text", "gpus"), [("", {}), ("learner=1,rollout=8, reward=0", {"learner": 1, "rollout": 8, "reward": 0})]
)
def test_how_many_gpus_machines_have_is_the_operators(
    text: str, gpus: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MACHINES_VARIABLE, text)
    assert machine_gpus() == gpus


@pytest.mark.parametrize(
    "text", ["8", "learner", "learner=", "learner=-1", "learner=1.5", "head=1", "learner=1;reward=0"]
)
def test_what_is_no_list_of_machines_is_refused_by_the_variable_s_name(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MACHINES_VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{MACHINES_VARIABLE}: .* expected such as learner=1,rollout=1,reward=0"):
        machine_gpus()


@pytest.mark.parametrize(("text", "seconds"), [("", 0), ("0", 0), ("1800", 1800)])
def test_how_long_a_machine_may_take_is_the_operators(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GROWTH_VARIABLE, text)
    assert growth_s() == seconds


@pytest.mark.parametrize("text", ["half an hour", "-1", "1e3", "30m", "nan", "9" * 7])
def test_what_is_no_time_is_refused_by_the_variable_s_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROWTH_VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{GROWTH_VARIABLE}: .* expected whole seconds such as 1800"):
        growth_s()
