"""Generated and malformed requests to the whole app on a real Redis: never a 5xx, never a surprise.

EQUIPOISE_FUZZ_EXAMPLES multiplies the number of generated requests, about 1,000 by default.
"""

import copy
import json
import math
import os
import re
import select
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator.rollouts.samples import FOLDER, shard
from orchestrator.spec import parse_spec
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import CANCEL, PAUSE, RESUME, JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.checkpoints import write_checkpoint
from services.app import create_app
from services.keys import digest
from services.settings import Limits, Settings
from tests.api_support import KEY, SPEC, claim, serving, step_record
from tests.integration.test_fork_api import POINTS, fill, front
from tests.integration.test_rollouts_api import VALUES, rows

FACTOR = int(os.environ.get("EQUIPOISE_FUZZ_EXAMPLES", "1"))
CANARY = "canary-7Qx-do-not-repeat"  # in values of bodies
ASKED = "asked-9Zk-do-not-repeat"  # in queries, paths and headers


@dataclass(frozen=True)
class Case:
    """A request; `template` is the route that it is meant for."""

    method: str
    template: str
    path: str
    content: bytes | None = None
    headers: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """The app, and jobs in three states."""

    client: TestClient
    store: JobStore
    documented: dict[tuple[str, str], frozenset[int]]
    answers: dict[tuple[str, str, int], Draft202012Validator]  # of those that are JSON
    queries: dict[str, list[str]]  # names of the parameters of each GET
    trained: str
    queued: str
    over: str

    def ask(self, case: Case) -> int:
        return self.answer(case).status_code

    def answer(self, case: Case) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEY}".encode(), **case.headers}
        if case.content is not None:
            headers.setdefault("content-type", b"application/json")
        answer = self.client.request(case.method, case.path, content=case.content, headers=headers)
        status = answer.status_code
        route = (case.method, case.template)
        assert status in self.documented[route], (status, answer.text)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", answer.headers["x-request-id"])
        assert ASKED not in answer.text
        if status >= 400:
            document = answer.json()
            assert document.keys() == {"error"}
            error = document["error"]
            assert error.keys() == {"type", "code", "message", "param"}
            assert all(isinstance(error[key], str) for key in ("type", "code", "message"))
            assert error["param"] is None or isinstance(error["param"], str)
            assert CANARY not in answer.text, error
        elif status in (204, 304):
            assert not answer.content
        elif answer.headers["content-type"].startswith("application/json"):
            self.answers[(*route, status)].validate(json.loads(answer.text, parse_constant=_not_finite))
        return answer


def _not_finite(text: str) -> None:
    raise AssertionError(f"{text} in an answer")


OPEN = frozenset({"Step", "FrontPoint", "ObjectiveFigures"})  # what stands in them follows from the job


def validators(document: dict[str, Any]) -> dict[tuple[str, str, int], Draft202012Validator]:
    """Of every JSON answer of success: every field that is told is described."""
    components = copy.deepcopy(document["components"])
    for name, schema in components["schemas"].items():
        if "properties" in schema and name not in OPEN:
            schema["properties"].setdefault("object", {"type": "string"})
            schema["additionalProperties"] = False
    return {
        (method.upper(), path, int(status)): Draft202012Validator(
            {**response["content"]["application/json"]["schema"], "components": components}
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for status, response in operation["responses"].items()
        if status.startswith("2") and "application/json" in response.get("content", {})
    }


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("fuzz")
    redis = connect(redis_url)
    store = JobStore(redis, owner=f"fuzz-{uuid.uuid4().hex}")
    limits = Limits(writes_per_minute=0, active_jobs=0, active_jobs_local=0)
    app = create_app(store, Settings(state_dir=directory, key_sha256=digest(KEY), local_exports=True, limits=limits))
    paths = app.openapi()["paths"]
    documented = {
        (method.upper(), path): frozenset(int(status) for status in operation["responses"])
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    queries = {
        path: [parameter["name"] for parameter in methods["get"].get("parameters", []) if parameter["in"] == "query"]
        for path, methods in paths.items()
        if "get" in methods
    }
    with TestClient(app) as client:
        client.headers["accept"] = "application/json"
        ids = [submitted(client) for _ in range(3)]
        train(store, directory, ids[0])
        store.request_cancel(ids[2])
        yield World(client, store, documented, validators(app.openapi()), queries, *ids)
    redis.close()


def submitted(client: TestClient) -> str:
    return str(client.post("/v1/jobs", json=SPEC, headers={"authorization": f"Bearer {KEY}"}).json()["id"])


def train(store: JobStore, directory: Path, job_id: str) -> None:
    """Three committed steps with a checkpoint and rollouts each, under a lease that lasts."""
    lease = claim(store, job_id)
    samples = directory / "jobs" / job_id / FOLDER
    samples.mkdir(parents=True)
    for step, objectives in POINTS.items():
        store.commit(lease, step=step, digest=str(step), record=step_record())
        root = directory / "jobs" / job_id / "checkpoints"
        path, manifest = write_checkpoint(root, step=step, fence=lease.fence, fill=fill(step))
        store.register_checkpoint(lease, step=step, path=str(path), digest=manifest.digest)
        store.update_checkpoints(lease, {step: {"on_front": step < 3, "metrics": {"objectives": objectives}}})
        shard(samples, step).write_text("".join(json.dumps(row) + "\n" for row in rows(step, VALUES)))
    store.set_front(lease, front(POINTS))


def fuzz(world: World, cases: st.SearchStrategy[Case], examples: int, *, reach: set[int]) -> None:
    """Asks; `reach` are statuses that must be among the answers, so that a test can't pass on refusals alone."""
    seen: Counter[int] = Counter()

    @hypothesis_settings(
        max_examples=examples * FACTOR,
        deadline=None,
        database=None,
        derandomize=FACTOR == 1,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Case) -> None:
        seen[world.ask(case)] += 1

    ask()
    print(f"{sum(seen.values())} cases: {dict(sorted(seen.items()))}")
    assert reach <= seen.keys(), seen


def test_the_document_has_the_errors_that_are_given(world: World) -> None:
    document = world.client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    error = document["components"]["schemas"]["Error"]["properties"]["error"]
    assert error["required"] == ["type", "code", "message", "param"]
    assert "HTTPValidationError" not in json.dumps(document)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"]
            refusals = {int(status): told for status, told in operation["responses"].items() if int(status) >= 400}
            assert path == "/livez" or refusals.keys() >= {401, 403, 500, 503}
            assert "requestBody" not in operation or refusals.keys() >= {400, 413, 422}
            assert "{" not in path or 404 in refusals
            for told in refusals.values():
                assert told["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


def test_the_document_describes_every_success(world: World) -> None:
    document = world.client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    operations = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(operations) == len(set(operations))
    assert {"submit_job", "fine_tuning_list_jobs", "get_prometheus"} <= set(operations)
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, told in operation["responses"].items():
                assert (
                    not status.startswith("2")
                    or status == "204"
                    or all(content["schema"] for content in told["content"].values())
                )
    sent = document["webhooks"]["event"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert sent["$ref"].rpartition("/")[2] in document["components"]["schemas"]
    front = document["components"]["schemas"]["Front"]
    assert front["properties"]["points"]["items"] == {"$ref": "#/components/schemas/FrontPoint"}
    assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}
    events = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]
    assert (events["content"].keys(), events["headers"].keys()) == (
        {"application/json", "text/event-stream"},
        {"Event-Cursor", "Event-Oldest"},
    )


def test_every_success_is_as_the_document_describes_it(world: World) -> None:
    reached: set[tuple[str, str, int]] = set()

    def ask(operation: str, body: Any = None, *, query: str = "", **ids: Any) -> Any:
        method, template = operation.split(" ")
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        answer = world.answer(Case(method, template, template.format(**ids) + query, content))
        assert answer.status_code < 300, answer.text
        reached.add((method, template, answer.status_code))
        return answer.json() if answer.content else None

    job = "/v1/jobs/{job_id}"
    made = {"job_id": ask("POST /v1/jobs", SPEC)["id"]}
    ask("POST /v1/jobs", SPEC, query="?validate_only=true")
    for prefix in (job, "/v1/fine_tuning/jobs/{job_id}"):
        for action in ("pause", "resume", "cancel"):
            ask(f"POST {prefix}/{action}", **made)
        made = {"job_id": ask("POST /v1/jobs", SPEC)["id"]}
    trained = {"job_id": world.trained}
    ask(f"GET {job}/front", **made)
    ask(f"POST {job}/fork", {"checkpoint": 2}, **trained)
    ask(f"PUT {job}/steering", {"mode": "manual"}, **trained)
    ask(f"POST {job}/steering/preview", {"weights": {"accuracy": 1, "conciseness": 1}}, **trained)
    ask("GET /v1/jobs/compare", query=f"?ids={world.trained}")
    ask(f"POST {job}/cancel", **made)
    ask(f"DELETE {job}", **made)
    key = ask("POST /v1/keys", NEW_KEY)["id"]
    ask("DELETE /v1/keys/{key_id}", key_id=key)
    ask("PUT /v1/quotas/{owner}", {"gpu_hours": None}, owner=world.store.owner)
    hook = {"webhook_id": ask("POST /v1/webhooks", {**NEW_WEBHOOK, "url": "https://hooks.invalid/x"})["id"]}
    ask("POST /v1/webhooks/{webhook_id}/secret", **hook)
    ask("POST /v1/webhooks/{webhook_id}/test", **hook)
    row = b'{"prompt": "2+2=", "answer": "4"}'
    for _ in range(2):
        dataset = {"dataset_id": ask("POST /v1/datasets", row, query="?name=d&format=jsonl")["id"]}
    for name in ("math", "length"):
        ask("POST /v1/rewards/validate", {"name": name})
    run = {
        "rewards": [{"name": "math"}, {"name": "length"}],
        "samples": [{"prompt": "p", "completion": "c", "answer": "1"}],
    }
    ask("POST /v1/rewards/run", run)
    named = {**trained, **dataset, "owner": world.store.owner}
    for method, template, _ in sorted(world.answers):
        if method == "GET" and template != "/v1/jobs/compare":
            ids = {**named, "name": "gdpo" if template.startswith("/v1/rules") else "math"}
            ask(f"GET {template}", **{name: value for name, value in ids.items() if f"{{{name}}}" in template})
    ask("DELETE /v1/datasets/{dataset_id}", **dataset)
    assert world.answers.keys() - reached == {("POST", f"{job}/checkpoints/{{step}}/export", 200)}


def test_the_document_links_what_is_made_to_what_is_done_with_it(world: World) -> None:
    paths = world.client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()["paths"]
    operations = {operation["operationId"] for methods in paths.values() for operation in methods.values()}
    links = paths["/v1/jobs"]["post"]["responses"]["201"]["links"]
    assert links.keys() <= operations
    assert links[paths["/v1/jobs/{job_id}/cancel"]["post"]["operationId"]]["parameters"] == {
        "job_id": "$response.body#/id"
    }
    assert "key_id" in json.dumps(paths["/v1/keys"]["post"]["responses"]["201"]["links"])


# -- bodies -------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.just(CANARY),
    st.text(max_size=12),
    st.sampled_from(["", "\ud800", "\x00", "a\x00b", "/", "/etc/passwd", "~", "../..", "x" * 5000, "é" * 300, "‮"]),
    st.sampled_from(["auto", "manual", "gdpo", "math", "latest", "best", "quickstart", "files", "read", "job.failed"]),
)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63, 10**400, 1e-320, 1e308, math.nan, math.inf, 0.5, 1.0]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES_OF_ANY_KIND = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
SPEC_WITH_DEFAULTS = json.loads(parse_spec(SPEC).to_json())
CHANGE = {
    "mode": "manual",
    "blend": 0.25,
    "weights": {"accuracy": 0.5, "conciseness": 0.5},
    "bounds": {"accuracy": [0.1, 0.9]},
}
FORK = {"checkpoint": 2, "weights": {"accuracy": 1, "conciseness": 3}, "changes": {"steps": 5}, "name": "a fork"}
SWEEP = {"checkpoint": "best", "sweep": [{"accuracy": 1, "conciseness": 0}, {"accuracy": 0.5, "conciseness": 0.5}]}
NEW_KEY = {"name": "a key", "scopes": ["read"], "owner": "acme", "expires_in_s": 60}
NEW_WEBHOOK = {"url": "https://hooks.example.com/x", "events": ["job.failed"], "secret": "s" * 20}
EXPORT = {"to": "/nowhere/at/all"}


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a document, the document itself first."""
    items = document.items() if isinstance(document, dict) else enumerate(document) if type(document) is list else ()
    return [path, *(found for key, value in items for found in places(value, (*path, key)))]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        document = document[part]
    return document


@st.composite
def bent(draw: st.DrawFn, document: Any) -> Any:
    """A valid document with a few places changed, left out or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(document)))
        if not path:
            continue
        parent, key = at(document, path[:-1]), path[-1]
        how = draw(st.sampled_from(["change", "change", "nudge", "leave out", "add"]))
        if how == "change":
            parent[key] = draw(VALUES_OF_ANY_KIND)
        elif how == "nudge" and isinstance(parent[key], int | float):
            parent[key] = draw(NUMBERS)
        elif how == "leave out":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(VALUES_OF_ANY_KIND)
    return document


@st.composite
def garbled(draw: st.DrawFn, content: bytes) -> bytes:
    """Valid JSON with a few bytes cut out, doubled or replaced."""
    start = draw(st.integers(0, len(content) - 1))
    end = draw(st.integers(start, min(len(content), start + 20)))
    return content[:start] + draw(st.binary(max_size=6)) + content[end:] * draw(st.integers(0, 2))


def bodies(document: Any) -> st.SearchStrategy[bytes]:
    text = json.dumps(document).encode()
    return st.one_of(
        bent(document).map(lambda made: json.dumps(made).encode()),
        bent(document).map(lambda made: json.dumps(made).encode()),
        VALUES_OF_ANY_KIND.map(lambda made: json.dumps(made).encode()),
        garbled(text),
        st.binary(max_size=40),
    )


def to_job(world: World, path: str) -> tuple[str, str]:
    return f"/v1/jobs/{{job_id}}{path}", f"/v1/jobs/{world.trained}{path}"


def sent(method: str, template: str, path: str, document: Any) -> st.SearchStrategy[Case]:
    return bodies(document).map(lambda content: Case(method, template, path, content))


def test_bodies_of_a_submission(world: World) -> None:
    kept = sent("POST", "/v1/jobs", "/v1/jobs", SPEC)
    checked = sent("POST", "/v1/jobs", "/v1/jobs?validate_only=true", SPEC_WITH_DEFAULTS)
    fuzz(world, st.one_of(kept, checked, checked), 160, reach={200, 201, 400, 422})


@pytest.mark.parametrize(("method", "path", "accepted"), [("PUT", "", 202), ("POST", "/preview", 200)])
def test_bodies_of_a_steer(world: World, method: str, path: str, accepted: int) -> None:
    template, target = to_job(world, f"/steering{path}")
    fuzz(world, sent(method, template, target, CHANGE), 80, reach={accepted, 400, 422})


def test_bodies_of_a_fork(world: World) -> None:
    template, target = to_job(world, "/fork")
    deep = {**FORK, "changes": {key: SPEC_WITH_DEFAULTS[key] for key in ("rollout", "optimizer", "weighting", "seed")}}
    cases = st.one_of(*(sent("POST", template, target, document) for document in (FORK, SWEEP, deep)))
    fuzz(world, cases, 80, reach={201, 400, 422})


def test_bodies_of_a_key(world: World) -> None:
    fuzz(world, sent("POST", "/v1/keys", "/v1/keys", NEW_KEY), 60, reach={201, 400, 422})


def test_bodies_of_a_webhook(world: World) -> None:
    fuzz(world, sent("POST", "/v1/webhooks", "/v1/webhooks", NEW_WEBHOOK), 60, reach={201, 400, 422})
    headers = {"authorization": f"Bearer {KEY}"}
    for webhook in world.client.get("/v1/webhooks", headers=headers).json()["data"]:
        assert world.client.delete(f"/v1/webhooks/{webhook['id']}", headers=headers).status_code == 204


def test_bodies_of_an_export(world: World) -> None:
    template, target = to_job(world, "/checkpoints/{step}/export")
    fuzz(world, sent("POST", template, target.replace("{step}", "999"), EXPORT), 30, reach={400, 422, 425})


# -- queries, paths and headers -----------------------------------------------------------------------------

QUERY_VALUES = st.one_of(
    st.just(ASKED),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.integers(-5, 200).map(str),
    st.sampled_from(["", "0", "1", "true", "9" * 5000, "1e3", "NaN", "٣", "\x00", "running", "accuracy", "-tokens"]),
)


@st.composite
def asked(draw: st.DrawFn, world: World) -> Case:
    """A GET with known and unknown parameters, some of them twice."""
    template = draw(st.sampled_from(sorted(world.queries)))
    ids = st.sampled_from([world.trained, world.queued, world.over])
    path = template.replace("{job_id}", draw(ids)).replace("{name}", draw(st.sampled_from(["gdpo", "fixed", "x"])))
    known = st.sampled_from([*world.queries[template], "metadata[a]"])
    names = st.one_of(known, known, known, st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
    pairs = draw(st.lists(st.tuples(names, st.one_of(QUERY_VALUES, ids)), max_size=3))
    return Case("GET", template, f"{path}?{urlencode(pairs)}" if pairs else path)


def test_queries_of_every_get(world: World) -> None:
    fuzz(world, asked(world), 160, reach={200, 404, 422})


@st.composite
def misnamed(draw: st.DrawFn, world: World) -> Case:
    """Any route with a parameter in its path, for something that does not exist."""
    routes = sorted(route for route in world.documented if "{" in route[1])
    method, template = draw(st.sampled_from(routes))
    names = st.one_of(
        st.just(ASKED),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
        st.sampled_from(["x" * 300, "9" * 5000, "%00", "job-0", "0" * 16, "{job_id}", "*", "-1", "1.5"]),
    )
    path = re.sub(r"\{\w+\}", lambda _: quote(draw(names), safe=""), template)
    return Case(method, template, path, None if method in ("GET", "DELETE") else b'{"mode": "manual"}')


def test_paths_that_name_nothing(world: World) -> None:
    fuzz(world, misnamed(world), 120, reach={404, 422})


HEADER_VALUES = st.one_of(
    st.just(ASKED.encode()),
    st.integers(0, 9).map(lambda number: b"%d" % number),
    st.binary(max_size=12).filter(lambda value: not re.search(rb"[\x00-\x1f\x7f]", value)),
    st.sampled_from(
        [b"", b"*", b'"1"', b"1", b"0", b'W/"1"', b"9" * 400, b"-1", b'"', b"a, b", b"x" * 300, b"\xd9\xa3"]
    ),
)


@st.composite
def headed(draw: st.DrawFn, world: World) -> Case:
    """Requests that headers change the meaning of."""
    job, stream = f"/v1/jobs/{world.trained}", f"/v1/jobs/{world.over}/events"
    fork = json.dumps({"checkpoint": 1}).encode()
    make: list[Callable[[], Case]] = [
        lambda: Case("PUT", "/v1/jobs/{job_id}/steering", f"{job}/steering", b'{"blend": 0.5}'),
        lambda: Case("POST", "/v1/jobs", "/v1/jobs", json.dumps(SPEC).encode()),
        lambda: Case("POST", "/v1/jobs/{job_id}/fork", f"{job}/fork", fork),
        lambda: Case("GET", "/v1/jobs/{job_id}", job),
        *[lambda: Case("GET", "/v1/jobs/{job_id}/events", stream, headers={"accept": b"text/event-stream"})] * 3,
        lambda: Case("GET", "/v1/jobs/{job_id}/events", stream),
    ]
    case = draw(st.sampled_from(make))()
    names = ["if-match", "if-none-match", "idempotency-key", "last-event-id", "content-type", "content-length"]
    chosen = draw(st.dictionaries(st.sampled_from([*names[:4], *names]), HEADER_VALUES, min_size=1, max_size=4))
    if case.content is None or not re.fullmatch(rb"[0-9]{1,9}", chosen.get("content-length", b"")):
        chosen.pop("content-length", None)  # a length that isn't one never reaches an app
    return Case(case.method, case.template, case.path, case.content, {**case.headers, **chosen})


def test_headers_that_change_the_meaning(world: World) -> None:
    fuzz(world, headed(world), 120, reach={200, 201, 202, 422})


# -- sequences ----------------------------------------------------------------------------------------------

TABLES = {"cancel": CANCEL, "pause": PAUSE, "resume": RESUME}


def test_sequences_of_requests_follow_the_table(world: World) -> None:
    cases = 0

    @hypothesis_settings(
        max_examples=12 * FACTOR, deadline=None, database=None, derandomize=FACTOR == 1,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(st.sampled_from([*TABLES, "steer", "stale steer"]), min_size=1, max_size=8))
    def walk(actions: list[str]) -> None:
        nonlocal cases
        job_id, status, version = submitted(world.client), JobStatus.QUEUED, 1
        for action in actions:
            cases += 1
            if action in TABLES:
                found = world.ask(Case("POST", f"/v1/jobs/{{job_id}}/{action}", f"/v1/jobs/{job_id}/{action}"))
                assert found == (200 if status in TABLES[action] else 409)
                status = TABLES[action].get(status, status)
            else:
                expected = b'"99"' if action == "stale steer" else b"*"
                path = f"/v1/jobs/{job_id}/steering"
                case = Case("PUT", "/v1/jobs/{job_id}/steering", path, b'{"blend": 0.5}', {"if-match": expected})
                found = world.ask(case)
                over = status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED)
                assert found in ((409, 412) if action == "stale steer" else (409,) if over else (202,))
                version += found == 202
            record = world.store.job(job_id)
            assert (record.status, world.store.steering(job_id).version) == (status, version)

    walk()
    print(f"{cases} cases")


# -- the table of malformed bodies --------------------------------------------------------------------------


def with_number(document: Any, path: tuple[Any, ...]) -> str:
    """The document's text with @ where a number stands."""
    document = copy.deepcopy(document)
    at(document, path[:-1])[path[-1]] = "@"
    return json.dumps(document).replace('"@"', "@")


TARGETS: dict[str, tuple[str, str, str]] = {  # method, path, text with @
    "submit": ("POST", "/v1/jobs", with_number(SPEC, ("objectives", 0, "weight"))),
    "steer": ("PUT", "/v1/jobs/{job_id}/steering", with_number(CHANGE, ("weights", "accuracy"))),
    "preview": ("POST", "/v1/jobs/{job_id}/steering/preview", with_number(CHANGE, ("blend",))),
    "fork": ("POST", "/v1/jobs/{job_id}/fork", with_number(FORK, ("weights", "accuracy"))),
    "key": ("POST", "/v1/keys", with_number(NEW_KEY, ("expires_in_s",))),
    "webhook": ("POST", "/v1/webhooks", with_number(NEW_WEBHOOK, ("secret",))),
}
INSTEAD_OF_A_NUMBER = {
    "NaN": ("NaN", 422),
    "Infinity": ("Infinity", 422),
    "minus Infinity": ("-Infinity", 422),
    "overflowing exponent": ("1e999", 422),
    "true": ("true", 422),
    "text": ('"0.5"', 422),
    "negative": ("-5", 422),
    "object": ("{}", 422),
    "lone surrogate": ('"\\ud800"', 422),
    "a secret": (f'"{CANARY}"', 422),
    "5,000-digit integer": ("1" * 5000, 400),
    "5,000-deep nesting": ("[" * 5000 + "]" * 5000, 400),
}
AS_A_WHOLE: dict[str, tuple[Callable[[str], bytes], int]] = {
    "unknown field": (lambda text: f'{{"surely_unknown": "{CANARY}", {text[1:]}'.encode(), 422),
    "duplicate key": (lambda text: f"{text[:-1]}, {text[1:]}".encode(), 422),
    "bad UTF-8": (lambda text: text.encode()[:-1] + b', "x": "\xff"}', 400),
    "cut short": (lambda text: text.encode()[:-1], 400),
    "a byte order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), 400),
    "a list": (lambda text: f"[{text}]".encode(), 422),
}


def stored(world: World) -> tuple[int, ...]:
    """How much is kept of everything that a body can make."""
    keys = world.store.calls
    owner = f"mo:{world.store.owner}"
    listed = world.client.get("/v1/webhooks", headers={"authorization": f"Bearer {KEY}"}).json()["data"]
    return (
        keys.command("ZCARD", f"{owner}:jobs"),
        keys.command("ZCARD", "mo:keys"),
        len(listed),
        world.store.steering(world.trained).version,
    )


def refuse(world: World, target: str, content: bytes, status: int, **headers: bytes) -> None:
    method, template, _ = TARGETS[target]
    before = stored(world)
    case = Case(method, template, template.replace("{job_id}", world.trained), content, headers)
    assert world.ask(case) == status
    assert stored(world) == before


@pytest.mark.parametrize("target", TARGETS)
def test_the_table_s_documents_are_accepted_when_whole(world: World, target: str) -> None:
    method, template, text = TARGETS[target]
    content = text.replace("@", f'"{"s" * 20}"' if target == "webhook" else "1").encode()
    case = Case(method, template, template.replace("{job_id}", world.trained), content)
    assert world.ask(case) in (200, 201, 202)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wrong", INSTEAD_OF_A_NUMBER)
def test_what_is_no_number_is_refused(world: World, target: str, wrong: str) -> None:
    given, status = INSTEAD_OF_A_NUMBER[wrong]
    if target == "webhook" and wrong == "a secret":
        return  # it is one
    refuse(world, target, TARGETS[target][2].replace("@", given).encode(), status)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wrong", AS_A_WHOLE)
def test_malformed_documents_are_refused(world: World, target: str, wrong: str) -> None:
    spoil, status = AS_A_WHOLE[wrong]
    number = f'"{"s" * 20}"' if target == "webhook" else "1"
    refuse(world, target, spoil(TARGETS[target][2].replace("@", number)), status)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("media_type", [b"text/plain", b"application/x-www-form-urlencoded", b""])
def test_another_media_type_is_refused(world: World, target: str, media_type: bytes) -> None:
    number = f'"{"s" * 20}"' if target == "webhook" else "1"
    content = TARGETS[target][2].replace("@", number).encode()
    refuse(world, target, content, 422, **{"content-type": media_type})


# -- examples ------------------------------------------------------------------------------------------------


def test_the_documents_examples_are_accepted(world: World, tmp_path: Path) -> None:
    """Every body that must be there has some; each is sent as it stands, but for where a checkpoint is exported to."""
    headers = {"authorization": f"Bearer {KEY}"}
    paths = world.client.get("/openapi.json", headers=headers).json()["paths"]
    sent = 0
    for path, methods in paths.items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {"content": {}})
            for media_type, content in body["content"].items():
                examples = content.get("examples", {})
                assert examples or not body["required"], (method, path)
                for name, example in examples.items():
                    value = example["value"]
                    if path.endswith("/export"):
                        value = {"to": str(tmp_path / name)}
                    job = submitted(world.client) if path.endswith("/pause") else world.trained
                    answer = world.client.request(
                        method,
                        path.replace("{job_id}", job).replace("{step}", "1").replace("{owner}", world.store.owner),
                        params={"name": "x", "format": "jsonl"} if path == "/v1/datasets" else None,
                        content=value if isinstance(value, str) else json.dumps(value),
                        headers={**headers, "content-type": media_type},
                    )
                    assert answer.status_code in (200, 201, 202), (method, path, name, answer.text)
                    sent += 1
    assert sent > 12
    page = world.client.get("/docs", headers=headers).text
    assert "example: your own weights" in page


# -- 50 MB --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
def test_50_mb_are_refused_and_not_kept(world: World, tmp_path: Path, declared: bool) -> None:
    """The server answers before it has read all: who sends has to look for that."""
    size, block = 50 * 10**6, b" " * 65536
    length = f"content-length: {size}" if declared else "transfer-encoding: chunked"
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    memory = psutil.Process()
    with serving(world.store, tmp_path) as server, socket.create_connection((server.host, server.port), 20) as sender:
        before = memory.memory_info().rss
        sender.sendall(f"{head}{length}\r\n\r\n".encode())
        sent = 0
        while sent < size and not select.select([sender], [], [], 0)[0]:
            piece = block if declared else b"%x\r\n%b\r\n" % (len(block), block)
            try:
                sender.sendall(piece)
            except OSError:
                break
            sent += len(block)
        answer = sender.recv(65536)
        grown = memory.memory_info().rss - before
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"x-request-id" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"
    assert sent < size
    assert grown < 16 * 2**20
