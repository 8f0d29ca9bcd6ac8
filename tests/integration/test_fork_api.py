"""Forks and comparisons over HTTP, on a real Redis and real checkpoints on disk."""

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator import comparison
from orchestrator.driver import claim_job, find_registered, usable_checkpoint
from orchestrator.fork_plans import plan_path
from orchestrator.journal import StoreJournal, Wishes
from orchestrator.state.census import Census
from orchestrator.state.embedded_redis import connect
from orchestrator.state.keys import Keys
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Lease, Origin
from orchestrator.storage.checkpoint_store import CheckpointStore, Remote
from orchestrator.storage.checkpoints import keep_policy, write_checkpoint
from services.client import Client
from services.keys import digest
from services.server import ApiServer
from services.settings import Limits, Settings, write_credentials
from tests.api_support import KEY, SPEC, assert_error, claim, serving, step_record
from tests.cli_forks import Commands

OTHER = {"accuracy": 1.0, "conciseness": 3.0}
POINTS = {  # step -> objectives on the validation split
    1: {"accuracy": 0.9, "conciseness": 0.1},
    2: {"accuracy": 0.2, "conciseness": 0.8},
    3: {"accuracy": 0.1, "conciseness": 0.1},
}


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"fork-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fork")


@pytest.fixture(scope="module")
def http(store: JobStore, state_dir: Path) -> Iterator[httpx.Client]:
    with (
        serving(store, state_dir) as server,
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
    ):
        yield http


def fill(step: int) -> Any:
    def write(directory: Path) -> None:
        (directory / "policy").mkdir()
        for name in ("config.json", "tokenizer.json"):
            (directory / "policy" / name).write_text("{}")
        (directory / "policy" / "model.safetensors").write_text(f"weights of step {step}")
        (directory / "state.json").write_text("{}")

    return write


def submitted(http: httpx.Client, **changes: Any) -> str:
    return str(http.post("/v1/jobs", json={**SPEC, **changes}).json()["id"])


def trained(http: httpx.Client, store: JobStore, state_dir: Path, **changes: Any) -> tuple[str, Lease]:
    """Three steps, each with a checkpoint; two of them on the front."""
    job_id = submitted(http, **changes)
    lease = claim(store, job_id)
    for step, objectives in POINTS.items():
        store.commit(lease, step=step, digest=str(step), record=step_record())
        root = state_dir / "jobs" / job_id / "checkpoints"
        path, manifest = write_checkpoint(root, step=step, fence=lease.fence, fill=fill(step))
        store.register_checkpoint(lease, step=step, path=str(path), digest=manifest.digest)
        store.update_checkpoints(lease, {step: {"on_front": step < 3, "metrics": {"objectives": objectives}}})
    store.set_front(lease, front(POINTS))
    return job_id, lease


def front(points: dict[int, dict[str, float]]) -> dict[str, Any]:
    also = {"mean_tokens": 5.0, "collapsed": False, "on_front": True, "checkpoint": True, "test": None}
    shown = [{"step": step, "objectives": found, **also} for step, found in points.items()]
    ranges = {"accuracy": [0.0, 1.0], "conciseness": [0.0, 1.0]}
    return {"objectives": list(ranges), "ranges": ranges, "points": shown, "hypervolume": 0.1}


@pytest.fixture
def parent(http: httpx.Client, store: JobStore, state_dir: Path) -> str:
    return trained(http, store, state_dir)[0]


def forked(http: httpx.Client, parent: str, key: str | None = None, **body: Any) -> dict[str, Any]:
    headers = {} if key is None else {"idempotency-key": key}
    response = http.post(f"/v1/jobs/{parent}/fork", json=body, headers=headers)
    assert response.status_code == 201, response.text
    return dict(response.json())


def count(http: httpx.Client) -> int:
    with Client(str(http.base_url), KEY) as client:
        return len(list(client.iter_jobs()))


def test_a_fork_starts_from_a_copy_that_outlives_its_parent(http: httpx.Client, state_dir: Path, parent: str) -> None:
    made = forked(http, parent, checkpoint=2)
    assert made["lineage"] == {"parent": parent, "step": 2}
    (new,) = made["data"]
    shutil.rmtree(state_dir / "jobs" / parent)
    job = http.get(f"/v1/jobs/{new['id']}").json()
    assert (job["status"], job["name"], job["lineage"]) == ("queued", "a job from 2", {"parent": parent, "step": 2})
    init = Path(job["spec"]["init_checkpoint"])
    assert init == state_dir / "jobs" / new["id"] / "init"
    assert (init / "model.safetensors").read_text() == "weights of step 2"
    assert [path.name for path in init.parent.iterdir()] == ["init"]
    (first,) = http.get(f"/v1/jobs/{new['id']}/steering").json()["log"]
    assert first["by"] == f"key {digest(KEY)[:8]}"
    assert [objective["weight"] for objective in job["spec"]["objectives"]] == [0.6, 0.4]
    assert http.get(f"/v1/jobs/{parent}").json()["lineage"] is None


def test_latest_and_best(http: httpx.Client, parent: str) -> None:
    assert forked(http, parent, checkpoint="latest")["lineage"]["step"] == 3
    assert forked(http, parent, checkpoint="best")["lineage"]["step"] == 1
    http.put(f"/v1/jobs/{parent}/steering", json={"weights": OTHER})
    assert forked(http, parent, checkpoint="best")["lineage"]["step"] == 2


@pytest.mark.parametrize("given", ["nothing", "changes", "weights"])
def test_without_weights_a_fork_begins_with_its_parents_steering(http: httpx.Client, parent: str, given: str) -> None:
    """Else the best policy by these weights would be trained back towards the parent's first ones."""
    bounds = {"accuracy": [0.1, 0.9], "conciseness": [0.2, 0.8]}
    http.put(f"/v1/jobs/{parent}/steering", json={"mode": "blend", "blend": 0.25, "weights": OTHER, "bounds": bounds})
    body: dict[str, Any] = {"changes": {"steering": {"mode": "manual"}}} if given == "changes" else {}
    body |= {"weights": {"accuracy": 1, "conciseness": 1}} if given == "weights" else {}
    (new,) = forked(http, parent, checkpoint="best", **body)["data"]
    log = http.get(f"/v1/jobs/{new['id']}/steering").json()
    found = {name: log[name] for name in ("mode", "blend", "weights", "bounds")}
    if given == "weights":  # and the rest as the spec has it
        whole = {"accuracy": [0.0, 1.0], "conciseness": [0.0, 1.0]}
        expected = {"mode": "auto", "blend": 0.5, "weights": {"accuracy": 0.5, "conciseness": 0.5}, "bounds": whole}
    else:
        mode = "manual" if given == "changes" else "blend"
        weights = {"accuracy": 0.25, "conciseness": 0.75}
        expected = {"mode": mode, "blend": 0.25, "weights": weights, "bounds": bounds}
    assert found == expected


def test_a_sweep_makes_one_job_for_each_vector(http: httpx.Client, parent: str) -> None:
    sweep = [{"accuracy": 1, "conciseness": 0}, OTHER, {"accuracy": 2, "conciseness": 2}]
    made = forked(http, parent, checkpoint=1, sweep=sweep, name="sweep", changes={"steps": 9})["data"]
    assert [job["name"] for job in made] == ["sweep #1", "sweep #2", "sweep #3"]
    weights = []
    for job in made:
        spec = http.get(f"/v1/jobs/{job['id']}").json()["spec"]
        assert spec["steps"] == 9
        assert (Path(spec["init_checkpoint"]) / "model.safetensors").read_text() == "weights of step 1"
        weights.append({objective["name"]: objective["weight"] for objective in spec["objectives"]})
        steering = http.get(f"/v1/jobs/{job['id']}/steering").json()
        assert steering["weights"] == pytest.approx(weights[-1])
    assert weights == [
        {"accuracy": 1, "conciseness": 0},
        {"accuracy": 0.25, "conciseness": 0.75},
        {"accuracy": 0.5, "conciseness": 0.5},
    ]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_fork_holds_back_no_prompts_that_its_policy_learnt(
    http: httpx.Client, store: JobStore, state_dir: Path, tmp_path: Path, depth: int
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(100)))
    data = {"type": "files", "train": str(prompts), "validation": {"share": 0.3, "seed": 5}}
    first, _ = trained(http, store, state_dir, policy={"model": "someone/model"}, data=data)
    parent = first
    if depth == 2:  # not from a policy that the fork itself has trained
        (new,) = forked(http, first, checkpoint=1)["data"]
        parent, lease = new["id"], claim(store, new["id"])
        root = state_dir / "jobs" / parent / "checkpoints"
        path, manifest = write_checkpoint(root, step=0, fence=lease.fence, fill=fill(0))
        store.register_checkpoint(lease, step=0, path=str(path), digest=manifest.digest)
    for share in ({"share": 0.5}, {"seed": 6}):
        body = {"checkpoint": "latest", "changes": {"data": {"validation": share}}}
        error = assert_error(http.post(f"/v1/jobs/{parent}/fork", json=body), 422)
        assert error["param"] == "changes.data.validation"
        assert f"{first} was trained on prompts that this share holds back; keep its share" in error["message"]
    forked(http, parent, checkpoint="latest", changes={"data": {"validation": {"share": 0.2}}})


def test_a_fork_of_a_fork_names_its_own_parent(http: httpx.Client, store: JobStore, state_dir: Path) -> None:
    parent, _ = trained(http, store, state_dir, metadata={"team": "x", "equipoise.parent": "job-z"})
    (new,) = forked(http, parent, checkpoint=1, changes={"metadata": {"run": "2"}})["data"]
    spec = http.get(f"/v1/jobs/{new['id']}").json()["spec"]
    assert spec["metadata"] == {"team": "x", "run": "2", "equipoise.parent": "job-z"}
    (newest,) = forked(http, parent, checkpoint=2)["data"]
    assert newest["lineage"] == {"parent": parent, "step": 2}


def test_a_lineage_can_not_be_forged(http: httpx.Client, parent: str) -> None:
    job_id = submitted(http, metadata={"equipoise.parent": parent, "equipoise.parent_step": "1"})
    assert http.get(f"/v1/jobs/{job_id}").json()["lineage"] is None
    assert compare(http, parent, job_id)["data"][1]["lineage"] is None
    answer = http.post("/v1/jobs", json={**SPEC, "lineage": {"parent": parent, "step": 1}})
    assert assert_error(answer, 422)["param"] == "lineage"


def test_a_disk_that_is_full_when_a_key_comes_again_costs_no_job_its_policy(
    http: httpx.Client, store: JobStore, state_dir: Path, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server died before the second job, and before its answer."""
    key, body = uuid.uuid4().hex, {"checkpoint": 1, "sweep": [OTHER] * 2}
    first, second = [job["id"] for job in forked(http, parent, key, **body)["data"]]
    shutil.rmtree(state_dir / "jobs" / second)
    plan = plan_path(state_dir, store.owner, parent, key)
    (answer,) = plan.parent.glob(f"{plan.stem}-*.json")
    answer.unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(shutil, "copy2", full)
    response = http.post(f"/v1/jobs/{parent}/fork", json=body, headers={"idempotency-key": key})
    assert assert_error(response, 507)["code"] == "storage_full"
    assert (state_dir / "jobs" / first / "init" / "config.json").is_file()
    assert store.job(first).origin == Origin(parent=parent, step=1)


def test_a_full_disk_says_so_and_leaves_nothing(
    http: httpx.Client, state_dir: Path, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before, folders = count(http), sorted((state_dir / "jobs").iterdir())
    monkeypatch.setattr(shutil, "copy2", full)
    error = assert_error(http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": 2}), 507)
    assert error["code"] == "storage_full"
    assert count(http) == before
    assert sorted((state_dir / "jobs").iterdir()) == folders


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({}, "checkpoint"),
    "unknown word": ({"checkpoint": "newest"}, "checkpoint"),
    "text for a step": ({"checkpoint": "2"}, "checkpoint"),
    "true for a step": ({"checkpoint": True}, "checkpoint"),
    "unknown field": ({"checkpoint": 2, "step": 2}, "step"),
    "misspelt field": ({"checkpoint": 2, "wieghts": OTHER}, "wieghts"),
    "unknown objective": ({"checkpoint": 2, "weights": {"acuracy": 1, "conciseness": 1}}, "weights.acuracy"),
    "missing objective": ({"checkpoint": 2, "weights": {"accuracy": 1}}, "weights"),
    "no weight at all": ({"checkpoint": 2, "weights": {"accuracy": 0, "conciseness": 0}}, "weights"),
    "one wrong of two": ({"checkpoint": 2, "sweep": [OTHER, {"accuracy": 1}]}, "sweep.1"),
    "empty sweep": ({"checkpoint": 2, "sweep": []}, "sweep"),
    "33 vectors": ({"checkpoint": 2, "sweep": [OTHER] * 33}, "sweep"),
    "both": ({"checkpoint": 2, "sweep": [OTHER], "weights": OTHER}, "sweep"),
    "other start": ({"checkpoint": 2, "changes": {"init_checkpoint": "/x"}}, "changes.init_checkpoint"),
    "on with weights": ({"checkpoint": "latest", "steps": 9, "weights": OTHER}, "weights"),
    "on with changes": ({"checkpoint": "latest", "steps": 9, "changes": {"seed": 1}}, "changes"),
    "on from an older step": ({"checkpoint": 2, "steps": 9}, "checkpoint"),
    "on to where it is": ({"checkpoint": "latest", "steps": 3}, "steps"),
    "wrong change": ({"checkpoint": 2, "changes": {"steps": 0}}, "steps"),
    "unknown change": ({"checkpoint": 2, "changes": {"stps": 1}}, "stps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_makes_nothing(
    http: httpx.Client, state_dir: Path, parent: str, case: str
) -> None:
    body, param = REFUSED[case]
    before, folders = count(http), len(list((state_dir / "jobs").iterdir()))
    error = assert_error(http.post(f"/v1/jobs/{parent}/fork", json=body), 422)
    assert error["param"] == param
    assert count(http) == before
    assert len(list((state_dir / "jobs").iterdir())) == folders


def test_a_checkpoint_that_is_not_there(http: httpx.Client, store: JobStore, parent: str) -> None:
    path = f"/v1/jobs/{parent}/fork"
    assert "kept steps: 1, 2, 3" in assert_error(http.post(path, json={"checkpoint": 0}), 404)["message"]
    assert assert_error(http.post(path, json={"checkpoint": 4}), 425)["code"] == "checkpoint_not_ready"
    early = submitted(http)
    for wanted in ("latest", "best", 1):
        assert_error(http.post(f"/v1/jobs/{early}/fork", json={"checkpoint": wanted}), 425)
    store.request_cancel(early)
    assert_error(http.post(f"/v1/jobs/{early}/fork", json={"checkpoint": "latest"}), 404)
    assert_error(http.post("/v1/jobs/job-0/fork", json={"checkpoint": 1}), 404)


def test_a_damaged_checkpoint_makes_no_job(http: httpx.Client, state_dir: Path, parent: str) -> None:
    (state_dir / "jobs" / parent / "checkpoints" / "step-000002" / "policy" / "config.json").write_text("{ }")
    before, folders = count(http), sorted((state_dir / "jobs").iterdir())
    error = assert_error(http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": 2, "sweep": [OTHER] * 3}), 409)
    assert (error["code"], error["param"]) == ("checkpoint_unusable", "checkpoint")
    assert count(http) == before
    assert sorted((state_dir / "jobs").iterdir()) == folders


def test_a_server_that_lacks_the_directory_takes_the_store_s_copy(
    store: JobStore, tmp_path: Path, http: httpx.Client
) -> None:
    url = f"file://{tmp_path}/store"
    job_id = submitted(http)
    lease = claim(store, job_id)
    store.commit(lease, step=1, digest="1", record=step_record())
    trainer = CheckpointStore(tmp_path / "trainer", Remote(url, store.owner, job_id))
    path, manifest = trainer.write(step=1, fence=lease.fence, fill=fill(1))
    store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)
    shutil.rmtree(tmp_path / "trainer")
    server = ApiServer("127.0.0.1", 0)
    settings = Settings(state_dir=tmp_path / "api", key_sha256=digest(KEY), local_exports=True, checkpoint_store=url)
    server.start(store, settings)
    try:
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as there:
            (made,) = forked(there, job_id, "a-key", checkpoint=1)["data"]
            target = tmp_path / "exported"
            answer = there.post(f"/v1/jobs/{job_id}/checkpoints/1/export", json={"to": str(target)})
            assert answer.status_code == 200, answer.text
            shutil.rmtree(tmp_path / "store")
            shutil.rmtree(tmp_path / "api" / "jobs" / job_id)
            (again,) = forked(there, job_id, "a-key", checkpoint=1)["data"]  # what was made needs no store
            assert again["id"] == made["id"]
            assert_error(there.post(f"/v1/jobs/{job_id}/fork", json={"checkpoint": 1}), 409)
    finally:
        server.stop()
    init = tmp_path / "api" / "jobs" / made["id"] / "init"
    for folder in (init, target):
        assert (folder / "model.safetensors").read_text() == "weights of step 1"


# -- a run that goes on ---------------------------------------------------------------------------------------


def whole(directory: Path) -> None:
    fill(3)(directory)
    (directory / "learner.safetensors").write_text("moments")
    (directory / "state.json").write_text(json.dumps({"collector": {"references": "sum"}}))


def ended(http: httpx.Client, store: JobStore, state_dir: Path, **changes: Any) -> str:
    """Two checkpoints of the front, of which the first is of the policy alone, and the last step's."""
    job_id, lease = trained(http, store, state_dir, **changes)
    directory = state_dir / "jobs" / job_id
    (directory / "references.jsonl").write_text("{}\n")
    (directory / "data").mkdir()
    (directory / "data" / "0-1.jsonl").write_text("{}\n")
    shutil.rmtree(directory / "checkpoints" / "step-000003")
    path, manifest = write_checkpoint(directory / "checkpoints", step=3, fence=lease.fence, fill=whole)
    store.register_checkpoint(lease, step=3, path=str(path), digest=manifest.digest)
    store.finish(lease, JobStatus.SUCCEEDED, None)
    return job_id


@pytest.mark.parametrize("start", [None, "init", "elsewhere"])
def test_a_job_that_has_ended_goes_on_in_a_new_one(
    http: httpx.Client, store: JobStore, state_dir: Path, tmp_path: Path, start: str | None
) -> None:
    """With its own state at the newest checkpoint, and where a fork's or its own first policy was, with that."""
    if start == "elsewhere":
        fill(0)(tmp_path)
        parent = ended(http, store, state_dir, init_checkpoint=str(tmp_path / "policy"))
    else:
        parent = ended(http, store, state_dir)
    if start == "init":  # a fork that was never deleted, as its driver knows it
        spec = json.loads(store.spec(parent)) | {"init_checkpoint": str(state_dir / "jobs" / parent / "init")}
        shutil.copytree(state_dir / "jobs" / parent / "checkpoints/step-000001/policy", spec["init_checkpoint"])
        store.calls.command("SET", Keys(store.owner).spec(parent), json.dumps(spec))
    answer = assert_error(http.post(f"/v1/jobs/{parent}/resume"), 409)
    assert f"a job that is succeeded stays so: `equipoise fork {parent} --steps N` goes on" in answer["message"]
    made = forked(http, parent, checkpoint="latest", steps=9)
    assert made["lineage"] == {"parent": parent, "step": 3}
    (new,) = made["data"]
    shutil.rmtree(state_dir / "jobs" / parent)
    spec = http.get(f"/v1/jobs/{new['id']}").json()["spec"]
    directory = state_dir / "jobs" / new["id"]
    inits = {None: None, "init": str(directory / "init"), "elsewhere": str(tmp_path / "policy")}
    assert (spec["steps"], spec["name"], spec["init_checkpoint"]) == (9, "a job to 9", inits[start])
    assert start != "init" or (directory / "init/model.safetensors").read_text() == "weights of step 1"

    found = CheckpointStore(directory / "checkpoints")
    lease = claim_job(store, new["id"], found)
    assert (lease.step, lease.lease and lease.lease.fence) == (3, 2)
    assert lease.lease is not None
    journal = StoreJournal(store, lease.lease, Wishes)
    find_registered(store, journal, lease, found)
    assert usable_checkpoint(store, journal, found) == 3
    assert (found.directory(3) / "learner.safetensors").read_text() == "moments"
    assert (directory / "references.jsonl").read_text() == "{}\n"
    assert (directory / "data" / "0-1.jsonl").read_text() == "{}\n", "what it fetched, or held of a dataset"
    assert [kept.step for kept in store.checkpoints(new["id"])] == [1, 2, 3]
    told = {event.type: event.data for event in store.events(new["id"]).items}
    assert told["job.continued"] == {"step": 3, "parent": parent}
    assert "job.recovered" not in told
    store.commit(lease.lease, step=4, digest="4", record=step_record())
    assert [step["step"] for step in store.steps(new["id"])] == [4]


def test_a_job_goes_on_with_what_new_ones_may_not_have(http: httpx.Client, store: JobStore, state_dir: Path) -> None:
    """As one that is resumed: a dataset that was deleted, which the job holds, and what is refused by now."""
    parent = ended(http, store, state_dir)
    data = {"type": "files", "train": "dataset:ds-000000000000", "validation": {"share": 0.1}}
    spec = json.loads(store.spec(parent)) | {"name": "as\u2028then", "data": data}
    spec["policy"]["model"] = "some/model"
    store.calls.command("SET", Keys(store.owner).spec(parent), json.dumps(spec))
    (new,) = forked(http, parent, checkpoint="latest", steps=9)["data"]
    assert new["name"] == "as\u2028then to 9"
    refused = http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": "latest", "steps": 9, "name": "as\u2028then"})
    assert assert_error(refused, 422)["param"] == "name"


@pytest.mark.parametrize("why", ["the learner is gone", "a later version wrote it"])
def test_a_run_that_can_not_be_read_does_not_go_on(
    http: httpx.Client, store: JobStore, state_dir: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    parent = ended(http, store, state_dir)
    if why == "the learner is gone":
        keep_policy(state_dir / "jobs" / parent / "checkpoints" / "step-000003")
        told = "its files are gone or damaged"
    else:
        monkeypatch.setattr("orchestrator.storage.checkpoints.STATE_FORMAT", -1)
        told = "step 3 was written by a later version, whose state this one can't read; go on with that version, or"
    before = sorted((state_dir / "jobs").iterdir())
    error = assert_error(http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": "latest", "steps": 9}), 409)
    assert (error["code"], error["param"]) == ("checkpoint_unusable", "checkpoint")
    assert told in error["message"]
    assert sorted((state_dir / "jobs").iterdir()) == before


# -- one key, one set ---------------------------------------------------------------------------------------


def test_one_key_makes_one_set_whoever_asks_and_however_often(http: httpx.Client, parent: str) -> None:
    key, before = uuid.uuid4().hex, count(http)

    def ask(_: int) -> dict[str, Any]:
        while True:
            body = {"checkpoint": "latest", "sweep": [OTHER] * 3}
            response = http.post(f"/v1/jobs/{parent}/fork", json=body, headers={"idempotency-key": key})
            if response.status_code == 201:
                return dict(response.json())
            assert assert_error(response, 429)["code"] == "busy"  # two of an owner at once
            assert response.headers["retry-after"] == "5"
            time.sleep(0.02)

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(ask, range(6)))
    ids = [[job["id"] for job in made["data"]] for made in found]
    assert all(made == ids[0] for made in ids)
    assert count(http) == before + 3
    response = http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": 1}, headers={"idempotency-key": key})
    assert assert_error(response, 409)["code"] == "idempotency_conflict"


def test_a_replay_keeps_the_step_although_a_later_one_came(
    http: httpx.Client, store: JobStore, state_dir: Path
) -> None:
    parent, lease = trained(http, store, state_dir)
    key = uuid.uuid4().hex
    first = forked(http, parent, key, checkpoint="latest")
    store.commit(lease, step=4, digest="4", record=step_record())
    root = state_dir / "jobs" / parent / "checkpoints"
    path, manifest = write_checkpoint(root, step=4, fence=lease.fence, fill=fill(4))
    store.register_checkpoint(lease, step=4, path=str(path), digest=manifest.digest)
    headers = {"idempotency-key": key}
    again = http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": "latest"}, headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert [job["id"] for job in again.json()["data"]] == [job["id"] for job in first["data"]]
    assert forked(http, parent, checkpoint="latest")["lineage"]["step"] == 4


def test_a_replay_is_the_first_answer_to_the_byte_for_a_day(
    http: httpx.Client, store: JobStore, state_dir: Path
) -> None:
    """Of the whole sweep, although a job of it has gone on and the checkpoint is gone."""
    parent, _ = trained(http, store, state_dir)
    key, body = uuid.uuid4().hex, {"checkpoint": 1, "sweep": [OTHER] * 2}

    def ask() -> httpx.Response:
        return http.post(f"/v1/jobs/{parent}/fork", json=body, headers={"idempotency-key": key})

    first = ask()
    made = [job["id"] for job in first.json()["data"]]
    store.request_cancel(made[0])
    assert store.job(made[0]).status is JobStatus.CANCELLED
    shutil.rmtree(state_dir / "jobs" / parent)
    again = ask()
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert [first.headers["idempotent-replayed"], again.headers["idempotent-replayed"]] == ["false", "true"]

    os.utime(plan_path(state_dir, store.owner, parent, key), (0, 0))  # a day later
    assert_error(ask(), 422)  # a new request, and there is nothing to start from


def test_who_asks_again_gets_what_was_missing(http: httpx.Client, store: JobStore, state_dir: Path) -> None:
    """The server died when the first of three jobs was queued."""
    parent, _ = trained(http, store, state_dir)
    key, body = uuid.uuid4().hex, {"checkpoint": 1, "sweep": [OTHER] * 3}
    made = forked(http, parent, key, **body)["data"]
    path = plan_path(state_dir, store.owner, parent, key)
    plan = json.loads(path.read_text())
    missing = [f"job-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    for job, new in zip(plan["jobs"][1:], missing, strict=True):
        job["spec"] = job["spec"].replace(job["id"], new)
        job["id"] = new
    path.write_text(json.dumps(plan))
    again = forked(http, parent, key, **body)["data"]
    assert [job["id"] for job in again] == [made[0]["id"], *missing]
    for new in missing:
        spec = http.get(f"/v1/jobs/{new}").json()["spec"]
        assert (Path(spec["init_checkpoint"]) / "config.json").is_file()


def test_a_sweep_above_the_quota_copies_nothing(redis_url: str, tmp_path: Path) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"quota-{uuid.uuid4().hex}")
        with (
            serving(store, tmp_path, limits=Limits(active_jobs_local=3)) as server,
            httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
        ):
            parent, _ = trained(http, store, tmp_path)
            before = sorted((tmp_path / "jobs").iterdir())
            (tmp_path / "jobs" / parent / "checkpoints" / "step-000001" / "policy" / "config.json").write_text("{ }")
            for body in ({"checkpoint": 1, "sweep": [OTHER] * 3}, {"checkpoint": 2, "sweep": [OTHER] * 3}):
                response = http.post(f"/v1/jobs/{parent}/fork", json=body)
                assert assert_error(response, 429)["code"] == "too_many_jobs"
                assert response.headers["retry-after"]
            assert count(http) == 1
            assert sorted((tmp_path / "jobs").iterdir()) == before
            assert len(forked(http, parent, checkpoint=2, sweep=[OTHER] * 2)["data"]) == 2


def test_a_fork_beyond_the_jobs_that_are_kept_leaves_no_copy(redis_url: str, tmp_path: Path) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"kept-{uuid.uuid4().hex}")
        with (
            serving(store, tmp_path, limits=Limits(kept_jobs_local=1)) as server,
            httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
        ):
            parent, _ = trained(http, store, tmp_path)
            before = sorted((tmp_path / "jobs").iterdir())
            response = http.post(f"/v1/jobs/{parent}/fork", json={"checkpoint": 2})
            assert assert_error(response, 429)["code"] == "too_many_kept_jobs"
            assert sorted((tmp_path / "jobs").iterdir()) == before


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("limit", ["jobs", "bytes"])
def test_a_sweep_beyond_what_is_kept_makes_none_or_says_which(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, meanwhile: bool
) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"kept-{uuid.uuid4().hex}")
        with (
            serving(store, tmp_path) as server,
            httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
        ):
            parent, _ = trained(http, store, tmp_path)
            one = int(client.hget(Keys(store.owner).kept, "bytes"))
            limits = {"kept_bytes_local": one * 7 // 2} if limit == "bytes" else {"kept_jobs_local": 3}
            before = sorted((tmp_path / "jobs").iterdir())
            path, body = f"/v1/jobs/{parent}/fork", {"checkpoint": 2, "sweep": [OTHER] * 3}
            if meanwhile:  # as it was when it was asked
                monkeypatch.setattr(Census, "kept", lambda _: (0, 0))
            with serving(store, tmp_path, limits=Limits(**limits)) as limited:
                error = assert_error(http.post(f"{limited.url}{path}", json=body), 429)
        assert error["code"] == "too_many_kept_jobs"
        made = [job.job_id for job in store.jobs().items if job.job_id != parent]
        assert len(made) == (2 if meanwhile else 0)
        assert error["message"].count("job-") == len(made)
        assert all(job_id in error["message"] for job_id in made)
        assert len(sorted((tmp_path / "jobs").iterdir())) == len(before) + len(made)


def test_a_quota_that_others_fill_meanwhile_stops_a_sweep_and_a_later_try_goes_on(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Census, "active", lambda _: 0)  # as it was when it was asked
    client = connect(redis_url)
    store = JobStore(client, owner=f"quota-{uuid.uuid4().hex}")
    headers = {"authorization": f"Bearer {KEY}", "idempotency-key": "k"}
    with (
        serving(store, tmp_path, limits=Limits(active_jobs_local=3)) as server,
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
    ):
        parent, _ = trained(http, store, tmp_path)
        path, body = f"/v1/jobs/{parent}/fork", {"checkpoint": 1, "sweep": [OTHER] * 3}
        assert assert_error(http.post(path, json=body, headers=headers), 429)["message"].count("job-") == 2
        store.request_cancel(http.get("/v1/jobs").json()["data"][0]["id"])
        assert len(http.post(path, json=body, headers=headers).json()["data"]) == 3
        assert count(http) == 4
    client.close()


# -- one of the front ---------------------------------------------------------------------------------------


def test_a_point_is_picked_by_conditions(http: httpx.Client, store: JobStore) -> None:
    job_id = with_front(http, store, (0.9, 0.1), (0.8, 0.4), (0.3, 0.9))
    path = f"/v1/jobs/{job_id}/front"
    assert "picked" not in http.get(path).json()
    for query, step in (
        ({"require": "accuracy>=0.8", "by": "conciseness"}, 1),
        ({"by": "weights"}, 1),  # .6 to .4
        ({"require": "accuracy<=0.7"}, 2),
    ):
        assert http.get(path, params=query).json()["picked"]["step"] == step
    assert http.get(path, params={"require": "accuracy>=0.95"}).json()["picked"] is None
    for query, message in (
        ({"require": "accuracy>0.8"}, "require: 'accuracy>0.8': expected NAME>=VALUE or NAME<=VALUE"),
        ({"by": "acuracy"}, "by: no objective 'acuracy', did you mean 'accuracy'?, or weights"),
    ):
        assert message in assert_error(http.get(path, params=query), 422)["message"]
    assert http.get(f"/v1/jobs/{submitted(http)}/front", params={"by": "weights"}).json()["picked"] is None


# -- side by side -------------------------------------------------------------------------------------------


def with_front(http: httpx.Client, store: JobStore, *points: tuple[float, float], **changes: Any) -> str:
    job_id = submitted(http, **changes)
    found = {i: {"accuracy": a, "conciseness": b} for i, (a, b) in enumerate(points)}
    lease = claim(store, job_id)
    for step in range(1, len(points)):
        store.commit(lease, step=step, digest=str(step), record=step_record())
    store.set_front(lease, front(found))
    return job_id


def compare(http: httpx.Client, *ids: str) -> dict[str, Any]:
    response = http.get("/v1/jobs/compare", params={"ids": ",".join(ids)})
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_fronts_side_by_side_and_what_each_adds(http: httpx.Client, store: JobStore) -> None:
    wide = with_front(http, store, (0.8, 0.2), (0.1, 0.1))
    tall = with_front(http, store, (0.2, 0.8))
    inner = with_front(http, store, (0.1, 0.5))
    empty = submitted(http)
    found = compare(http, wide, tall, inner, empty, wide)
    assert found["comparable"] is True
    assert found["hypervolume"] == pytest.approx(0.16 + 0.16 - 0.04)
    jobs = {job["id"]: job for job in found["data"]}
    assert list(jobs) == [wide, tall, inner, empty]
    assert [jobs[job]["hypervolume"] for job in (wide, tall, inner, empty)] == pytest.approx([0.16, 0.16, 0.05, 0.0])
    assert [jobs[job]["adds"] for job in (wide, tall, inner, empty)] == pytest.approx([0.12, 0.09, 0.0, 0.0])
    assert [point["step"] for point in jobs[wide]["front"]] == [0]
    assert [(point["job"], point["step"]) for point in found["front"]] == [(wide, 0), (tall, 0)]


def test_other_ranges_or_objectives_have_no_common_scale(http: httpx.Client, store: JobStore) -> None:
    one = with_front(http, store, (0.8, 0.2))
    wider = [{**SPEC["objectives"][0], "range": [0, 2]}, SPEC["objectives"][1]]
    other = with_front(http, store, (0.8, 0.2), objectives=wider)
    found = compare(http, one, other)
    assert (found["comparable"], found["hypervolume"], found["front"]) == (False, None, None)
    assert found["differences"] == [f"accuracy: {one} and {other} measure it on other ranges or from another reference"]
    assert found["data"][0]["hypervolume"] == 0.1
    alone = with_front(http, store, objectives=SPEC["objectives"][:1])
    assert "other objectives" in compare(http, one, alone)["differences"][0]


def test_what_was_measured_differently_is_said_of_fronts_on_one_scale(http: httpx.Client, store: JobStore) -> None:
    one, same = with_front(http, store, (0.8, 0.2)), with_front(http, store, (0.7, 0.2))
    alike = compare(http, one, same)
    assert (alike["measured_differently"], alike["set_differently"]) == ([], [])
    gate = {"objective": "accuracy", "at_least": 1.0}
    objectives = [
        {**SPEC["objectives"][0], "reward": {"name": "numeric"}},
        {**SPEC["objectives"][1], "gate": gate},
    ]
    changes = {"evaluation": {"temperature": 0, "prompts": 10}, "data": {**SPEC["data"], "validation": 20}}
    other = with_front(http, store, (0.9, 0.1), objectives=objectives, **changes)
    found = compare(http, one, other)
    assert found["comparable"] is True
    assert found["measured_differently"] == [
        f"accuracy.reward: math in {one}, numeric in {other}",
        f"conciseness.gate: not the same in {one} and {other}",
        f"evaluation.temperature: 1.0 in {one}, 0.0 in {other}",
        f"evaluation.prompts: none in {one}, 10 in {other}",
        f"data.validation: {one} and {other} have other prompts, or read them differently",
    ]
    assert not set(found["measured_differently"]) & set(found["set_differently"])
    assert [line for line in found["set_differently"] if line.startswith("data.validation: ")] != []


def test_what_is_trained_towards_other_directions_has_no_common_scale(http: httpx.Client, store: JobStore) -> None:
    below = [SPEC["objectives"][0], {**SPEC["objectives"][1], "target": {"op": "<=", "value": 0.4}}]
    one = with_front(http, store, (0.8, 0.2), (0.8, 0.6), objectives=below, weighting={"name": "lagrangian"})
    other = with_front(http, store, (0.8, 0.2))
    assert compare(http, one, other)["differences"] == [
        f"conciseness: {one} and {other} do not train it towards the same: smaller is better in the one, larger in the "
        "other"
    ]
    assert [point["step"] for point in compare(http, one)["front"]] == [0]
    assert compare(http, one)["hypervolume"] == pytest.approx(0.8 * 0.8)


def test_a_comparison_that_takes_long_is_refused(
    http: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_POINTS", 3)
    two = with_front(http, store, (0.8, 0.2), (0.2, 0.8), *[(0.1, 0.1)] * 5)  # what is dominated takes no time
    more = with_front(http, store, (0.3, 0.2), (0.2, 0.3))
    assert compare(http, two)["comparable"]
    answer = http.get("/v1/jobs/compare", params={"ids": f"{two},{more}"})
    assert assert_error(answer, 422)["code"] == "too_many_points"


def test_bad_comparisons(http: httpx.Client) -> None:
    assert_error(http.get("/v1/jobs/compare"), 422)
    assert_error(http.get("/v1/jobs/compare", params={"ids": ",".join(f"job-{i}" for i in range(33))}), 422)
    for ids in ("job-0", "a,,b", "..", "%00"):
        assert_error(http.get("/v1/jobs/compare", params={"ids": ids}), 404)


# -- the command line ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cli(http: httpx.Client, state_dir: Path, commands: Commands) -> Callable[..., tuple[int, str, str]]:
    write_credentials(state_dir, str(http.base_url).rstrip("/"), KEY)
    return partial(commands.run, state_dir, COLUMNS="200", NO_COLOR="1")


def test_fork_and_compare_from_a_terminal(
    http: httpx.Client, parent: str, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, made, errors = cli("fork", parent, "--at", "2", "--weights", "accuracy=.9", "--name", "a[b]c")
    assert code == 0, errors
    assert errors.strip().endswith(f"from step 2 of {parent}:")
    spec = http.get(f"/v1/jobs/{made.strip()}").json()["spec"]
    assert [objective["weight"] for objective in spec["objectives"]] == pytest.approx([0.9, 0.1])
    code, _, errors = cli("fork", parent, "--steps", "3")
    assert code != 0
    assert errors.strip().endswith("steps: the job's newest checkpoint is of step 3 already; expected more")

    sweep, changes = tmp_path / "sweep.yaml", tmp_path / "changes.yaml"
    sweep.write_text("- {accuracy: 1, conciseness: 1}\n- {accuracy: 3, conciseness: 1}\n")
    changes.write_text("steps: 7\n")
    words = ("fork", parent, "--at", "best", "--sweep", str(sweep), "--changes", str(changes), "--json")
    code, text, errors = cli(*words)
    assert code == 0, errors
    assert [job["lineage"]["step"] for job in json.loads(text)["data"]] == [1, 1]

    code, text, errors = cli("fork", parent, "--at", "accuracy>=0.1 by conciseness", "--json")
    assert code == 0, errors
    assert json.loads(text)["data"][0]["lineage"]["step"] == 2
    assert "step 2: accuracy" in errors

    code, table, errors = cli("compare", parent, made.strip())
    assert code == 0, errors
    assert f"{parent} at 2" in table
    assert "a[b]c" in table
    assert json.loads(cli("compare", parent, made.strip(), "--json")[1])["comparable"] is True


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--weights", "acuracy=1"), "--weights: no objective 'acuracy', did you mean 'accuracy'?"),
        (("--sweep", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--at", "newest"), "checkpoint: expected a step, 'latest' or 'best'"),
        (("--at", "99"), "there is no checkpoint of step 99 yet"),
    ],
)
def test_a_fork_that_cannot_be_is_one_line(
    parent: str, cli: Callable[..., tuple[int, str, str]], words: tuple[str, ...], line: str
) -> None:
    code, output, errors = cli("fork", parent, *words)
    assert code != 0
    assert output == ""
    assert line in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("route", "body"), [("fork", {"checkpoint": "latest"}), ("steering/preview", {"mode": "manual"})]
)
def test_a_job_of_another_version_is_told_from_a_wrong_request(
    http: httpx.Client, store: JobStore, parent: str, monkeypatch: pytest.MonkeyPatch, route: str, body: dict[str, Any]
) -> None:
    document = json.loads(store.spec(parent)) | {"weighting": {"name": "invented"}}
    monkeypatch.setattr(JobStore, "spec", lambda *_: json.dumps(document))
    head = store.steering_head(parent)
    monkeypatch.setattr(JobStore, "spec_and_steering", lambda *_: (json.dumps(document), head))
    response = http.post(f"/v1/jobs/{parent}/{route}", json=body)
    error = assert_error(response, 409)
    assert (error["code"], error["param"]) == ("other_version", None)
    assert "weighting.name: expected one of" in error["message"]
