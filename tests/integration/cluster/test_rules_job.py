"""A job with many rules at once on real parts, undisturbed and killed: they work together and lose nothing.

Its learner has two ranks, and trains an adapter.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from orchestrator.launch.launchers import REDIS_URL_VARIABLE
from orchestrator.rollouts.samples import FOLDER
from orchestrator.state.store import JobStatus, JobStore
from orchestrator.storage.checkpoints import directory_name, export_policy
from services.cli import app
from tests.fault_figures import tell
from tests.support import (
    Drive,
    connect,
    descendants,
    largest_difference,
    make_policy,
    one_of,
    small_spec,
    submit,
)

ALONE = 4  # steps, which end with a checkpoint, and after which there are more than one


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    policy = make_policy(tmp_path_factory.mktemp("policy") / "qwen3", architecture="qwen3")
    conciseness = {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.5}
    clarity = {"name": "clarity", "reward": {"name": "clarity"}, "weight": 0.2}
    return small_spec(
        policy,
        name="rules",
        steps=6,
        policy={"model": str(policy), "dtype": "float32", "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}},
        resources={"device": "cpu", "learner_threads": 1, "learner_ranks": 2},
        data={"type": "quickstart", "train": 16, "validation": 8, "test": 8},
        objectives=[
            {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.3, "bounds": [0.1, 1.0]},
            conciseness | {"transform": {"name": "lsc", "scale": 0.1}, "reference": 0.05},
            clarity | {"transform": {"name": "zscore"}},
        ],
        estimator={"name": "softmin"},
        weighting={"name": "gradient", "step_size": 1.0},
        gramian={"mode": "sketch", "sketch_width": 8, "average": 0.5},
        optimizer={"lr": 1e-2, "tokens_per_microbatch": 512},  # so that an adapter merged twice would show in the gap
        sampling={
            "zero_signal": {"name": "refill", "max_rounds": 2},
            "budget": {"name": "knapsack", "objective": "conciseness", "success_at": 0.5},
            "reference_rollouts": 3,
        },
    )


@pytest.fixture(scope="module")
def undisturbed(spec, redis_url: str, state_dir: Path) -> tuple[JobStore, str]:
    """A job whose first steps were left alone, with the checkpoint after them; then vLLM's own process was killed."""
    store = JobStore(connect(redis_url))
    job_id = submit(store, spec)
    drive = Drive(job_id, redis_url, state_dir, as_worker=True)
    drive.wait_for_step(1)
    assert not [process for process in descendants(drive.process.pid) if REDIS_URL_VARIABLE in process.environ()]
    drive.wait_for_step(ALONE)
    while ALONE not in {checkpoint.step for checkpoint in store.checkpoints(job_id)}:
        assert drive.process.poll() is None, drive.log.read_text()[-4000:]
        time.sleep(0.05)
    one_of(drive.process.pid, "VLLM::EngineCore").kill()
    drive.wait()
    return store, job_id


def test_without_its_engine_a_job_waits_to_go_on(undisturbed) -> None:
    store, job_id = undisturbed
    job = store.job(job_id)
    assert job.status is JobStatus.QUEUED, job.reason
    assert job.reason is not None
    assert "no rollout engine is left" in job.reason


def test_every_step_has_what_the_rules_made(undisturbed) -> None:
    store, job_id = undisturbed
    steps = store.steps(job_id)[:ALONE]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step in steps:
        gramian = step["gramian"]
        assert len(gramian) == 3
        assert all(gramian[k][k] >= 0 for k in range(3))
        assert step["weights"]["applied"]["accuracy"] >= 0.1 - 1e-9
        assert sum(step["weights"]["applied"].values()) == pytest.approx(1)
        assert 1 <= step["groups_learned"] <= 4 <= step["groups"]
        assert step["sampler_gap"] < 1e-4
    weights = [step["weights"]["strategy"] for step in steps]
    assert weights[0] == pytest.approx({"accuracy": 0.3, "conciseness": 0.5, "clarity": 0.2})  # nothing measured yet
    assert weights[1]["conciseness"] > weights[0]["conciseness"]  # the only one that a random policy can move


def test_a_checkpoint_has_the_ranks_parts_and_the_adapter(undisturbed, spec, state_dir: Path, tmp_path: Path) -> None:
    """Its sum names the base that the job started from, and exported and merged it is a policy of its own."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    from policies.lora import base_digest
    from policies.models import load_model

    _, job_id = undisturbed
    directory = state_dir / "jobs" / job_id / "checkpoints" / directory_name(4)
    assert len([*(directory / "learner").glob("*.distcp")]) == 2
    assert not (directory / "policy" / "model.safetensors").exists()
    with safe_open(directory / "policy" / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["base_sha256"] == base_digest(load_model(spec.policy.model)).hex()
    export_policy(directory, tmp_path / "exported")
    made = CliRunner().invoke(app, ["merge", str(tmp_path / "exported"), str(tmp_path / "merged")])
    assert (made.exit_code, made.stdout) == (0, f"{tmp_path / 'merged'}\n"), made.output
    merged = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).named_parameters())
    base = dict(load_model(spec.policy.model).named_parameters())
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, merged[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    assert len(changed) == 4


def test_killed_and_resumed_gives_the_same_figures(
    undisturbed, spec, redis_url: str, state_dir: Path, gone_in_the_end: dict[psutil.Process, str]
) -> None:
    """A driver: what the next one does equals the undisturbed steps, every step once."""
    store, alone = undisturbed
    job_id = submit(store, spec)
    first = Drive(job_id, redis_url, state_dir)
    first.wait_for_step(3)
    first.process.send_signal(signal.SIGSTOP)  # it is not to get to the next checkpoint meanwhile
    family = descendants(first.process.pid)
    names = {process.pid: " ".join(process.cmdline()) for process in family}
    first.kill()
    gone_in_the_end.update({process: names[process.pid] for process in family})
    working = [process for process in family if "Agent" not in names[process.pid]]  # Ray's own agents take a minute
    _, alive = psutil.wait_procs(working, timeout=30)
    assert not [names[process.pid] for process in alive], "the dead driver left processes behind"
    first.take_back()

    Drive(job_id, redis_url, state_dir).wait()
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    expected, resumed = store.steps(alone)[:ALONE], store.steps(job_id)
    assert [step["step"] for step in resumed] == [1, 2, 3, 4, 5, 6]
    assert max(map(largest_difference, expected, resumed[:ALONE])) < 1e-5
    assert resumed[ALONE - 1]["fence"] == 2  # so that one of the steps compared was made after the kill
    assert {fence for fence, _, _ in store.raw_steps(job_id)} == {1, 2}
    claims = [event.data for event in store.events(job_id).items if event.type == "job.claimed"]
    rerun = [claim["from"] - claim["to"] for claim in claims]
    tell("T8", engines_killed=1, drivers_killed=1, rerun=rerun, different_figures=0)
    assert max(rerun) <= 2  # the checkpoint interval


def test_nothing_that_was_sampled_is_in_the_log(undisturbed, state_dir: Path) -> None:
    """Prompts and completions are their owner's; a log is the operator's."""
    _, job_id = undisturbed
    directory = state_dir / "jobs" / job_id
    rows = [json.loads(line) for file in (directory / FOLDER).iterdir() for line in file.read_text().splitlines()]
    texts = {row[part] for row in rows for part in ("prompt", "completion") if len(row[part]) > 6}
    assert len(texts) > 8
    log = (directory / "driver.log").read_text()
    assert "starting engines and learner" in log
    assert not [text for text in texts if text in log]
