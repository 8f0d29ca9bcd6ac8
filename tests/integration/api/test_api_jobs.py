"""Jobs over HTTP: what may be submitted, once or again, how they are listed, and pause, resume and cancel."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest

from orchestrator.spec import JobSpec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, StepGap
from orchestrator.storage.recovery import keep_document
from orchestrator.webhooks.subscriptions import WebhookStore
from rewards.verifiers import json_schema
from services.api import jobs as jobs_api
from services.api import rules as rules_api
from services.client import ApiError, Client, Invalid, NotFound, types
from services.errors import spec_problem
from services.spec_checks import strict_spec
from tests.api_support import KEY, SPEC, assert_error, claim, serving
from tests.store_support import writes_under
from tests.support import make_policy

# -- submission ---------------------------------------------------------------------------------------------


def test_a_job_is_accepted_and_found_again(http: httpx.Client, client: Client) -> None:
    response = http.post("/v1/jobs", json=SPEC)
    assert response.status_code == 201
    job = client.job(response.json()["id"])
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["step"], job["total_steps"]) == ("queued", 0, 4)
    assert job["spec"]["estimator"] == {"name": "gdpo", "std_floor": job["spec"]["estimator"]["std_floor"]}
    assert "fence" not in job
    assert next(client.iter_jobs())["id"] == job["id"]
    by = job["submitted_by"]
    assert by == client.own_key()["name"]
    assert next(client.iter_jobs(submitted_by=by))["id"] == job["id"]
    assert list(client.iter_jobs(submitted_by="nobody")) == []


def test_the_clients_types_know_every_field_of_a_job(client: Client) -> None:
    job_id = client.submit(SPEC)["id"]
    assert {*get_type_hints(types.Job), "object"} == set(next(client.iter_jobs()))
    assert {*get_type_hints(types.JobDetail), "object"} == set(client.job(job_id))
    assert {*get_type_hints(types.Plan), "object"} == set(client.plan(SPEC))


def test_validate_only_says_what_would_run_and_stores_nothing(client: Client, tmp_path: Path) -> None:
    before = len(list(client.iter_jobs()))
    plan = client.plan(SPEC)
    assert plan["valid"] is True
    assert plan["rollouts"] == 4 * plan["rollouts_per_step"]
    assert plan["spec"]["optimizer"]["lr"] > 0
    assert plan["doubts"] == plan["judges"] == []
    (doubt,) = client.plan({**SPEC, "optimizer": {"warmup_steps": 99}})["doubts"]
    assert doubt["param"] == "optimizer.warmup_steps"
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "1+1, boxed", "answer": "2"}\n')
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    own = {**SPEC, "data": {"type": "files", **files}, "policy": {"model": str(make_policy(tmp_path / "policy"))}}
    (doubt,) = client.plan(own)["doubts"]
    assert doubt["param"] == "data.validation"
    assert doubt["message"].startswith("1 of its 1 prompts are trained on too")
    assert len(list(client.iter_jobs())) == before


def test_validate_only_says_what_it_would_take(http: httpx.Client, client: Client) -> None:
    estimate = client.plan(SPEC)["estimate"]
    assert estimate["parameters"] == 656_064
    assert estimate["disk"]["checkpoint_bytes"] == (2 + 12) * 656_064
    assert estimate["disk"]["free_bytes"] > 0
    on_gpus, on_cpu = estimate["layouts"]
    assert [(layout["device"], layout["gpus"], layout["fits"]) for layout in (on_gpus, on_cpu)] == [
        ("cuda", 2, True), ("cpu", 0, None),
    ]  # fmt: skip
    assert on_gpus["gpu_bytes"] == 48 * 2**30  # as this server is told
    for layout in (on_gpus, on_cpu):
        assert layout["bytes"] == sum(found["count"] * found["bytes"] for found in layout["processes"])
        assert all(sum(found["parts"].values()) == found["bytes"] for found in layout["processes"])

    (shared,) = client.plan(SPEC, gpus=1, gpu_gib=24)["estimate"]["layouts"]
    assert (shared["gpus"], shared["shared"], shared["gpu_bytes"]) == (1, True, 24 * 2**30)
    (small,) = client.plan(SPEC, gpus=0, memory_gib=2)["estimate"]["layouts"]
    assert (small["memory_bytes"], small["fits"], [found["about"] for found in small["problems"]]) == (
        2 * 2**30, False, ["memory"],
    )  # fmt: skip
    for wrong in ({"gpus": "-1"}, {"gpu_gib": "nan"}, {"gpu_gib": "0"}, {"gpu_gib": "1e999"}, {"memory_gib": "0"}):
        refused = http.post("/v1/jobs", json=SPEC, params={"validate_only": "true", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, next(iter(wrong)))
    for alone in ({"gpus": "2"}, {"gpus": "0"}, {"gpu_gib": "24"}, {"memory_gib": "2"}):
        (name,) = alone
        error = assert_error(http.post("/v1/jobs", json=SPEC, params=alone), 422)
        assert (error["param"], error["message"]) == (name, f"{name}: of a dry run; add validate_only=true")


def test_a_spec_error_names_the_field_and_the_nearest_name(http: httpx.Client) -> None:
    wrong = {**SPEC, "rollout": {"promts_per_step": 8}}
    error = assert_error(http.post("/v1/jobs", json=wrong), 422)
    assert error["param"] == "rollout.promts_per_step"
    assert error["message"] == "rollout.promts_per_step: unknown field, did you mean 'prompts_per_step'?"


def test_all_that_is_wrong_with_a_spec_is_in_one_answer(http: httpx.Client) -> None:
    error = assert_error(http.post("/v1/jobs", json={**SPEC, "steps": 0, "seed": -1}), 422)
    assert "steps: " in error["message"]
    assert "seed: " in error["message"]


def test_files_that_are_not_there_are_found_at_submission(http: httpx.Client) -> None:
    missing = {**SPEC, "init_checkpoint": "/no/such/checkpoint"}
    assert assert_error(http.post("/v1/jobs", json=missing), 422)["param"] == "init_checkpoint"


def test_one_idempotency_key_makes_one_job(client: Client) -> None:
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(8) as threads:
        ids = {job["id"] for job in threads.map(lambda _: submit_once(client.url, key), range(8))}
    assert len(ids) == 1
    with pytest.raises(ApiError) as caught:
        client.submit({**SPEC, "steps": 5}, idempotency_key=key)
    assert (caught.value.status, caught.value.code) == (409, "idempotency_conflict")


def submit_once(url: str, key: str) -> dict[str, Any]:
    with Client(url, KEY) as client:
        return client.submit(SPEC, idempotency_key=key)


def test_a_replay_says_so(http: httpx.Client) -> None:
    headers = {"idempotency-key": uuid.uuid4().hex}
    replayed = [http.post("/v1/jobs", json=SPEC, headers=headers).headers["idempotent-replayed"] for _ in range(2)]
    assert replayed == ["false", "true"]


def test_a_replay_is_the_first_answer_to_the_byte(http: httpx.Client, client: Client, tmp_path: Path) -> None:
    """Although the job has gone on, and its files are gone."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "answer": "1"}\n')
    data = {"type": "files", "train": str(rows), "validation": str(rows)}
    spec = {**SPEC, "data": data, "policy": {"model": "some/model"}}
    headers = {"idempotency-key": uuid.uuid4().hex}
    first = http.post("/v1/jobs", json=spec, headers=headers)
    assert first.status_code == 201
    client.cancel(first.json()["id"])
    rows.unlink()
    again = http.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert client.job(first.json()["id"])["status"] == "cancelled"
    changed = http.post("/v1/jobs", json={**spec, "steps": 5}, headers=headers)
    assert assert_error(changed, 409)["code"] == "idempotency_conflict"
    assert http.post("/v1/jobs", json=spec).status_code == 422


def other_default(document: Any) -> JobSpec | RewardJobSpec:
    spec = strict_spec(document)
    assert isinstance(spec, JobSpec)
    return spec.model_copy(update={"seed": spec.seed + 1})


def refusal(_: Any) -> JobSpec | RewardJobSpec:
    raise spec_problem([("steps", "a newer version does not take it")])


@pytest.mark.parametrize("newer", [other_default, refusal])
def test_a_retry_across_an_upgrade_makes_no_second_job(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, newer: Callable[[Any], JobSpec | RewardJobSpec]
) -> None:
    """A key stands for the body as it was sent, not for what this version makes of it."""
    headers = {"idempotency-key": uuid.uuid4().hex}
    first = http.post("/v1/jobs", json=SPEC, headers=headers)
    assert first.status_code == 201
    monkeypatch.setattr(jobs_api, "strict_spec", newer)
    reordered = dict(reversed(SPEC.items()))
    again = http.post("/v1/jobs", json=reordered, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"


def test_a_schema_that_waits_for_others_is_busy_and_not_refused(http: httpx.Client) -> None:
    options = {"json_schema": {"type": "object", "title": uuid.uuid4().hex}}
    reward = {"name": "json_schema", "options": options}
    spec = {**SPEC, "objectives": [{**SPEC["objectives"][0], "reward": reward}]}
    with json_schema._turn:  # held as by other submissions
        for path, body in (("/v1/jobs", spec), ("/v1/rewards/validate", reward)):
            answer = http.post(path, json=body)
            assert assert_error(answer, 503)["code"] == "busy"
            assert int(answer.headers["retry-after"]) > 0
    assert http.post("/v1/jobs", json=spec).status_code == 201


def test_a_key_that_an_earlier_version_kept_is_known(http: httpx.Client, store: JobStore) -> None:
    key, spec = uuid.uuid4().hex, strict_spec(SPEC)
    made = store.submit(spec.to_json(), name="a job", job_id=f"job-{key[:12]}", idempotency_key=key)
    again = http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": key})
    assert (again.status_code, again.json()["id"]) == (201, made.job_id)
    changed = http.post("/v1/jobs", json={**SPEC, "steps": 5}, headers={"idempotency-key": key})
    assert assert_error(changed, 409)["code"] == "idempotency_conflict"


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
def test_a_bad_idempotency_key_is_refused(http: httpx.Client, key: str) -> None:
    assert_error(http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": key}), 422)


# -- what waits and what is stopped -------------------------------------------------------------------------


def test_jobs_are_paged_newest_first(client: Client) -> None:
    made = [client.submit(SPEC)["id"] for _ in range(5)]
    first = client.jobs(limit=2)
    second = client.jobs(limit=2, after=first["data"][-1]["id"])
    assert [job["id"] for job in first["data"] + second["data"]] == made[:0:-1]
    assert first["has_more"] is True


def test_jobs_are_deleted_while_their_list_is_gone_through(client: Client) -> None:
    mark = {"of": "a clean-up"}
    made = [client.submit({**SPEC, "metadata": mark})["id"] for _ in range(5)]
    for job_id in made:
        client.cancel(job_id)
    deleted: list[str] = []
    after: str | None = None
    while True:
        page = client.jobs(limit=2, status="cancelled", metadata=mark, after=after)
        deleted += [client.delete_job(job["id"])["id"] for job in page["data"]]
        if (after := page["next_after"]) is None:
            break
    assert deleted == made[::-1]
    with pytest.raises(Invalid, match="a page's next_after holds"):
        client.jobs(after=made[0])


def test_a_priority_puts_a_job_before_its_owners_others(http: httpx.Client, client: Client, store: JobStore) -> None:
    first, urgent = client.submit(SPEC), client.submit({**SPEC, "priority": 3})
    assert (first["priority"], urgent["priority"]) == (0, 3)
    waiting = store.queued()
    assert waiting.index(urgent["id"]) < waiting.index(first["id"])
    client.pause(urgent["id"])
    client.resume(urgent["id"])
    assert store.queued() == waiting
    for wrong in (6, -6, 0.5, "3", True):
        error = assert_error(http.post("/v1/jobs", json={**SPEC, "priority": wrong}), 422)
        assert error["param"] == "priority"
    for job in (first, urgent):
        client.cancel(job["id"])


def test_pause_resume_cancel_follow_the_table(client: Client, job_id: str) -> None:
    assert client.pause(job_id)["status"] == "paused"
    assert client.resume(job_id)["status"] == "queued"
    assert client.cancel(job_id)["status"] == "cancelled"
    assert client.cancel(job_id)["status"] == "cancelled"
    with pytest.raises(ApiError) as caught:
        client.resume(job_id)
    assert (caught.value.status, caught.value.code) == (409, "illegal_transition")


def test_a_job_that_ended_is_deleted_and_nothing_of_it_is_left(store: JobStore, tmp_path: Path) -> None:
    webhooks, directory = WebhookStore(store), tmp_path / "jobs" / "job-whole"
    store.submit("{}", name="a job", job_id="job-whole", steering={"weights": {}})
    webhook = webhooks.add("https://hooks.example.com/x", ["job.succeeded"])
    lease = claim(store, "job-whole")
    for write in writes_under(store, lease)[:-2]:
        with suppress(StepGap, ValueError):
            write()
    store.event("job-whole", "told", {}, once="told")
    store.steer("job-whole", change={"mode": "manual"}, if_match=None, by="me")
    directory.mkdir(parents=True)
    keep_document(directory, owner=store.owner, spec="{}", origin=None)
    with serving(store, tmp_path) as server, Client(server.url, KEY) as client:
        with pytest.raises(ApiError, match="a job that is running can't be deleted: cancel it first") as caught:
            client.delete_job("job-whole")
        assert (caught.value.status, caught.value.code) == (409, "illegal_transition")
        store.finish(lease, JobStatus.FAILED, "x")
        webhooks.advance(webhook.webhook_id, "job-whole", 3)
        assert len(left_of(store, "job-whole")) == 13  # eleven of its own, the list, the webhook's cursors
        assert client.delete_job("job-whole") == {"object": "job", "id": "job-whole", "deleted": True}
        for again in (client.delete_job, client.job):
            with pytest.raises(NotFound):
                again("job-whole")
        assert "job-whole" not in [job["id"] for job in client.iter_jobs()]
    assert left_of(store, "job-whole") == []
    assert webhooks.behind(webhook.webhook_id) == []
    assert json.loads((directory / "job.json").read_text())["ended"] == "failed"  # `recover` leaves it where it is


def test_a_job_is_deleted_with_its_files(store: JobStore, tmp_path: Path) -> None:
    directory = tmp_path / "jobs" / "job-files"
    with serving(store, tmp_path) as server, Client(server.url, KEY) as client:
        for owner, expected in ((store.owner, True), (None, False)):
            store.submit("{}", name="a job", job_id="job-files", steering={"weights": {}})
            if owner is not None:
                directory.mkdir(parents=True)
                (directory / "checkpoints").mkdir()
                keep_document(directory, owner=owner, spec="{}")
            with pytest.raises(ApiError, match="cancel it first"):
                client.delete_job("job-files", files=True)
            assert directory.exists() is expected
            client.cancel("job-files")
            told = client.delete_job("job-files", files=True)
            assert told == {"object": "job", "id": "job-files", "deleted": True, "files": expected}
            assert not directory.exists()
        store.submit("{}", name="a job", job_id="job-files", steering={"weights": {}})
        client.cancel("job-files")
        directory.mkdir(parents=True)
        keep_document(directory, owner="somebody", spec="{}")
        with pytest.raises(ApiError, match="its directory can't be removed: it is another's") as caught:
            client.delete_job("job-files", files=True)
        assert (caught.value.status, caught.value.code) == (409, "files_stay")
        assert client.job("job-files")["status"] == "cancelled"
    assert list((tmp_path / "jobs").iterdir()) == [directory]


def left_of(store: JobStore, job_id: str) -> list[str]:
    """Keys that are named after the job, and those of its owner that name it."""
    found, calls = [], store.calls
    reads = {"zset": ("ZRANGE", 0, -1), "hash": ("HKEYS",), "set": ("SMEMBERS",)}
    cursor = 0
    while True:
        cursor, keys = calls.command("SCAN", cursor, "MATCH", f"mo:{store.owner}:*")
        for key in keys:
            words = reads.get(calls.command("TYPE", key))
            if job_id in key or (words and job_id in calls.command(words[0], key, *words[1:])):
                found.append(key)
        if not int(cursor):
            return found


def test_a_pause_says_at_which_checkpoint(http: httpx.Client, client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for body, save in (({"checkpoint": "latest"}, False), ({"checkpoint": "save"}, True), ({}, True)):
        assert http.post(f"/v1/jobs/{job_id}/pause", json=body).json()["status"] == "pausing"
        assert store.renew(lease, 30).save is save
    client.pause(job_id, checkpoint="latest")
    assert store.renew(lease, 30).save is False
    for body in ({"checkpoint": "now"}, {"checkpoint": None}, {"save": True}, [], "latest", 1):
        assert_error(http.post(f"/v1/jobs/{job_id}/pause", json=body), 422)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/fine_tuning/jobs"])
@pytest.mark.parametrize("action", ["cancel", "resume"])
def test_a_body_that_says_something_is_not_swallowed(http: httpx.Client, job_id: str, path: str, action: str) -> None:
    http.post(f"{path}/{job_id}/pause").raise_for_status()
    url = f"{path}/{job_id}/{action}"
    for body in ({"checkpoint": "latest"}, [], False, 0, "now"):
        error = assert_error(http.post(url, json=body), 422)
    assert_error(http.post(url, content=b"{", headers={"content-type": "application/json"}), 400)
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "paused"
    error = assert_error(http.post(url, json={"checkpoint": "latest"}), 422)
    assert error["param"] == "checkpoint"
    assert http.post(url, json={}).status_code == 200


def test_a_pause_of_the_other_api_is_asked_for_in_the_same_words(http: httpx.Client, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/pause"
    assert_error(http.post(url, json={"checkpoint": "oldest"}), 422)
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    empty = http.post(url, content=b"", headers={"content-type": "application/json"})  # as the openai package does
    assert (empty.status_code, empty.json()["status"]) == (200, "paused")


# -- what a spec may name -----------------------------------------------------------------------------------


def test_rewards_are_listed_with_their_options(client: Client) -> None:
    rewards = {reward["name"]: reward for reward in client.rewards()["data"]}
    assert {"math", "conciseness", "clarity"} <= rewards.keys()
    assert rewards["clarity"]["options"]["type"] == "object"


def test_rules_are_listed_by_kind(http: httpx.Client) -> None:
    everything = http.get("/v1/rules").json()
    assert (everything["object"], everything["has_more"]) == ("list", False)
    assert {"gdpo", "gramian:upgrad", "clip", "refill", "knapsack", "sketch"} <= {r["name"] for r in everything["data"]}
    budgets = http.get("/v1/rules", params={"kind": "budget"}).json()["data"]
    assert [rule["name"] for rule in budgets] == ["uniform", "knapsack"]
    assert assert_error(http.get("/v1/rules", params={"kind": "x"}), 422)["param"] == "kind"
    assert assert_error(http.get("/v1/rules", params={"kin": "x"}), 422)["code"] == "unknown_parameter"


def test_a_rule_is_shown_with_its_options(http: httpx.Client) -> None:
    (rule,) = http.get("/v1/rules/gramian:cagrad").json()["data"]
    assert (rule["kind"], rule["needs"]) == ("weighting", ["gramian"])
    assert rule["options"][0].keys() == {"name", "required", "default", "allowed", "description"}
    assert rule["example"].startswith("weighting:")


@pytest.mark.parametrize("name", ["gradent", "%00", "é", "a" * 300])
def test_an_unknown_rule_is_404(http: httpx.Client, name: str) -> None:
    message = assert_error(http.get(f"/v1/rules/{name}"), 404)["message"]
    assert name != "gradent" or "did you mean 'gradient'" in message


def test_a_rule_whose_plugin_is_broken_is_named(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> None:
        raise RuntimeError("the plug-in for weighting 'absent' (no_such_module:Rule) does not load")

    monkeypatch.setattr(rules_api, "find_rules", broken)
    error = assert_error(http.get("/v1/rules/absent"), 500)
    assert error["code"] == "plugin_broken"
    assert "no_such_module" in error["message"]
