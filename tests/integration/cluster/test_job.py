"""One job on real parts: redis-server, Ray, vLLM, the learner and the reward actors, run by the real driver."""

from __future__ import annotations

import json
import math
from pathlib import Path

import psutil
import pytest

from orchestrator.checkpoints import directory_name, verify
from orchestrator.steering import initial_steering
from orchestrator.store import JobStatus, JobStore
from tests.support import Drive, connect, install_example, make_policy, small_spec, submit


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy") / "llama")


@pytest.fixture(scope="module")
def finished(policy, redis_url, state_dir, tmp_path_factory) -> tuple[JobStore, str, Path]:
    """A job that ran undisturbed, with both rules from an installed package."""
    site = tmp_path_factory.mktemp("site")
    install_example(site)
    spec = small_spec(policy, name="undisturbed", steps=6)
    document = spec.model_dump(mode="json")  # this process does not know the package; the driver shall
    document["estimator"] = {"name": "plain_sum"}
    document["weighting"] = {"name": "worst_first", "options": {"sharpness": 2.0}}
    document["objectives"][2]["reward"]["hosting"] = {"replicas": 2, "num_cpus": 0.5, "batch_size": 4}
    store, job_id = JobStore(connect(redis_url)), "job-undisturbed"
    steering = initial_steering(spec).model_dump(mode="json")
    store.submit(json.dumps(document), name=spec.name, job_id=job_id, steering=steering)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        drive = Drive(job_id, redis_url, state_dir)
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


def test_nothing_is_left_running(finished):
    names = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    _, job_id, _ = finished
    assert not [line for line in names if job_id in " ".join(line)]


def test_a_wrong_model_fails_the_job_with_its_reason(redis_url, state_dir, tmp_path):
    store = JobStore(connect(redis_url))
    job_id = submit(store, small_spec(tmp_path / "nowhere"))
    Drive(job_id, redis_url, state_dir).wait()
    record = store.job(job_id)
    assert record.status is JobStatus.FAILED
    assert "nowhere" in record.reason
