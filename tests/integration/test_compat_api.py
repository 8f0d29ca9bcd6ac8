"""The `openai` package, as its users have it, against a real server."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from orchestrator.state.embedded_redis import connect
from orchestrator.state.redis_calls import RedisCalls
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.checkpoints import write_checkpoint
from services.api.compat import STATUSES
from services.client import Client
from tests.api_support import KEY, SPEC, claim, serving, step_record


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"compat-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture(scope="module")
def url(store: JobStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(store, tmp_path_factory.mktemp("compat")) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as client:
        yield client


@pytest.fixture(scope="module")
def jobs(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client.fine_tuning.jobs


@pytest.fixture
def job_id(client: Client) -> str:
    return str(client.submit(SPEC)["id"])


def test_every_status_has_a_word() -> None:
    assert set(STATUSES) == set(JobStatus)


def test_retrieve(jobs: Any, client: Client, store: JobStore) -> None:
    files = {"team": "x"}
    job_id = client.submit({**SPEC, "seed": 5, "metadata": files})["id"]
    job = jobs.retrieve(job_id)
    assert (job.id, job.object, job.status, job.model) == (job_id, "fine_tuning.job", "queued", "quickstart")
    assert (type(job.created_at), job.created_at) == (int, int(client.job(job_id)["created_at"]))
    assert (job.finished_at, job.fine_tuned_model, job.error, job.seed) == (None, None, None, 5)
    assert (job.training_file, job.validation_file, job.result_files) == ("quickstart", "quickstart", [])
    assert (job.metadata, job.organization_id) == (files, store.owner)
    assert job.hyperparameters.batch_size == 32 * 8


def test_list_goes_through_every_page(jobs: Any, client: Client) -> None:
    mark = uuid.uuid4().hex
    made = [client.submit({**SPEC, "metadata": {"mark": mark}})["id"] for _ in range(5)]
    found = [job.id for job in jobs.list(limit=2)]
    assert found[:5] == made[::-1]
    assert len(found) == len(set(found)) == len(list(client.iter_jobs()))
    assert [job.id for job in jobs.list(limit=2, metadata={"mark": mark})] == made[::-1]


def test_pause_resume_cancel(jobs: Any, job_id: str) -> None:
    assert jobs.pause(job_id, extra_body={"checkpoint": "latest"}).status == "paused"
    assert jobs.resume(job_id).status == "queued"
    assert jobs.cancel(job_id).status == "cancelled"
    assert jobs.retrieve(job_id).finished_at is not None
    with pytest.raises(openai.ConflictError) as caught:
        jobs.resume(job_id)
    with pytest.raises(openai.UnprocessableEntityError, match=r"checkpoint: .*'save' or 'latest'"):
        jobs.pause(job_id, extra_body={"checkpoint": "oldest"})
    assert caught.value.code == "illegal_transition"


def test_who_submits_is_told_where(jobs: Any) -> None:
    with pytest.raises(openai.APIStatusError, match="jobs are submitted at POST /v1/jobs") as caught:
        jobs.create(model="m", training_file="f")
    assert caught.value.status_code == 405


def test_errors_have_the_classes_that_clients_catch(jobs: Any, url: str, job_id: str) -> None:
    with pytest.raises(openai.NotFoundError):
        jobs.retrieve("ftjob-0")
    with pytest.raises(openai.UnprocessableEntityError):
        jobs.list(after="ftjob-0")
    with pytest.raises(openai.UnprocessableEntityError):
        jobs.list_events(job_id, after="ftevent-other-1")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.fine_tuning.jobs.list()


@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 30])
def test_events_newest_first_and_each_once(jobs: Any, store: JobStore, job_id: str, count: int) -> None:
    for i in range(count):
        store.event(job_id, "collapse.detected", {"i": i}, level="warning")
    found = list(jobs.list_events(job_id, limit=7))
    assert [int(event.id.rpartition("-")[2]) for event in found] == list(range(count + 1, 0, -1))
    if count:
        first = found[0]
        assert (first.object, first.level, first.type) == ("fine_tuning.job.event", "warn", "message")
        assert first.message == f'collapse.detected: {{"i": {count - 1}}}'
        assert isinstance(first.created_at, int)


def test_checkpoints_and_the_model_of_a_job_that_succeeded(
    jobs: Any, store: JobStore, job_id: str, tmp_path: Path
) -> None:
    lease = claim(store, job_id)
    for step in (1, 2, 3):
        store.commit(lease, step=step, digest=str(step), record=step_record())
        path, manifest = write_checkpoint(
            tmp_path, step=step, fence=lease.fence, fill=lambda directory: (directory / "policy").mkdir()
        )
        store.register_checkpoint(lease, step=step, path=str(path), digest=manifest.digest)
        store.update_checkpoints(lease, {step: {"metrics": {"objectives": {"accuracy": step / 10}}}})
    assert jobs.retrieve(job_id).status == "running"
    found = list(jobs.checkpoints.list(job_id, limit=2))
    assert [checkpoint.step_number for checkpoint in found] == [3, 2, 1]
    assert found[0].fine_tuned_model_checkpoint == str(tmp_path / "step-000003" / "policy")
    assert (found[0].fine_tuning_job_id, found[0].metrics.step, found[0].metrics.accuracy) == (job_id, 3, 0.3)
    store.finish(lease, JobStatus.SUCCEEDED)
    job = jobs.retrieve(job_id)
    last = str(tmp_path / "step-000003" / "policy")
    assert (job.status, job.fine_tuned_model) == ("succeeded", last)  # nothing was evaluated


def test_the_model_of_a_job_is_the_fronts_best_by_the_weights_and_not_a_collapsed_last_one(
    jobs: Any, store: JobStore, client: Client, tmp_path: Path
) -> None:
    job_id = client.submit(SPEC)["id"]
    names = [objective["name"] for objective in SPEC["objectives"]]
    lease = claim(store, job_id)
    for step, value, on_front in ((1, 0.6, True), (2, 0.8, True), (3, 0.1, False)):
        store.commit(lease, step=step, digest=str(step), record=step_record())
        path = tmp_path / f"step-{step:06}"
        store.register_checkpoint(lease, step=step, path=str(path), digest=str(step))
        figures = {"metrics": {"objectives": dict.fromkeys(names, value)}, "on_front": on_front}
        store.update_checkpoints(lease, {step: figures})
    store.finish(lease, JobStatus.SUCCEEDED)
    best = str(tmp_path / "step-000002" / "policy")
    assert jobs.retrieve(job_id).fine_tuned_model == best
    assert next(job for job in jobs.list() if job.id == job_id).fine_tuned_model == best
    other = client.submit(SPEC)["id"]
    store.finish(claim(store, other), JobStatus.SUCCEEDED)
    assert {job.id: job.fine_tuned_model for job in jobs.list(limit=2).data} == {job_id: best, other: None}


def test_a_list_asks_redis_once_for_all_of_its_models(
    jobs: Any, store: JobStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    reads = RedisCalls.reads

    def counted(calls: RedisCalls, commands: Any) -> list[Any]:
        if any(str(word).endswith(":w") for words in commands for word in words):
            asked.append(commands)
        return reads(calls, commands)

    for _ in range(4):
        store.finish(claim(store, client.submit(SPEC)["id"]), JobStatus.SUCCEEDED)
    monkeypatch.setattr(RedisCalls, "reads", counted)
    assert len(jobs.list(limit=4).data) == 4
    assert len(asked) == 1


def test_a_failed_job_says_why(jobs: Any, store: JobStore, job_id: str) -> None:
    store.finish(claim(store, job_id), JobStatus.FAILED, "no space left")
    job = jobs.retrieve(job_id)
    assert (job.status, job.error.code, job.error.message) == ("failed", "job_failed", "no space left")


@pytest.mark.parametrize(
    ("train", "validation", "shown"),
    [
        ("/data/train.jsonl", "/data/val.jsonl", "/data/val.jsonl"),
        (["/data/train.jsonl", "/data/more.jsonl"], ["/data/val.jsonl"], "/data/val.jsonl"),  # the first of each
        ("/data/train.jsonl", {"share": 0.1, "seed": 0}, "/data/train.jsonl"),  # which it is held back from
    ],
)
def test_files_are_named_as_they_are(jobs: Any, store: JobStore, train: Any, validation: Any, shown: str) -> None:
    spec = {**SPEC, "data": {"type": "files", "train": train, "validation": validation}}
    spec |= {"seed": 0, "rollout": {"prompts_per_step": 2, "rollouts_per_prompt": 3}}
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    store.submit(json.dumps(spec), name="files", job_id=job_id)
    job = jobs.retrieve(job_id)
    assert (job.training_file, job.validation_file) == ("/data/train.jsonl", shown)
