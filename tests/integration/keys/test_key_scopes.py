"""What a key's scopes let it do, and to whose jobs."""

import json
import logging
import time
import uuid
from itertools import product
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.state.keystore import Scope
from orchestrator.state.store import JobStore
from services.app import create_app
from services.auth import PUBLIC_PATHS
from services.scopes import SCOPES
from tests.keys_support import SPEC, Place, ask, declared, error_of, fill, settings

# Written out by hand, not taken from services/scopes.py: a route that moves there has to move here, too.
ALLOWED = {
    Scope.READ: """
        GET /readyz
        GET /metrics
        GET /openapi.json
        GET /docs
        GET /v1/jobs
        GET /v1/jobs/compare
        GET /v1/jobs/{job_id}
        GET /v1/jobs/{job_id}/events
        GET /v1/jobs/{job_id}/metrics
        GET /v1/jobs/{job_id}/rollouts
        GET /v1/jobs/{job_id}/steering
        POST /v1/jobs/{job_id}/steering/preview
        GET /v1/jobs/{job_id}/front
        GET /v1/jobs/{job_id}/report
        GET /v1/jobs/{job_id}/checkpoints
        GET /v1/jobs/{job_id}/checkpoints/{step}/download
        GET /v1/fine_tuning/jobs
        GET /v1/fine_tuning/jobs/{job_id}
        GET /v1/fine_tuning/jobs/{job_id}/events
        GET /v1/fine_tuning/jobs/{job_id}/checkpoints
        GET /v1/key
        GET /v1/rewards
        GET /v1/rewards/{name}
        GET /v1/judges
        GET /v1/rules
        GET /v1/rules/{name}
        GET /v1/models
        GET /v1/datasets
        GET /v1/datasets/{dataset_id}
        GET /v1/datasets/{dataset_id}/rows
    """,
    Scope.SUBMIT: """
        POST /v1/jobs
        DELETE /v1/jobs/{job_id}
        POST /v1/jobs/{job_id}/cancel
        POST /v1/jobs/{job_id}/pause
        POST /v1/jobs/{job_id}/resume
        POST /v1/jobs/{job_id}/fork
        POST /v1/fine_tuning/jobs/{job_id}/cancel
        POST /v1/fine_tuning/jobs/{job_id}/pause
        POST /v1/fine_tuning/jobs/{job_id}/resume
        POST /v1/rewards/validate
        POST /v1/rewards/run
        POST /v1/datasets
        DELETE /v1/datasets/{dataset_id}
    """,
    Scope.STEER: """
        PUT /v1/jobs/{job_id}/steering
    """,
    Scope.ADMIN: """
        POST /v1/keys
        GET /v1/keys
        DELETE /v1/keys/{key_id}
        GET /v1/quotas/{owner}
        PUT /v1/quotas/{owner}
        POST /v1/webhooks
        GET /v1/webhooks
        DELETE /v1/webhooks/{webhook_id}
        POST /v1/webhooks/{webhook_id}/secret
        POST /v1/webhooks/{webhook_id}/test
        POST /v1/jobs/{job_id}/checkpoints/{step}/export
    """,
}
NEEDED = {route.strip(): scope for scope, routes in ALLOWED.items() for route in routes.strip().splitlines()}

# -- scopes -------------------------------------------------------------------------------------------------


def test_every_route_declares_its_scope(place: Place, tmp_path: Path) -> None:
    routes = {f"{method} {path}" for method, path in declared(tmp_path, place.client) if path not in PUBLIC_PATHS}
    assert routes <= SCOPES.keys(), "services/scopes.py names every route with its scope; others need admin"
    assert SCOPES == NEEDED


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_reaches_what_its_scope_says_and_no_more(place: Place, tmp_path: Path, scope: Scope) -> None:
    with place.http(place.key(scope, owner="matrix")) as http:
        for method, path in declared(tmp_path, place.client):
            if path in PUBLIC_PATHS:
                continue
            answer = ask(http, method, fill(path))
            needed = NEEDED[f"{method} {path}"]
            if scope in (needed, Scope.ADMIN):
                assert answer.status_code not in (401, 403), (method, path)
            else:
                error = error_of(answer, 403)
                assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
                assert f"'{needed}'" in error["message"]
            if method == "GET" and "events" not in path:
                assert http.head(fill(path)).status_code == answer.status_code, path


def test_each_write_and_download_is_told_in_the_log(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, reading = place.make("admin", owner="told"), {"GET", "HEAD", "OPTIONS"}
    with place.http(made["key"]) as http, caplog.at_level(logging.INFO, logger="equipoise.audit"):
        for method, path in declared(tmp_path, place.client):
            caplog.clear()
            answer = ask(http, method, fill(path))
            lines = [json.loads(record.message) for record in caplog.records if record.name == "equipoise.audit"]
            if (method in reading or path.endswith("/preview")) and not path.endswith("/download"):
                assert lines == [], path
                continue
            (line,) = lines
            assert (line["route"], line["path"], line["status"]) == (f"{method} {path}", fill(path), answer.status_code)
            assert (line["owner"], line["by"]) == ("told", f"key {made['id']} (made)")
            assert (line["client"], line["request_id"]) == ("127.0.0.1", answer.headers["x-request-id"])
        caplog.clear()
        job = http.post("/v1/jobs", json=SPEC, headers={"x-request-id": "req-1"})
        (line,) = [json.loads(record.message) for record in caplog.records]
        assert (line["made"], line["request_id"]) == (job.headers["location"], "req-1")


def test_a_key_may_ask_whom_it_speaks_for(place: Place) -> None:
    made = place.make("read", "steer")
    with place.http(made["key"]) as http:
        own = http.get("/v1/key").json()
    hours = own.pop("gpu_hours")
    assert (hours["quota"], hours["used"]) == (None, 0)
    assert hours["renews_at"] > time.time()
    assert own == {
        "object": "own_key",
        "id": made["id"],
        "name": f"key {made['id']} (made)",
        "owner": "acme",
        "scopes": ["read", "steer"],
    }
    with place.http(place.key("admin")) as http:
        assert set(http.get("/v1/key").json()["scopes"]) == {"read", "submit", "steer", "admin"}
    assert place.status(place.key("submit"), path="/v1/key") == 403
    assert place.status(None, path="/v1/key") == 401


def test_a_report_is_its_owners_alone(place: Place) -> None:
    job = JobStore(place.client, owner="acme")
    job.submit("{}", name="r", job_id="job-report", steering={"mode": "auto"})
    with place.http(place.key("read")) as http:
        error_of(http.get("/v1/jobs/job-report/report"), 425)
        job.request_cancel("job-report")
        error_of(http.get("/v1/jobs/job-report/report"), 404)
        folder = place.directory / "jobs" / "job-report"
        folder.mkdir(parents=True)
        (folder / "report.html").write_text("<!doctype html><p>it</p>")
        answer = http.get("/v1/jobs/job-report/report")
        assert answer.text == "<!doctype html><p>it</p>"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-security-policy"] == "sandbox allow-scripts"
    with place.http(place.key("read", owner="other")) as http:
        error_of(http.get("/v1/jobs/job-report/report"), 404)


def test_what_changes_a_job_is_never_open_to_readers() -> None:
    for route, scope in SCOPES.items():
        if scope is Scope.READ:
            assert route.startswith("GET ") or route.endswith("/preview"), route
    assert SCOPES["PUT /v1/jobs/{job_id}/steering"] is Scope.STEER


def test_several_scopes_add_up(place: Place) -> None:
    with place.http(place.key("read", "steer")) as http:
        assert http.get("/v1/jobs").status_code == 200
        assert ask(http, "PUT", "/v1/jobs/job-0/steering").status_code == 404
        assert http.post("/v1/jobs", json=SPEC).status_code == 403


def test_a_route_that_nobody_declared_needs_admin(place: Place, tmp_path: Path) -> None:
    from fastapi.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    app = create_app(JobStore(place.client), settings(tmp_path))
    app.add_api_route("/v1/later", lambda: {"later": True}, methods=["GET"])
    app.router.routes.append(Mount("/files", routes=[Route("/x", lambda _: PlainTextResponse("x"))]))
    client = TestClient(app)
    for path, (key, status) in product(
        ("/v1/later", "/files/x"), ((place.key("read", "submit", "steer"), 403), (place.key("admin"), 200))
    ):
        assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == status


def test_paths_that_no_route_takes_are_404_and_405_for_any_key(place: Place) -> None:
    key = place.key("read")
    assert place.status(key, "GET", "/nope") == 404
    assert place.status(key, "PATCH", "/v1/jobs") == 405


# -- owners -------------------------------------------------------------------------------------------------


def test_another_owners_job_does_not_exist(place: Place, tmp_path: Path) -> None:
    ours, theirs = (place.http(place.key("admin", owner=owner)) for owner in ("ours", "theirs"))
    with ours, theirs:
        job_id = ours.post("/v1/jobs", json=SPEC).json()["id"]
        routes = [(m, p) for m, p in declared(tmp_path, place.client) if "{job_id}" in p]
        assert len(routes) >= 10
        for method, path in routes:
            foreign, absent = ask(theirs, method, fill(path, job_id)), ask(theirs, method, fill(path, "job-0"))
            assert foreign.status_code == 404, (method, path)
            assert foreign.content == absent.content
        assert theirs.get("/v1/jobs").json()["data"] == []
        error_of(theirs.get("/v1/jobs/compare", params={"ids": job_id}), 404)
        error_of(theirs.get("/v1/jobs", params={"after": job_id}), 422)
        assert ours.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
        assert len(ours.get(f"/v1/jobs/{job_id}/steering").json()["log"]) == 1
    with place.http() as operator:  # its own owner is `local`: it manages keys of others, not their jobs
        assert operator.get(f"/v1/jobs/{job_id}").status_code == 404


def test_an_idempotency_key_is_the_owners(place: Place) -> None:
    word = uuid.uuid4().hex
    made = []
    for owner in ("ours", "theirs", "ours"):
        with place.http(place.key("submit", owner=owner)) as http:
            made.append(http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": word}).json()["id"])
    assert made[0] == made[2] != made[1]


def test_owners_are_known_once_they_submit(place: Place) -> None:
    store = JobStore(place.client)
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    key = place.key("submit", owner=owner)
    assert owner not in store.owners()
    with place.http(key) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
    assert {owner, "local"} <= set(store.owners())
    assert store.of_owner(owner).queued() == [job_id]
    assert store.owner == "local"


def test_a_steering_change_names_the_key(place: Place) -> None:
    made = place.make("read", "submit", "steer", name="night shift")
    with place.http(made["key"]) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        assert http.put(f"/v1/jobs/{job_id}/steering", json={"mode": "manual"}).status_code == 202
        assert http.get(f"/v1/jobs/{job_id}/steering").json()["log"][-1]["by"] == f"key {made['id']} (night shift)"
