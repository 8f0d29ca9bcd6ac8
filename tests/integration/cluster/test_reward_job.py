"""A job that trains a reward model, through the API, a real Redis and the driver: its life, and what it is refused."""

import contextlib
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator import driver
from orchestrator.journal import Wishes
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.recovery import recover
from rewards import registry, training
from rewards.base import RewardBatch
from rewards.dry_run import score
from services.client import Client
from services.follow import Follower, render, step_line
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings
from services.tables import training_view
from tests.loop_fakes import make_spec
from tests.reward_trainer import STEPS, FakeTrainer, reward_document

KEY = "eqp_test"


class Place:
    """A server and its state directory, and a driver in this process."""

    def __init__(self, url: str, state_dir: Path) -> None:
        self.url, self.state_dir, self.owner = url, state_dir, f"rm-{uuid.uuid4().hex}"
        self.store = JobStore(connect(url), owner=self.owner)
        self.server = ApiServer("127.0.0.1", 0)
        self.server.start(self.store, Settings(state_dir=state_dir, key_sha256=digest(KEY), local_exports=True))

    def drive(self, job_id: str) -> int:
        before = signal.getsignal(signal.SIGTERM)
        try:
            return driver.drive(job_id, self.url, self.state_dir, owner=self.owner, ray_address=None)
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def place(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(redis_url, tmp_path_factory.mktemp("reward-jobs"))
    yield place
    place.server.stop()


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    with Client(place.server.url, KEY) as client:
        yield client


@pytest.fixture
def http(place: Place) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=place.server.url, headers={"authorization": f"Bearer {KEY}"}) as http:
        yield http


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    trainer = FakeTrainer()
    monkeypatch.setattr(training, "train", trainer)
    return trainer


def test_submit_pause_resume_and_take_the_model(
    place: Place, client: Client, trainer: FakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = reward_document(tmp_path)
    plan = client.plan(document)
    assert plan["valid"]
    assert plan["spec"]["training"]["epochs"] == 1
    job_id = client.submit(document)["id"]
    assert client.job(job_id)["total_steps"] is None

    pausing = [False]
    monkeypatch.setattr(driver.Heartbeat, "wishes", property(lambda _: Wishes(pause=pausing[0])))

    def pause(step: int) -> None:
        if step == 5:
            client.pause(job_id)
            pausing[0] = True

    trainer.after = pause
    assert place.drive(job_id) == 0
    job = client.job(job_id)
    assert (job["status"], job["step"], job["total_steps"], job["checkpoint_step"]) == ("paused", 5, STEPS, 5)

    pausing[0], trainer.after = False, lambda _: None
    client.resume(job_id)
    assert place.drive(job_id) == 0
    job = client.job(job_id)
    assert (job["status"], job["step"]) == ("succeeded", STEPS)
    steps = list(client.iter_metrics(job_id))
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert {"loss", "pair_accuracy", "timings_s"} <= steps[0].keys()
    told = {event["type"]: event["data"] for event in client.iter_events(job_id)}
    assert told["job.resumed"] == {"step": 5, "rerun": 0}
    assert told["reward_model.evaluated"]["pairwise_accuracy"] == 0.75
    (kept,) = client.checkpoints(job_id)["data"]
    assert (kept["step"], kept["metrics"]["ece"]) == (STEPS, 0.1)
    client.export(job_id, STEPS, str(tmp_path / "model"))
    weight = json.loads((tmp_path / "model" / "model.safetensors").read_text())["weight"]
    assert weight == sum(step**2 for step in range(1, STEPS + 1))
    assert client.download(job_id, STEPS, tmp_path / "model.tar").stat().st_size > 0
    assert (place.state_dir / "jobs" / job_id / "report.html").read_text() == "<p>how it judges</p>"

    follower = Follower(client, job_id)
    follower.poll()
    assert "loss 0.1111" in step_line(follower.job, follower.steps[0], follower.steps[-1])
    assert "objectives" not in str(render(follower.job, follower.steps, {}, follower.events))
    assert training_view(follower.job)


def test_what_makes_no_sense_for_it_is_refused(http: httpx.Client, client: Client, tmp_path: Path) -> None:
    job_id = client.submit(reward_document(tmp_path))["id"]
    other = client.submit(make_spec().model_dump(mode="json"))["id"]
    job = f"/v1/jobs/{job_id}"
    asked = [
        http.get(f"{job}/front"),
        http.get(f"{job}/steering"),
        http.put(f"{job}/steering", json={"mode": "manual"}),
        http.post(f"{job}/steering/preview", json={"mode": "manual"}),
        http.get(f"{job}/rollouts"),
        http.post(f"{job}/fork", json={"checkpoint": "latest"}),
        http.get("/v1/jobs/compare", params={"ids": f"{other},{job_id}"}),
    ]
    documented = http.get("/openapi.json").json()["paths"]
    for answer in asked:
        assert answer.status_code == 409, answer.text
        route = answer.url.path.replace(job_id, "{job_id}")
        assert "409" in documented[route][answer.request.method.lower()]["responses"], route
        error = answer.json()["error"]
        assert error["code"] == "wrong_kind"
        assert error["message"].startswith("this job trains a reward model, which has no ")
    assert http.get(f"/v1/jobs/{other}/front").status_code == 200
    alias = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (alias["model"], alias["training_file"]) == (str(tmp_path / "backbone"), str(tmp_path / "train.jsonl"))
    assert {found["id"] for found in http.get("/v1/fine_tuning/jobs").json()["data"]} >= {job_id, other}
    assert http.get("/metrics").status_code == 200
    assert client.cancel(job_id)["status"] == "cancelled"
    client.cancel(other)


def test_a_failing_one_says_why_and_a_wrong_document_is_422(
    place: Place, http: httpx.Client, client: Client, trainer: FakeTrainer, tmp_path: Path
) -> None:
    trainer.fails = ValueError("train.jsonl: line 1: no rating of a head")
    job_id = client.submit(reward_document(tmp_path))["id"]
    assert place.drive(job_id) == 0
    assert (client.job(job_id)["status"], client.job(job_id)["reason"]) == ("failed", str(trainer.fails))
    types = [event["type"] for event in client.iter_events(job_id)]
    assert "report.failed" not in types
    for changes, param in (
        ({"kind": "reward"}, "kind"),
        ({"steps": 3}, "steps"),
        ({"training": {"model": "m"}}, "training.train"),
        ({"priority": "1"}, "priority"),
    ):
        answer = http.post("/v1/jobs", json={**reward_document(tmp_path), **changes})
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == param


def test_one_whose_redis_is_lost_is_recovered(
    place: Place, client: Client, trainer: FakeTrainer, tmp_path: Path
) -> None:
    document = reward_document(tmp_path)
    job_id = client.submit(document)["id"]

    class Gone(BaseException):
        pass

    def die(step: int) -> None:
        if step == 5:
            raise Gone

    trainer.after = die
    with contextlib.suppress(Gone):
        place.drive(job_id)
    for key in place.store.calls.command("KEYS", f"*{job_id}*"):
        place.store.calls.command("DEL", key)
    empty = JobStore(connect(place.url), owner=place.owner)
    (found,) = [one for one in recover(empty, place.state_dir) if one.job_id == job_id]
    assert (found.finding, found.step) == ("recovered", 3)
    trainer.after = lambda _: None
    client.resume(job_id)
    assert place.drive(job_id) == 0
    assert empty.job(job_id).status is JobStatus.SUCCEEDED
    assert [record["step"] for record in empty.steps(job_id)][-1] == STEPS


def test_a_real_training_as_a_job(place: Place, client: Client, tmp_path: Path) -> None:
    """One update more than a checkpoint, on a model of some thousand weights; what it learns has tests of its own."""
    pytest.importorskip("rewards.training.job")
    from tests.support import make_policy

    rows = [{"prompt": f"p{i}", "completion": "x" * (i % 7), "ratings": {"kind": float(i % 7)}} for i in range(32)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {
        "model": str(make_policy(tmp_path / "policy")), "train": [str(tmp_path / "rated.jsonl")],
        "validation": [str(tmp_path / "rated.jsonl")], "heads": [{"name": "kind", "range": [0, 6]}],
        "checkpoint_every": 3, "max_length": 100, "max_steps": 4, "epochs": 9, "batch_size": 8,
    }  # fmt: skip
    job_id = client.submit({**reward_document(tmp_path, **changes), "resources": {"device": "cpu", "threads": 1}})["id"]
    assert place.drive(job_id) == 0
    job = client.job(job_id)
    assert job["status"] == "succeeded", job["reason"]
    assert (job["step"], job["total_steps"]) == (4, 4)
    (told,) = [event["data"] for event in client.iter_events(job_id) if event["type"] == "reward_model.evaluated"]
    assert "kind" in told["heads"]
    client.export(job_id, 4, str(tmp_path / "model"))
    options = {"model": str(tmp_path / "model"), "head": "kind", "max_length": 100}
    batch = RewardBatch(
        prompts=("p1",), completions=("xxx",), answers=(None,), completion_tokens=(3,), truncated=(False,), max_tokens=9
    )
    scores, heads = score("regression", options, registry.build("regression", options), batch)
    assert scores == heads["kind"]
