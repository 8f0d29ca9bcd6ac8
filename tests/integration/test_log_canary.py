"""Keys and secrets are sent, stored, refused and crashed with; then every log and answer is searched for them."""

import io
import json
import logging
import os
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from orchestrator import logs
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.store import JobStore
from services.app import create_app
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings

KEY = f"eqp_canary{uuid.uuid4().hex}"
OTHER = f"eqp_canary{uuid.uuid4().hex}"
SECRET = f"canary{uuid.uuid4().hex}"
SPEC: dict[str, Any] = {
    "name": "a job\n12:00:00 ERROR forged",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [{"name": "accuracy", "reward": {"name": "math"}}],
}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs, "_known_secrets", set())
    stream = io.StringIO()
    logs.setup("json", level=logging.DEBUG, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_no_key_or_secret_reaches_the_log(
    written: io.StringIO, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(redis_url) as client:
        store = JobStore(client, owner=f"canary-{uuid.uuid4().hex}")
        server = ApiServer("127.0.0.1", 0)
        server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(KEY)))
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
            assert http.post("/v1/jobs", json=SPEC).status_code == 422
            job_id = http.post("/v1/jobs", json={**SPEC, "name": "a job"}).json()["id"]
            http.put(f"/v1/jobs/{job_id}/steering", json={"mode": "manual", "secret": SECRET})
            http.post("/v1/webhooks", json={"url": "https://example.com/", "events": ["job.failed"], "secret": SECRET})
            http.get("/v1/jobs", headers={"authorization": f"Bearer {OTHER}"})
            http.get(f"/v1/jobs/{OTHER}")

            def crash(*_: Any, **__: Any) -> None:
                raise RuntimeError(f"with Bearer {KEY}, {OTHER} and {{'secret': '{SECRET}'}} \x1b[31m")

            monkeypatch.setattr(JobStore, "jobs", crash)
            failed = http.get("/v1/jobs", headers={"x-request-id": "request-1"})
            assert failed.status_code == 500
        server.stop()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    crashes = [line for line in lines if line.get("request_id") == "request-1" and "exception" in line]
    assert "RuntimeError: with Bearer eqp_***" in crashes[0]["exception"]
    for canary in (KEY, OTHER, SECRET, digest(KEY)):
        assert canary not in written.getvalue()


@pytest.mark.parametrize("format", logs.FORMATS)
def test_a_driver_that_crashes_writes_neither_its_password_nor_raw_lines(tmp_path: Path, format: str) -> None:
    password = f"canary{uuid.uuid4().hex}"
    with EmbeddedRedis(tmp_path / "redis") as redis:
        with connect(redis.url) as admin:
            admin.execute_command("ACL", "SETUSER", "driver", "on", f">{password}", "~*", "&*", "+@all")
            JobStore(admin).submit("{}", name="x", job_id="job-1", steering={})
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.driver", "--job", "job-1", "--state-dir", str(tmp_path)],
            env={
                **os.environ,
                "EQUIPOISE_REDIS_URL": redis.url.replace("unix://", f"unix://driver:{password}@"),
                "EQUIPOISE_LOG_FORMAT": format,
                "EQUIPOISE_FAILPOINTS": "after_claim=raise",
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "FailpointError" in done.stderr
    assert password not in done.stdout + done.stderr
    if format == "json":
        crash = json.loads(done.stderr.splitlines()[-1])
        assert (crash["level"], crash["job_id"]) == ("critical", "job-1")


def test_no_answer_holds_a_secret_once_it_was_shown(tmp_path: Path) -> None:
    """Every GET of the document, the refusals of a wrong key and of a Redis that is gone, and every event."""
    password = f"canary{uuid.uuid4().hex}"
    answers: list[httpx.Response] = []
    with EmbeddedRedis(tmp_path / "redis") as redis:
        with connect(redis.url) as admin:
            admin.execute_command("ACL", "SETUSER", "api", "on", f">{password}", "~*", "&*", "+@all")
        with connect(redis.url.replace("unix://", f"unix://api:{password}@")) as client:
            settings = Settings(state_dir=tmp_path, key_sha256=digest(KEY))
            app = create_app(JobStore(client), settings)
            with TestClient(app, headers={"authorization": f"Bearer {KEY}", "accept": "application/json"}) as http:
                job = http.post("/v1/jobs", json={**SPEC, "name": "a job"}).json()["id"]
                made = http.post("/v1/keys", json={"name": "other", "scopes": ["admin"]}).json()
                hook = {"url": "https://example.com/", "events": ["job.failed"], "secret": SECRET}
                ids = {
                    "job_id": job,
                    "key_id": made["id"],
                    "webhook_id": http.post("/v1/webhooks", json=hook).json()["id"],
                }
                http.put(f"/v1/jobs/{job}/steering", json={"mode": "manual"}, headers={"x-request-id": "r"})
                http.post(f"/v1/jobs/{job}/cancel")
                for path, methods in http.get("/openapi.json").json()["paths"].items():
                    if "get" in methods:
                        asked = path.format_map(defaultdict(lambda: "x", ids))
                        answers.append(http.get(asked, params={"ids": job} if path.endswith("compare") else None))
                answers.append(http.get("/v1/jobs", headers={"authorization": f"Bearer {OTHER}"}))
                redis.stop()
                answers.append(http.get("/v1/jobs"))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] > 15
    assert statuses[401] == statuses[503] == 1
    assert max(statuses) == 503
    for answer in answers:
        for canary in (KEY, OTHER, made["key"], SECRET, password, digest(KEY), digest(made["key"])):
            assert canary not in answer.text + str(answer.headers), answer.request.url
