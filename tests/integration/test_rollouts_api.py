"""Kept rollouts and the preview of a steer over HTTP, on a real Redis and real files."""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.journal import StoreJournal, Wishes
from orchestrator.rollouts.samples import FOLDER, shard
from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore, Lease, steering_at
from orchestrator.steering import Steering, apply_steering
from services.client import Client
from tests.api_support import KEY, SPEC, assert_error, claim, serving, step_record


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"rollouts-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rollouts")


@pytest.fixture(scope="module")
def http(store: JobStore, state_dir: Path) -> Iterator[httpx.Client]:
    with (
        serving(store, state_dir) as server,
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http,
    ):
        yield http


def rows(step: int, values: list[tuple[float | None, float]]) -> list[dict[str, Any]]:
    """Groups of two."""
    return [
        {
            "step": step,
            "fence": 1,
            "policy_version": step - 1,
            "steering_version": 1,
            "group": i // 2,
            "prompt_index": 10 + i // 2,
            "prompt": f"question {i // 2}",
            "completion": f"answer {i}",
            "tokens": 9 - i,
            "truncated": False,
            "rewards": {"accuracy": accuracy, "conciseness": conciseness},
            "signal": {"accuracy": accuracy, "conciseness": conciseness},
            "scales": {"accuracy": 1.0, "conciseness": 1.0},
            "choice": {"weights": [0.6, 0.4], "signs": None, "directions": None, "reward_scale": 1.0},
            "advantage": (i % 2) - 0.5,
        }
        for i, (accuracy, conciseness) in enumerate(values)
    ]


VALUES: list[tuple[float | None, float]] = [(1.0, 0.0), (0.0, 0.9), (1.0, 1.0), (None, 0.0)]


def running(http: httpx.Client, store: JobStore, spec: dict[str, Any] = SPEC, steps: int = 0) -> tuple[str, Lease]:
    job_id = str(http.post("/v1/jobs", json=spec).json()["id"])
    lease = claim(store, job_id)
    for step in range(1, steps + 1):
        store.commit(lease, step=step, digest=str(step), record=step_record())
    return job_id, lease


def keep(state_dir: Path, job_id: str, step: int, values: list[tuple[float | None, float]] = VALUES) -> None:
    directory = state_dir / "jobs" / job_id / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    shard(directory, step).write_text("".join(json.dumps(row) + "\n" for row in rows(step, values)))


@pytest.fixture(scope="module")
def job_id(http: httpx.Client, store: JobStore, state_dir: Path) -> str:
    """Two steps are committed; a crash undid a third."""
    job_id, _ = running(http, store, steps=2)
    for step in (1, 2, 3):
        keep(state_dir, job_id, step)
    return job_id


def numbers(http: httpx.Client, job_id: str, **params: Any) -> list[int]:
    response = http.get(f"/v1/jobs/{job_id}/rollouts", params=params)
    assert response.status_code == 200, response.text
    return [row["number"] for row in response.json()["data"]]


def test_the_latest_kept_step_that_counts(http: httpx.Client, job_id: str) -> None:
    found = http.get(f"/v1/jobs/{job_id}/rollouts").json()
    assert (found["step"], found["total"], found["has_more"]) == (2, 4, False)
    first = found["data"][0]
    assert (first["object"], first["number"], first["prompt"], first["completion"]) == (
        "rollout",
        1,
        "question 0",
        "answer 0",
    )
    assert first["rewards"] == {"accuracy": 1.0, "conciseness": 0.0}
    assert (first["policy_version"], first["steering_version"], first["advantage"]) == (1, 1, -0.5)
    assert not first.keys() & {"fence", "scales", "choice"}
    assert http.get(f"/v1/jobs/{job_id}/rollouts", params={"step": 1}).json()["step"] == 1


def test_an_objective_that_is_called_as_a_field_is_sorted_by(
    http: httpx.Client, store: JobStore, state_dir: Path
) -> None:
    names = ("tokens", "conciseness")
    renamed = [{**objective, "name": name} for objective, name in zip(SPEC["objectives"], names, strict=True)]
    job_id, _ = running(http, store, {**SPEC, "objectives": renamed}, steps=1)
    keep(state_dir, job_id, 1)
    kept = shard(state_dir / "jobs" / job_id / FOLDER, 1)
    kept.write_text(kept.read_text().replace('"accuracy"', '"tokens"'))
    assert numbers(http, job_id, sort="tokens") == [2, 1, 3, 4]  # as above; their lengths are 9, 8, 7, 6


def test_sorted_either_way_with_what_was_not_measured_last(http: httpx.Client, job_id: str) -> None:
    assert numbers(http, job_id) == [1, 2, 3, 4]
    assert numbers(http, job_id, sort="accuracy") == [2, 1, 3, 4]
    assert numbers(http, job_id, sort="-accuracy") == [1, 3, 2, 4]
    assert numbers(http, job_id, sort="-conciseness") == [3, 2, 1, 4]
    assert numbers(http, job_id, sort="-advantage") == [2, 4, 1, 3]
    assert numbers(http, job_id, sort="tokens") == [4, 3, 2, 1]


def test_pages_follow_the_order(http: httpx.Client, job_id: str) -> None:
    pages = [numbers(http, job_id, sort="tokens", limit=3, after=after) for after in (0, 3, 6)]
    assert pages == [[4, 3, 2], [1], []]
    path = f"/v1/jobs/{job_id}/rollouts"
    assert http.get(path, params={"limit": 3}).json()["has_more"] is True


def test_what_is_not_there_or_not_understood(http: httpx.Client, job_id: str) -> None:
    path = f"/v1/jobs/{job_id}/rollouts"
    for step in (3, 99):
        assert assert_error(http.get(path, params={"step": step}), 404)["code"] == "not_found"
    for params in ({"sort": "acuracy"}, {"sort": ""}, {"sort": "--accuracy"}, {"step": 0}, {"limit": 0}, {"stp": 1}):
        assert assert_error(http.get(path, params=params), 422)["param"] == next(iter(params))
    assert_error(http.get("/v1/jobs/job-0/rollouts"), 404)


def test_a_job_without_rollouts_has_an_empty_list(http: httpx.Client, store: JobStore) -> None:
    job_id, _ = running(http, store)
    found = http.get(f"/v1/jobs/{job_id}/rollouts").json()
    assert (found["data"], found["step"], found["total"]) == ([], None, 0)


# -- preview ------------------------------------------------------------------------------------------------


def test_a_server_without_torch_says_that_it_has_no_previews(
    http: httpx.Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it is a ModuleNotFoundError
    refused = http.post(f"/v1/jobs/{job_id}/steering/preview", json={"mode": "manual"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (501, "no_previews")


def test_a_preview_says_what_would_change_and_applies_nothing(http: httpx.Client, store: JobStore, job_id: str) -> None:
    path = f"/v1/jobs/{job_id}/steering"
    body = {"mode": "manual", "weights": {"accuracy": 1, "conciseness": 9}, "bounds": {"accuracy": [0.2, 1]}}
    response = http.post(f"{path}/preview", json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    assert (found["object"], found["step"], found["rollouts"]) == ("steering.preview", 2, 4)
    assert found["weights"]["before"] == {"accuracy": 0.6, "conciseness": 0.4}
    assert found["weights"]["after"] == pytest.approx({"accuracy": 0.2, "conciseness": 0.8})
    assert found["clamped"] == {"accuracy": True, "conciseness": False}
    assert [flip["number"] for flip in found["sign_changes"]["rollouts"]] == [1, 2]
    assert sum(found["effective_share"]["after"].values()) == pytest.approx(1)
    assert found["pairs"][0]["conflicting_share"] == 0.5
    assert http.get(path).json()["version"] == 1
    assert [event.type for event in store.events(job_id).items if event.type.startswith("steering")] == []


@pytest.mark.parametrize("body", [{}, {"weights": {"acuracy": 1}}, {"mode": "x"}, {"weights": {"accuracy": 1}}])
def test_a_preview_takes_what_a_steer_takes(http: httpx.Client, job_id: str, body: dict[str, Any]) -> None:
    path = f"/v1/jobs/{job_id}/steering"
    errors = [
        assert_error(http.request(*call, json=body), 422) for call in (("POST", f"{path}/preview"), ("PUT", path))
    ]
    assert errors[0] == errors[1]


def test_a_preview_without_rollouts_says_why(http: httpx.Client, store: JobStore) -> None:
    body = {"mode": "manual"}
    early, _ = running(http, store)
    response = http.post(f"/v1/jobs/{early}/steering/preview", json=body)
    assert assert_error(response, 425)["code"] == "no_rollouts_yet"
    over = str(http.post("/v1/jobs", json=SPEC).json()["id"])
    store.request_cancel(over)
    response = http.post(f"/v1/jobs/{over}/steering/preview", json=body)
    error = assert_error(response, 409)
    assert (error["code"], error["message"]) == ("no_rollouts", "this job has ended, and no rollouts of it are kept")
    never, _ = running(http, store, {**SPEC, "samples": {"every": 0}})
    response = http.post(f"/v1/jobs/{never}/steering/preview", json=body)
    assert assert_error(response, 409)["code"] == "no_rollouts"


# -- what became of a steer ---------------------------------------------------------------------------------


def test_the_event_of_a_steer_says_who_asked_and_comes_once(http: httpx.Client, store: JobStore) -> None:
    job_id, lease = running(http, store, steps=1)
    body = {"mode": "manual", "bounds": {"accuracy": [0.8, 1]}}
    effective = http.put(f"/v1/jobs/{job_id}/steering", json=body).json()["effective_step"]
    told = {"step": effective, "requested": body, "applied": {"accuracy": 0.8}, "clamped": {"accuracy": True}}
    for _ in range(3):  # as often as a crash makes the step run again
        StoreJournal(store, lease, Wishes).steered(version=2, **told)
    events = http.get(f"/v1/jobs/{job_id}/events").json()["data"]
    (event,) = [event["data"] for event in events if event["type"] == "steering.applied"]
    by = http.get(f"/v1/jobs/{job_id}/steering").json()["log"][1]["by"]
    assert by.startswith("key ")
    assert event == {**told, "version": 2, "by": by}


def test_the_log_gives_every_step_the_weights_that_it_had(http: httpx.Client, store: JobStore) -> None:
    job_id, lease = running(http, store)
    journal = StoreJournal(store, lease, Wishes)
    followed = {}
    for step in range(1, 9):
        version, steering = journal.steering(step)
        followed[step] = (version, apply_steering(steering, {"accuracy": 0.5, "conciseness": 0.5}))
        if step % 2:  # while the step is in flight
            body = {"mode": "manual", "weights": {"accuracy": step, "conciseness": 9 - step}}
            http.put(f"/v1/jobs/{job_id}/steering", json=body)
        record = step_record() | {"steering_version": version}
        store.commit(lease, step=step, digest=str(step), record=record)
    log = store.steering(job_id).log
    for record in store.steps(job_id):
        entry = steering_at(log, record["step"])
        assert entry is not None
        weights = apply_steering(Steering.model_validate(entry.state), {"accuracy": 0.5, "conciseness": 0.5})
        assert (entry.version, weights) == followed[record["step"]]
        assert entry.version == record["steering_version"]
    assert len({version for version, _ in followed.values()}) > 3


# -- jobs ---------------------------------------------------------------------------------------------------


def test_a_job_has_an_etag_that_follows_its_state(http: httpx.Client, store: JobStore) -> None:
    job_id, lease = running(http, store)
    path = f"/v1/jobs/{job_id}"
    etag = http.get(path).headers["etag"]
    same = http.get(path, headers={"if-none-match": f'"other", {etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    store.commit(lease, step=1, digest="1", record=step_record())
    changed = http.get(path, headers={"if-none-match": etag})
    assert (changed.status_code, changed.json()["step"]) == (200, 1)
    assert changed.headers["etag"] != etag


def test_jobs_are_found_by_their_metadata(http: httpx.Client) -> None:
    team = uuid.uuid4().hex
    made = []
    for i in range(5):
        spec = {**SPEC, "metadata": {"team": team, "even": str(i % 2 == 0)}}
        made.append(http.post("/v1/jobs", json=spec).json()["id"])

    def found(**params: Any) -> dict[str, Any]:
        response = http.get("/v1/jobs", params={"metadata[team]": team, **params})
        assert response.status_code == 200, response.text
        return dict(response.json())

    assert [job["id"] for job in found()["data"]] == made[::-1]
    assert [job["id"] for job in found(**{"metadata[even]": "True"})["data"]] == made[::-2]
    first = found(limit=2)
    rest = found(limit=3, after=first["data"][-1]["id"])
    assert [job["id"] for job in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert found(**{"metadata[none]": ""})["data"] == []
    assert_error(http.get("/v1/jobs", params={"metadata": "x"}), 422)


def test_the_client_reads_rollouts_and_previews(http: httpx.Client, job_id: str) -> None:
    with Client(str(http.base_url), KEY) as client:
        assert client.rollouts(job_id, sort="-accuracy", limit=1)["data"][0]["number"] == 1
        assert client.preview(job_id, mode="manual")["step"] == 2
