"""Rewards that hang, raise or give no numbers under real drivers: T11 to T13 of the reliability table, on toy jobs.

Whatever a reward does, every committed step is what the oracle replays: with the same rows left out, or with none. The
same faults in real processes are in test_reward_pool.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.spec import JobSpec
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from tests.fault_figures import tell
from tests.toy_driver import Forks, Garage
from tests.toy_jobs import audit, events_of, submit, toy_spec

ROW = ["nan", "inf", "-inf", "huge", "text", "raise", "length"]
DEADLINE_S = 0.5
ROWS = 12  # of a step


@pytest.fixture(scope="module")
def garage(forks: Forks, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garage]:
    with Garage(forks, redis_url, tmp_path_factory.mktemp("garage")) as garage:
        yield garage


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url, timeout_s=5) as client:
        yield JobStore(client, owner=f"faults-{uuid.uuid4().hex}")


def spec_with(trouble: dict[str, Any] | None = None, *, deadline_s: float = 30.0, **hosting: Any) -> JobSpec:
    """`trouble` is of every driver of the job, and of the oracle."""
    hosting = {"backoff_s": 0.01, "deadline_s": deadline_s, **hosting}
    reward = {"name": "conciseness", "hosting": hosting}
    objectives = [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0},
        {"name": "brevity", "reward": reward},
    ]
    metadata = {"toy.rewards": json.dumps({"brevity": trouble} if trouble else {})}
    return toy_spec(steps=6, objectives=objectives).model_copy(update={"metadata": metadata})


def drive(garage: Garage, store: JobStore, jobs: list[str], **toy: Any) -> None:
    drivers = [garage.start(job_id, owner=store.owner, **toy) for job_id in jobs]
    for driver in drivers:
        assert driver.wait(120) == 0, driver.tail()


def told(store: JobStore, job_id: str, type_: str) -> dict[str, Any]:
    (event,) = [event for event in events_of(store, job_id) if event.type == type_]
    return event.data


def test_a_bad_row_is_masked_and_counted_exactly_and_the_job_goes_on(garage: Garage, store: JobStore) -> None:
    specs = [spec_with({"how": how, "rows": [5], "version": 3}) for how in ROW]
    jobs = [submit(store, spec) for spec in specs]
    drive(garage, store, jobs)
    masked = []
    for how, spec, job_id in zip(ROW, specs, jobs, strict=True):
        assert store.job(job_id).status is JobStatus.SUCCEEDED, how
        assert audit(store, job_id, spec, garage.state_dir).violations == (), how
        steps = store.steps(job_id)
        masked.append([step["rollouts_dropped"] for step in steps])
        event = told(store, job_id, "reward.rows_dropped")
        assert (event["reward"], event["rows"], event["count"], event["of"]) == ("conciseness", [5], 1, ROWS)
        assert event["attempts"] == 2
        assert all(figures["mean"] is not None for step in steps for figures in step["objectives"].values())
    assert masked == [[0, 0, 0, 1, 0, 0]] * len(ROW)
    tell("T12", one_row_injected=len(ROW), one_row_masked=sum(map(sum, masked)))
    tell("T13", data_attempts_per_row=2)


def test_a_reward_that_fails_on_all_pauses_the_job_and_a_resume_goes_on_as_if_nothing_was(
    garage: Garage, store: JobStore
) -> None:
    """Each step of the resumed job is the undisturbed run's: none was made with an objective missing."""
    spec = spec_with(deadline_s=DEADLINE_S, attempts=2)
    kinds = [*ROW, "hang", "memory", "connection"]
    jobs = {how: submit(store, spec) for how in kinds}
    drivers = [
        garage.start(job_id, owner=store.owner, rewards={"brevity": {"how": how, "version": 3}})
        for how, job_id in jobs.items()
    ]
    for driver in drivers:
        assert driver.wait(120) == 0, driver.tail()
    attempts = {}
    for how, job_id in jobs.items():
        record = store.job(job_id)
        assert (record.status, record.step, record.checkpoint_step) == (JobStatus.PAUSED, 3, 3), how
        assert record.reason is not None
        assert record.reason.startswith("paused: objective 'brevity': ")
        event = told(store, job_id, "reward.failed")
        assert (event["reward"], event["step"]) == ("conciseness", 4)
        assert (event["retries"] > 0) is (
            how not in ROW
        )  # a bad row is no failure of the infrastructure, or the reverse
        attempts["infrastructure" if how not in ROW else "data"] = (
            event["retries"] + 1 if how not in ROW else event["attempts"]
        )
        store.resume(job_id)
    drive(garage, store, list(jobs.values()))
    wrong = unlearnable = 0
    for how, job_id in jobs.items():
        assert store.job(job_id).status is JobStatus.SUCCEEDED
        found = audit(store, job_id, spec, garage.state_dir)
        assert found.violations == (), how
        wrong += found.mismatches + found.rerun
        unlearnable += sum(step["loss"] is None or step["grad_norm"] is None for step in store.steps(job_id))
    assert unlearnable == 0  # NaN is stored as null
    tell("T11", steps_with_a_missing_objective=wrong)
    tell("T12", all_rows_injected=len(ROW), half_made_steps=wrong, nan_gradients_applied=unlearnable)
    tell("T13", attempts_infrastructure=attempts["infrastructure"], attempts_data=attempts["data"])


def test_a_hang_that_ends_costs_its_deadline_and_nothing_else(garage: Garage, store: JobStore) -> None:
    spec = spec_with(deadline_s=DEADLINE_S)
    job_id = submit(store, spec)
    drive(garage, store, [job_id], rewards={"brevity": {"how": "hang", "version": 3, "times": 1}})
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    assert audit(store, job_id, spec, garage.state_dir).violations == ()
    health = store.steps(job_id)[3]["reward_health"]["conciseness"]
    assert (health["retries"], health["restarts"], health["dropped"]) == (1, 1, 0)
    assert health["latency_s_max"] >= DEADLINE_S
    assert told(store, job_id, "reward.recovered")["failures"] == {"deadline": 1}
    tell("T11", deadline_s=DEADLINE_S, detected_s=round(health["latency_s_max"], 3))


def test_a_job_may_rather_fail_than_pause(garage: Garage, store: JobStore) -> None:
    job_id = submit(store, spec_with({"how": "raise", "version": 3}, on_failure="fail"))
    drive(garage, store, [job_id])
    record = store.job(job_id)
    assert (record.status, record.step) == (JobStatus.FAILED, 3)
    assert record.reason is not None
    assert "objective 'brevity'" in record.reason


@pytest.mark.parametrize("mutant", ["neutral_scores", "score_without"])
def test_a_step_that_is_learned_from_made_up_scores_is_seen(garage: Garage, store: JobStore, mutant: str) -> None:
    rows = {"rows": [5]} if mutant == "neutral_scores" else {}
    spec = spec_with({"how": "nan", "version": 3, **rows})
    job_id = submit(store, spec)
    drive(garage, store, [job_id], mutants=[mutant])
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    if mutant == "neutral_scores":
        seen = audit(store, job_id, spec, garage.state_dir).violations
    else:  # the oracle would pause: it is asked for the undisturbed run
        seen = audit(store, job_id, spec_with(), garage.state_dir).violations
    assert any("are not what spec and steering log give" in words for words in seen)
