"""Keys are made, shown once, listed and revoked, over REST and by the command line; what is kept of them."""

import gc
import json
import logging
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from orchestrator.state import keys as names
from orchestrator.state.keystore import KeyStore, Scope
from orchestrator.state.store import JobStore
from services.api import keys as keys_api
from services.app import create_app
from services.cli import app as cli
from tests.keys_support import OPERATOR, SECRET, SPEC, Place, error_of, serving, settings

# -- managing keys ------------------------------------------------------------------------------------------


def test_a_key_is_shown_once(place: Place) -> None:
    place.make("read", owner="local")
    with place.http() as http:
        answer = http.post("/v1/keys", json={"name": "ci", "scopes": ["submit", "read"], "expires_in_s": 3600})
        made = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(rf"eqp_{made['id']}_[A-Za-z0-9_-]{{43}}", made["key"])
        assert (made["owner"], made["scopes"]) == ("local", ["read", "submit"])
        assert made["expires_at"] - made["created_at"] == pytest.approx(3600, abs=0.01)
        listed = http.get("/v1/keys", params={"limit": 1}).json()
        assert listed["has_more"]
        assert listed["data"] == [{name: value for name, value in made.items() if name != "key"}]
        assert "sha256" not in listed["data"][0]


def test_keys_are_listed_page_by_page_newest_first(place: Place) -> None:
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    made = [place.make("read", owner=owner)["id"] for _ in range(5)]
    with place.http() as http:
        found: list[str] = []
        while True:
            params = {"owner": owner, "limit": 2, **({"after": found[-1]} if found else {})}
            page = http.get("/v1/keys", params=params).json()
            found += [key["id"] for key in page["data"]]
            if not page["has_more"]:
                break
        assert found == made[::-1]
        assert {key["owner"] for key in http.get("/v1/keys", params={"limit": 100}).json()["data"]} > {owner}
        error_of(http.get("/v1/keys", params={"after": "0123456789abcdef"}), 422)
        error_of(http.get("/v1/keys", params={"owner": "a:b"}), 422)


def test_an_owner_has_so_many_keys_and_dead_ones_make_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_api, "MAX_KEYS", 3)
    owner = f"many-{uuid.uuid4().hex[:8]}"
    with place.http(place.key("admin", owner=owner)) as http:
        made = [http.post("/v1/keys", json={"name": f"{i}", "scopes": ["read"]}) for i in range(3)]
        assert [answer.status_code for answer in made] == [201, 201, 409]
        assert error_of(made[-1], 409)["code"] == "too_many_keys"
        dead = made[0].json()["id"]
        assert http.delete(f"/v1/keys/{dead}").status_code == 200
        assert http.post("/v1/keys", json={"name": "new", "scopes": ["read"]}).status_code == 201
        kept = [key["id"] for key in http.get("/v1/keys").json()["data"]]
        assert dead not in kept
        assert made[1].json()["id"] in kept
        assert http.post("/v1/keys", json={"name": "more", "scopes": ["read"]}).status_code == 409


def test_the_operators_key_lists_the_jobs_of_any_owner(place: Place) -> None:
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    with place.http(place.key("submit", "read", owner=owner)) as http:
        job = http.post("/v1/jobs", json=SPEC).json()
        for own in ({}, {"owner": owner}):
            assert [found["id"] for found in http.get("/v1/jobs", params=own).json()["data"]] == [job["id"]]
        for other in ("local", "nobody", f"{owner}:job"):
            assert error_of(http.get("/v1/jobs", params={"owner": other}), 403)["code"] == "other_owner"
    with place.http() as http:
        named = {"owner": owner, "submitted_by": job["submitted_by"]}
        assert [found["id"] for found in http.get("/v1/jobs", params=named).json()["data"]] == [job["id"]]
        assert http.get("/v1/jobs", params={**named, "submitted_by": "x"}).json()["data"] == []
        assert job["id"] not in [found["id"] for found in http.get("/v1/jobs").json()["data"]]
        for nobody in ("nobody", f"{owner}:job", ""):
            assert error_of(http.get("/v1/jobs", params={"owner": nobody}), 422)["param"] == "owner"


def test_an_admin_manages_the_keys_of_its_owner_alone(place: Place) -> None:
    stranger = place.make("read", owner="theirs")
    with place.http(place.key("admin", owner="ours")) as http:
        assert http.post("/v1/keys", json={"name": "x", "scopes": ["admin"]}).json()["owner"] == "ours"
        assert http.post("/v1/keys", json={"name": "x", "scopes": ["read"], "owner": "ours"}).status_code == 201
        for owner in ("theirs", "local"):
            denied = error_of(http.post("/v1/keys", json={"name": "x", "scopes": ["read"], "owner": owner}), 403)
            assert denied["code"] == "other_owner"
            error_of(http.get("/v1/keys", params={"owner": owner}), 403)
        assert {key["owner"] for key in http.get("/v1/keys").json()["data"]} == {"ours"}
        foreign = http.delete(f"/v1/keys/{stranger['id']}")
        assert foreign.content == http.delete("/v1/keys/0123456789abcdef").content
        error_of(foreign, 404)
    assert place.status(stranger["key"]) == 200


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64}, {"key": SECRET}, {"id": "0123456789abcdef"}, {"revoked_at": 1}, {"created_at": 1},
        {"expires_at": 1}, {"last_used_at": 1}, {"is_operator": True}, {"tenant": "x"}, {"scopes": ["root"]},
        {"scopes": []}, {"scopes": "read"}, {"scopes": ["read"] * 5}, {"scopes": [SECRET]}, {"owner": "a:b"},
        {"owner": ""}, {"owner": "x" * 65}, {"owner": 1}, {"name": ""}, {"name": "x" * 65}, {"name": "a\nb"},
        {"name": "a\x1b[31m"}, {"name": "a\u2028b"}, {"name": 1}, {"expires_in_s": 0}, {"expires_in_s": -1},
        {"expires_in_s": True}, {"expires_in_s": 1.5}, {"expires_in_s": "60"}, {"expires_in_s": 10**12},
    ],
)  # fmt: skip
def test_fields_that_are_not_the_callers_are_refused(place: Place, change: dict[str, Any]) -> None:
    with place.http() as http:
        before = place.client.zcard(names.API_KEYS)
        error = error_of(http.post("/v1/keys", json={"name": "x", "scopes": ["read"], **change}), 422)
        assert error["code"] == "invalid_key"
        assert error["param"].split(".")[0] in change
        assert place.client.zcard(names.API_KEYS) == before


@pytest.mark.parametrize("field", ["owner", "tenant", "scopes", "state", "fence", "max_active", "status"])
def test_a_job_cannot_name_its_owner_or_state(place: Place, field: str) -> None:
    with place.http() as http:
        error_of(http.post("/v1/jobs", json={**SPEC, field: "x"}), 422)
        error_of(http.post("/v1/jobs", json=SPEC, params={field: "x"}), 422)


# -- what is kept -------------------------------------------------------------------------------------------


def test_no_key_is_ever_written_anywhere(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = place.make("admin")
    assert place.status(made["key"]) == 200
    assert place.status(made["key"][:-1] + "!") == 401
    secrets = [made["key"], made["key"].rpartition(made["id"])[2][1:], OPERATOR]
    kept = [json.dumps(dump(place.client, name)) for name in place.client.scan_iter()]
    assert any(made["id"] in value for value in kept)
    written = [path.read_bytes() for path in place.directory.rglob("*") if path.is_file()]
    assert any(made["id"].encode() in content for content in written)
    for secret in secrets:
        assert not any(secret in value for value in kept)
        assert not any(secret.encode() in content for content in written)
        assert secret not in caplog.text


def dump(client: redis.Redis, name: str) -> Any:
    match client.type(name):
        case "string":
            return [name, client.get(name)]
        case "hash":
            return [name, client.hgetall(name)]
        case "list":
            return [name, client.lrange(name, 0, -1)]
        case "set":
            return [name, sorted(client.smembers(name))]
        case "zset":
            return [name, client.zrange(name, 0, -1, withscores=True)]
        case "stream":
            return [name, client.xrange(name)]
        case other:
            raise AssertionError(other)


def test_last_use_is_noted_at_most_once_a_minute(place: Place) -> None:
    made = place.make("read")
    assert made["last_used_at"] is None
    name = names.api_key(made["id"])
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(place.status, [made["key"]] * 16)) == {200}
    first = place.client.hget(name, "last_used_at")
    assert first is not None
    assert place.status(made["key"]) == 200
    assert place.client.hget(name, "last_used_at") == first
    place.client.hset(name, "last_used_at", str(float(first) - 61))
    time.sleep(2.1)  # until the key is looked up again
    assert place.status(made["key"]) == 200
    assert float(place.client.hget(name, "last_used_at")) >= float(first)


def test_a_key_that_is_refused_is_not_used(place: Place) -> None:
    made = place.make("read")
    place.status(made["key"][:-1] + "-" * (made["key"][-1] != "-") + "_" * (made["key"][-1] == "-"))
    assert place.client.hget(names.api_key(made["id"]), "last_used_at") is None


# -- the command line ---------------------------------------------------------------------------------------


def test_keys_from_the_command_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_URL", place.url)
    monkeypatch.setenv("EQUIPOISE_API_KEY", OPERATOR)
    owner = f"owner-{uuid.uuid4().hex[:8]}"

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["keys", *words])

    made = run("create", "--name", "ci", "--scope", "read", "--scope", "submit", "--owner", owner, "--expires", "90d")
    assert made.exit_code == 0, made.output
    assert "may not read" not in made.stderr
    key = made.stdout.strip()
    assert place.status(key) == 200
    (listed,) = json.loads(run("list", "--owner", owner, "--json").stdout)
    assert listed["scopes"] == ["read", "submit"]
    assert listed["expires_at"] - listed["created_at"] == pytest.approx(90 * 86400, abs=1)
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("list", "--owner", owner).stdout
    assert listed["id"] in shown
    assert "until 2" in shown
    assert key.rpartition("_")[2] not in shown
    assert run("revoke", listed["id"]).stdout == f"{listed['id']} revoked\n"
    assert "revoked 2" in run("list", "--owner", owner).stdout
    assert place.status(key) == 401
    assert "--scope read is for that" in run("create", "--name", "x", "--scope", "steer", "--owner", owner).stderr
    assert run("create", "--name", "x", "--scope", "read", "--expires", "soon").exit_code == 2
    assert run("create", "--name", "x", "--scope", "everything").exit_code == 2
    assert run("revoke", "../jobs").exit_code == 2


# -- the store of keys --------------------------------------------------------------------------------------


def test_the_key_store_refuses_malformed_ids_and_owners(place: Place) -> None:
    keys = KeyStore(JobStore(place.client).calls)
    made = {"sha256": "0" * 64, "name": "x", "scopes": {Scope.READ}}
    for key_id, owner in (("short", "acme"), ("0123456789ABCDEF", "acme"), ("0123456789abcdef", "a:b")):
        with pytest.raises(ValueError, match=r"key id|owner"):
            keys.add(key_id=key_id, owner=owner, **made)
    assert not place.client.exists(names.api_key("0123456789abcdef"))


def test_refused_requests_leave_nothing_behind(place: Place) -> None:
    """An exception that is raised again and again would keep every frame, and the headers in it."""
    app = create_app(JobStore(place.client), settings(place.directory))
    with TestClient(app) as http:
        for i in range(30):
            assert http.get("/v1/jobs", headers={"authorization": f"Bearer left-behind-{i}"}).status_code == 401
    gc.collect()
    left = [found for found in gc.get_objects() if type(found) is dict and found.get("type") == "http"]
    assert sum("left-behind" in str(scope.get("headers")) for scope in left) <= 2


def test_only_the_installations_key_writes_to_the_servers_machine(place: Place, tmp_path: Path) -> None:
    with place.http(place.key("admin")) as http:
        job_id = http.post("/v1/jobs", json=SPEC).json()["id"]
        answer = http.post(f"/v1/jobs/{job_id}/checkpoints/0/export", json={"to": str(tmp_path / "out")})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "exports_disabled"


def test_resuming_counts_against_the_quota(tmp_path: Path, place: Place) -> None:
    with serving(place.client, tmp_path, active_jobs=2) as limited:
        owner = f"quota-{uuid.uuid4().hex[:8]}"
        with limited.http(limited.key("submit", "read", owner=owner)) as http:
            first, second = (http.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(2))
            assert http.post(f"/v1/jobs/{first}/pause").status_code == 200
            assert http.post("/v1/jobs", json=SPEC).status_code == 201
            refused = http.post(f"/v1/jobs/{first}/resume")
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert http.get(f"/v1/jobs/{first}").json()["status"] == "paused"
            assert http.post(f"/v1/jobs/{second}/cancel").status_code == 200
            assert http.post(f"/v1/jobs/{first}/resume").json()["status"] == "queued"
