"""One job on real parts: redis-server, Ray, vLLM, the learner and the reward actors, run by the real driver."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import failpoints
from orchestrator.state.store import JobStatus, JobStore
from orchestrator.steering import initial_steering
from orchestrator.storage.checkpoints import MANIFEST, directory_name, verify
from tests.fault_figures import REPEATS, tell
from tests.support import (
    Drive,
    connect,
    descendants,
    install_example,
    largest_difference,
    make_policy,
    small_spec,
    submit,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "llama")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> str:
    """PYTHONPATH with an installed package that has rules."""
    site = tmp_path_factory.mktemp("site")
    install_example(site)
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


def document_of(policy: Path, **changes: Any) -> dict[str, Any]:
    """A job with both rules from that package, which this process does not know; the driver shall."""
    document = small_spec(policy, name="undisturbed", steps=6).model_dump(mode="json")
    document["estimator"] = {"name": "plain_sum"}
    document["weighting"] = {"name": "worst_first", "options": {"sharpness": 2.0}}
    document["objectives"][2]["reward"]["hosting"] = {"replicas": 2, "num_cpus": 0.5, "batch_size": 4}
    return document | changes


def submit_document(store: JobStore, job_id: str, document: dict[str, Any], policy: Path) -> None:
    steering = initial_steering(small_spec(policy)).model_dump(mode="json")
    store.submit(json.dumps(document), name=document["name"], job_id=job_id, steering=steering)


@pytest.fixture(scope="module")
def family() -> dict[psutil.Process, str]:
    """What that job's driver had started by its first step: actors, engines, Ray. None has the job's id in its name."""
    return {}


@pytest.fixture(scope="module")
def finished(policy, site, redis_url, state_dir, family) -> tuple[JobStore, str, Path]:
    """A job that ran undisturbed."""
    store, job_id = JobStore(connect(redis_url)), "job-undisturbed"
    submit_document(store, job_id, document_of(policy), policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", site)
        drive = Drive(job_id, redis_url, state_dir)
    drive.wait_for_step(1)
    for process in descendants(drive.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's helpers come and go
            family[process] = " ".join(process.cmdline())
    drive.wait()
    assert store.job(job_id).status is JobStatus.SUCCEEDED, drive.log.read_text()[-4000:]
    return store, job_id, state_dir / "jobs" / job_id


def test_every_step_is_committed_with_all_its_figures(finished):
    store, job_id, _ = finished
    steps = store.steps(job_id)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    for step in steps:
        assert set(step["objectives"]) == {"accuracy", "conciseness", "clarity"}
        assert step["policy_version"] == step["step"] - 1  # sampled by the weights that the step then changed
        assert sum(step["weights"]["applied"].values()) == pytest.approx(1)
        assert step["sampler_gap"] < 1e-4  # the engine has exactly the learner's weights, step after step
        assert step["entropy"] > 0
    assert [step["step"] for step in steps if step["evaluation"]] == [2, 4, 6]


def test_a_plug_in_chooses_the_weights(finished):
    """By the formula of tests/examples/worst_first.py, from the raw means that the step reports."""
    store, job_id, _ = finished
    preference = {"accuracy": 0.5, "conciseness": 0.3, "clarity": 0.2}
    for step in store.steps(job_id):
        means = {name: figures["mean"] for name, figures in step["objectives"].items()}
        shares = {name: preference[name] * math.exp(-2.0 * mean) for name, mean in means.items()}
        expected = {name: share / sum(shares.values()) for name, share in shares.items()}
        assert step["weights"]["strategy"] == pytest.approx(expected, abs=1e-4)


def test_the_time_of_a_step_is_accounted_for(finished):
    store, job_id, _ = finished
    for step in store.steps(job_id):
        timings = step["timings_s"]
        assert timings["step"] == pytest.approx(sum(value for key, value in timings.items() if key != "step"), rel=1e-3)


def test_every_reward_says_how_it_fares(finished):
    store, job_id, _ = finished
    for step in store.steps(job_id):
        health = step["reward_health"]
        assert set(health) == {"math", "conciseness", "clarity"}
        assert health["clarity"]["calls"] == 4  # 16 rows in groups of 4, and no more in a call
        assert {health[name]["calls"] for name in ("math", "conciseness")} <= {1, 2}  # what waits goes together
        for figures in health.values():
            assert 0 <= figures["latency_s_p50"] <= figures["latency_s_p95"] <= figures["latency_s_max"]
            assert 0 <= figures["hidden_share"] <= 1
            assert (figures["retries"], figures["restarts"], figures["dropped"]) == (0, 0, 0)
        assert step["rollouts_dropped"] == 0


def test_the_front_has_the_initial_policy_and_test_figures(finished):
    store, job_id, _ = finished
    front = store.front(job_id)
    assert front["points"][0]["step"] == 0
    assert front["hypervolume"] >= front["hypervolume_base"]
    tested = [point for point in front["points"] if point["test"]]
    assert {0, 6} <= {point["step"] for point in tested}
    assert set(tested[0]["test"]) == {"sampled", "greedy"}


def test_checkpoints_of_the_front_and_the_last_two_are_whole(finished):
    store, job_id, directory = finished
    kept = {checkpoint.step for checkpoint in store.checkpoints(job_id)}
    on_front = {point["step"] for point in store.front(job_id)["points"] if point["on_front"]}
    assert on_front | {6} <= kept
    assert len(kept - on_front - {6}) <= 1  # the one before the last
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {directory_name(step) for step in kept}
    for step in kept:
        assert verify(directory / "checkpoints" / directory_name(step)).step == step


def test_a_checkpoint_loads_with_plain_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, _, directory = finished
    policy = directory / "checkpoints" / directory_name(6) / "policy"
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens["input_ids"].shape[1]


def test_the_report_and_samples_are_written(finished):
    _, _, directory = finished
    html = (directory / "report.html").read_text()
    assert "undisturbed" in html
    samples = json.loads((directory / "samples.json").read_text())
    assert len(samples) == 8
    assert {"start", "end", "prompt", "answer"} <= set(samples[0])


@pytest.mark.skipif(REPEATS == 1, reason="it takes some minutes: EQUIPOISE_FAULT_REPEATS=2 and above run it")
def test_killed_in_checkpoints_that_are_written_beside_the_steps(
    finished, policy, site, redis_url, state_dir, monkeypatch, gone_in_the_end
):
    """T17: while the learner still writes, once all files are there, and once they are sealed.

    Each time the next driver goes on from the checkpoint before, and the steps are those of a job that waits for its
    checkpoints and was left alone.
    """
    store, undisturbed, _ = finished
    job_id = "job-beside"
    submit_document(store, job_id, document_of(policy, checkpoints={"every": 1, "asynchronous": True}), policy)
    root = state_dir / "jobs" / job_id / "checkpoints"
    monkeypatch.setenv("PYTHONPATH", site)

    def killed(place: str, *, by_itself: bool, newest: int) -> Path:
        """The hidden directory of the checkpoint that was under way; `newest` is the last that is whole."""
        monkeypatch.setenv(failpoints.VARIABLE, place)
        drive = Drive(job_id, redis_url, state_dir)
        drive.wait_for_step(newest - 1, fence=newest)
        while store.job(job_id).status is not JobStatus.RUNNING:  # all parts are there
            assert drive.process.poll() is None, drive.log.read_text()[-4000:]
            time.sleep(0.05)
        family = {process: " ".join(process.cmdline()) for process in descendants(drive.process.pid)}
        gone_in_the_end.update(family)
        hidden = root / f".{directory_name(newest + 1)}-{newest}"  # each driver comes one checkpoint further
        if not by_itself:
            drive.wait_for_step(newest + 2, fence=newest)  # steps go on beside it
            assert (hidden / "learner.safetensors").is_file()
            assert not (hidden / "policy" / "model.safetensors").exists()
            drive.kill()
        assert drive.process.wait(120) == -signal.SIGKILL, drive.log.read_text()[-4000:]
        assert {path.name for path in root.glob(".step-*")} == {hidden.name}
        in_sight = {verify(path).step for path in root.glob("step-*")}
        assert in_sight == {found.step for found in store.checkpoints(job_id)}
        assert max(in_sight) == newest
        _, alive = psutil.wait_procs([process for process, name in family.items() if "Agent" not in name], timeout=60)
        assert not [family[process] for process in alive]
        drive.take_back()
        return hidden

    # The learner's third save, of step 2; then each driver's second checkpoint, as it gets one further than the last.
    killed("checkpoint_halfway=sleep:600@3", by_itself=False, newest=1)
    hidden = killed("checkpoint_filled=kill@2", by_itself=True, newest=2)
    assert (hidden / "policy" / "model.safetensors").is_file()
    assert not (hidden / MANIFEST).exists()
    hidden = killed("checkpoint_sealed=kill@2", by_itself=True, newest=3)
    assert verify(hidden).step == 4  # as good as any, and yet nobody's
    kills = 3
    monkeypatch.delenv(failpoints.VARIABLE)
    Drive(job_id, redis_url, state_dir).wait()

    assert store.job(job_id).status is JobStatus.SUCCEEDED
    assert not list(root.glob(".step-*"))
    expected, steps, raw = store.steps(undisturbed), store.steps(job_id), store.raw_steps(job_id)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert max(map(largest_difference, expected, steps)) < 1e-5
    assert [step["fence"] for step in steps] == [min(step, kills + 1) for step in range(1, 7)]
    assert [(fence, step) for fence, step, _ in raw] == sorted({(fence, step) for fence, step, _ in raw})
    events = store.events(job_id, limit=1000).items
    assert [event.data["step"] for event in events if event.type == "job.resumed"] == [*range(1, kills + 1)]
    assert not [event for event in events if event.type in ("checkpoint.damaged", "checkpoint.failed")]
    rerun = [event.data["rerun"] for event in events if event.type == "job.resumed"]
    tell("T17", kills_beside_the_steps=kills, rerun=rerun, allowed=2, load_failures=0)
    assert max(rerun) <= 2  # the interval, and the steps that a checkpoint takes


@pytest.mark.usefixtures("finished")
def test_nothing_is_left_running(family):
    assert [name for name in family.values() if "EngineActor" in name or "VLLM::" in name]
    _, alive = psutil.wait_procs(list(family), timeout=60)
    assert not [family[process] for process in alive]


def test_a_wrong_model_fails_the_job_with_its_reason(redis_url, state_dir, tmp_path):
    store = JobStore(connect(redis_url))
    job_id = submit(store, small_spec(tmp_path / "nowhere"))
    Drive(job_id, redis_url, state_dir).wait()
    record = store.job(job_id)
    assert record.status is JobStatus.FAILED
    assert "nowhere" in record.reason
