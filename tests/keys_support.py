"""A server with API keys, and what tests of them ask it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from orchestrator.state.store import JobStore
from services.app import create_app
from services.keys import digest, new_key
from services.server import ApiServer
from services.settings import Limits, Settings

OPERATOR = new_key()
SECRET = "hunter2-do-not-repeat"
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "short", "reward": {"name": "conciseness"}},
    ],
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server, and its Redis."""

    url: str
    client: redis.Redis
    directory: Path

    def http(self, key: str | None = OPERATOR, **headers: str) -> httpx.Client:
        given = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers={**given, **headers}, timeout=20)

    def make(self, *scopes: str, owner: str = "acme", **more: Any) -> dict[str, Any]:
        with self.http() as http:
            answer = http.post("/v1/keys", json={"name": "made", "scopes": scopes, "owner": owner, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def key(self, *scopes: str, owner: str = "acme") -> str:
        return str(self.make(*scopes, owner=owner)["key"])

    def status(self, key: str | None, method: str = "GET", path: str = "/v1/jobs") -> int:
        with self.http(key) as http:
            return http.request(method, path).status_code


def settings(directory: Path, **limits: int) -> Settings:
    chosen = Limits(**{"writes_per_minute": 0, "active_jobs": 0, **limits})
    return Settings(state_dir=directory, key_sha256=digest(OPERATOR), poll_s=0.05, local_exports=True, limits=chosen)


@contextmanager
def serving(client: redis.Redis, directory: Path, **limits: int) -> Iterator[Place]:
    server = ApiServer("127.0.0.1", 0)
    server.start(JobStore(client), settings(directory, **limits))
    try:
        yield Place(url=server.url, client=client, directory=directory)
    finally:
        server.stop()


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    document = dict(answer.json()["error"])
    assert document.keys() == {"type", "code", "message", "param"}
    return document


def declared(tmp_path: Path, client: redis.Redis) -> list[tuple[str, str]]:
    """Every route of the app as (method, path template)."""
    found = []
    for route in create_app(JobStore(client), settings(tmp_path)).routes:
        methods = getattr(route, "methods", None) or {"WEBSOCKET"}
        found += [(method, str(getattr(route, "path", ""))) for method in methods if method != "HEAD"]
    assert len(found) > 20
    return sorted(found)


def fill(path: str, job_id: str = "job-0") -> str:
    return re.sub(r"\{\w+\}", "1", path.replace("{job_id}", job_id))


BODIES: dict[str, dict[str, Any]] = {
    "fork": {"checkpoint": "latest"},
    "export": {"to": "/nowhere"},
    **{key: {} for key in ("cancel", "pause", "resume")},
}  # others: a change of the steering


def ask(http: httpx.Client, method: str, path: str) -> httpx.Response:
    """A request that reaches the route's own code, with a body that it takes."""
    if method in ("GET", "DELETE"):
        return http.request(method, path)
    return http.request(method, path, json=BODIES.get(path.rpartition("/")[2], {"mode": "manual"}))
