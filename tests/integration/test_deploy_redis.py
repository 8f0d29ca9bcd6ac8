"""The rendered Redis, for real: what each of its users may do, and what the code asks of it."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

import orchestrator
from orchestrator import driver
from orchestrator.errors import Fenced, IllegalTransition, StepGap, StoreUnavailable
from orchestrator.state import scripts
from orchestrator.state.gpu_hours import set_quota
from orchestrator.state.keystore import KeyStore, Scope
from orchestrator.state.redis_calls import RedisCalls
from orchestrator.state.redis_safety import check_settings
from orchestrator.state.redis_secret import file_url
from orchestrator.state.script_keeper import KEPT, VERSIONS, ScriptKeeper
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.recovery import Finding, keep_document, recover
from orchestrator.webhooks.dispatcher import Dispatcher
from orchestrator.webhooks.subscriptions import WebhookStore
from rewards import training
from tests.deploy_redis import DeployedRedis, deployed_redis
from tests.deploy_support import Rendered, prepare, render, wait_for
from tests.reward_trainer import FakeTrainer, reward_document
from tests.store_support import claim, submit, writes_under

ROOT = Path(orchestrator.__file__).parent.parent
APPS = ("api", "worker", "driver")
USERS = (*APPS, "scripts", "probe")
GREETING = {"client", "client|setinfo"}  # what redis-py says of itself, and does without
NOT_CALLED = {"POST", "READONLY"}  # words of HTTP, and of an error's text
JOB = "mo:local:job:{job-1}"
# Each is refused to every user but admin, whatever the key.
FORBIDDEN = [
    ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "SET", "appendfsync", "no"), ("EVAL", "return 1", "0"), ("KEYS", "*"),
    ("SCRIPT", "FLUSH"), ("DEBUG", "SLEEP", "0"), ("MODULE", "LIST"), ("ACL", "LIST"), ("ACL", "SETUSER", "api", "on"),
    ("SHUTDOWN", "NOSAVE"), ("REPLICAOF", "127.0.0.1", "1"), ("CLIENT", "LIST"), ("MONITOR",), ("SCAN", "0"),
    ("RENAME", JOB, "x"), ("DUMP", JOB), ("RESTORE", JOB, "0", "x"), ("MIGRATE", "h", "1", JOB, "0", "1"),
    ("PUBLISH", "mo:x", "x"), ("SUBSCRIBE", "mo:x"), ("BGREWRITEAOF",), ("SAVE",), ("WAIT", "0", "0"), ("SELECT", "1"),
    ("SET", "other", "x"), ("GET", "other"),
]  # fmt: skip
# Of the keys of the store: who may touch which, by the users' own patterns.
KEYS = {
    "mo:key:0123456789abcdef": {"api"},
    "mo:keys": {"api"},
    "mo:rl:0123456789abcdef": {"api"},
    "mo:local:keys": {"api"},
    "mo:local:rate": {"api"},
    "mo:local:idem:abc": {"api"},
    "mo:local:answers": {"api"},
    "mo:local:webhooks": {"api", "worker"},
    "mo:local:webhook:wh-1:cursors": {"api", "worker"},
    "mo:webhooks:dispatcher": {"api", "worker"},
    "mo:owners": {"api", "worker"},
    "mo:local:queue:default": set(APPS),
    "mo:local:leases": set(APPS),
    "mo:local:stalled": {"api", "worker"},
    "mo:local:jobs": {"api", "worker"},
    "mo:local:gpus": set(APPS),
    JOB: set(APPS),
    f"{JOB}:steps": set(APPS),
    f"{JOB}:wlog": set(APPS),
    KEPT: set(),  # whose sources the keeper of scripts loads
}


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("deploy")) / "secrets" / "files"


@pytest.fixture(scope="module")
def server(passwords: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedRedis]:
    rendered = Rendered(render(passwords.parent.parent, "kind"))
    with deployed_redis(rendered, tmp_path_factory.mktemp("redis")) as found:
        yield found


def refused(client: redis.Redis, *words: str) -> bool:
    """Whether the server says NOPERM, or that its settings forbid it, to a command that is really sent."""
    try:
        client.execute_command(*words)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError as error:
        return "command not allowed" in str(error)  # DEBUG and MODULE of Redis 7
    return False


@pytest.mark.parametrize("user", APPS)
@pytest.mark.parametrize("words", FORBIDDEN, ids=" ".join)
def test_no_app_may(server: DeployedRedis, passwords: Path, user: str, words: tuple[str, ...]) -> None:
    with server.client(user, passwords) as client:
        assert refused(client, *words)


@pytest.mark.parametrize("key", KEYS)
def test_whose_keys(server: DeployedRedis, passwords: Path, key: str) -> None:
    allowed = set()
    for user in USERS[:-1]:
        with server.client(user, passwords) as client:
            if not refused(client, "EXISTS", key):
                allowed.add(user)
    assert allowed == KEYS[key]


def test_the_dry_run_says_the_same(server: DeployedRedis, passwords: Path) -> None:
    """From Redis 7 on, which has ACL DRYRUN."""
    with server.client("admin", passwords) as admin:
        if int(admin.info("server")["redis_version"].split(".")[0]) < 7:
            pytest.skip("this redis-server has no ACL DRYRUN; the commands themselves are sent above")
        for user in APPS:
            for words in FORBIDDEN:
                assert "permissions" in str(admin.execute_command("ACL", "DRYRUN", user, *words)), (user, words)


def test_who_has_no_password_gets_nothing(server: DeployedRedis) -> None:
    base = f"localhost:{server.port}/0?ssl_ca_certs={server.secrets / 'ca.crt'}"
    for who in ("", ":x@", "default:x@", "api:x@", "nobody:x@"):
        with redis.Redis.from_url(f"rediss://{who}{base}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with redis.Redis.from_url(f"rediss://probe:probe@{base}") as client:
        assert client.ping()
        assert refused(client, "GET", JOB)


def test_who_trusts_another_authority_does_not_connect(server: DeployedRedis, passwords: Path) -> None:
    url = server.url("api", passwords).partition("?")[0]
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        client.ping()


def test_when_its_certificate_ends_is_told(server: DeployedRedis, passwords: Path) -> None:
    url = server.url("api", passwords)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        end = RedisCalls(client).certificate_end()
    assert end is not None
    assert 396 < (end - time.time()) / 86400 <= 397
    with redis.Redis.from_url(url.partition("?")[0], decode_responses=True) as client:
        assert RedisCalls(client).certificate_end() is None  # of another authority


OF_EARLIER_SCRIPTS = {"INCR"}  # which drivers and servers of the version before call during an upgrade, or a step back


def test_the_users_may_call_what_the_code_calls_and_nothing_else(server: DeployedRedis, passwords: Path) -> None:
    """A command that is new in the code belongs into deploy/kubernetes/secrets/commands.acl, an old one out of it."""
    with server.client("admin", passwords) as admin:
        known = {str(name).upper() for name in admin.command()}
    called = set()
    for path in [*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "services").rglob("*.py")]:
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        called |= {value for value in constants if isinstance(value, str) and value in known - NOT_CALLED}
    for source in scripts.load().values():
        called |= set(re.findall(r"redis\.p?call\(\s*['\"]([A-Z]+)", source))
    text = (passwords.parent / "commands.acl").read_text()
    allowed = {word[1:].upper() for word in text.split()}
    by_the_library = {"EVALSHA", "MULTI", "EXEC", "DISCARD"}
    assert allowed - by_the_library - OF_EARLIER_SCRIPTS == called - by_the_library


def test_its_settings_keep_what_it_acknowledged(server: DeployedRedis, passwords: Path) -> None:
    with server.client("scripts", passwords) as client:
        assert check_settings(client) == []
    with server.client("api", passwords) as client:
        assert "does not show its settings" in check_settings(client)[0]


def test_scripts_are_there_once_their_keeper_runs_and_again_after_they_are_lost(
    server: DeployedRedis, passwords: Path, tmp_path: Path
) -> None:
    with (
        server.client("api", passwords) as api,
        server.client("scripts", passwords) as keeping,
        server.client("admin", passwords) as admin,
    ):
        admin.script_flush()
        store = JobStore(api)
        submit = {"name": "x", "job_id": "job-x", "steering": {}}
        with pytest.raises(StoreUnavailable, match="was not given its scripts"):
            store.submit("{}", **submit)
        keeper = ScriptKeeper(keeping, poll_s=0.05, alive_file=tmp_path / "alive")
        thread = threading.Thread(target=keeper.run)
        thread.start()
        try:
            wait_for(lambda: (tmp_path / "alive").exists())
            store.submit("{}", **submit)
            admin.script_flush()  # as a restart does
            wait_for(lambda: keeper.load_missing() == 0 and admin.script_exists(*keeper._sources) != [])
            assert store.job("job-x").name == "x"
            store.request_cancel("job-x")
        finally:
            keeper.request_stop()
            thread.join(10)
        assert refused(keeping, "EVALSHA", next(iter(keeper._sources)), "0")


def keeper_of(version: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> ScriptKeeper:
    """That of another version, whose scripts all differ."""
    sources = {name: f"{source}\n-- {version}" for name, source in scripts.load().items()}
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "load", lambda: sources)
        return ScriptKeeper(client)


def test_scripts_of_the_versions_before_come_back_too(
    server: DeployedRedis, passwords: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers of theirs still run: after an upgrade, and after Redis has been started anew since."""
    with server.client("scripts", passwords) as keeping, server.client("admin", passwords) as admin:
        earlier = [keeper_of(f"version {i}", keeping, monkeypatch) for i in range(VERSIONS)]
        for keeper in earlier:
            keeper.load_missing()
        newest = ScriptKeeper(keeping)
        newest.load_missing()
        admin.script_flush()  # as a restart does
        newest.load_missing()
        for keeper, kept in zip(earlier, [False] + [True] * (VERSIONS - 1), strict=True):
            assert set(admin.script_exists(*keeper_own(keeper))) == {kept}
        assert set(admin.script_exists(*newest._sources)) == {True}
        back = keeper_of("version 3", keeping, monkeypatch)  # a step back is no further version
        back.load_missing()
        assert admin.llen(KEPT) == VERSIONS
        assert set(newest._sources) == set(back._sources)


def keeper_own(keeper: ScriptKeeper) -> list[str]:
    return [hashlib.sha1(source.encode()).hexdigest() for source in keeper._own]


def test_where_the_keeper_may_not_keep_them_it_loads_its_own(
    server: DeployedRedis, passwords: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An installation whose Redis has the users of the version before."""
    with server.client("scripts", passwords) as keeping, server.client("admin", passwords) as admin:
        admin.script_flush()
        admin.execute_command("ACL", "SETUSER", "scripts", "-lrange")
        admin.delete(KEPT)
        keeper = ScriptKeeper(keeping)
        try:
            assert keeper.load_missing() == len(scripts.load())
            assert keeper.load_missing() == 0
        finally:
            admin.execute_command("ACL", "LOAD")
        assert caplog.text.count("until `ACL LOAD`") == 1
        keeper.load_missing()
        assert admin.llen(KEPT) == 1


def test_a_full_redis_and_a_damaged_version_keep_no_script_out(server: DeployedRedis, passwords: Path) -> None:
    with server.client("scripts", passwords) as keeping, server.client("admin", passwords) as admin:
        admin.script_flush()
        admin.delete(KEPT)
        admin.config_set("maxmemory", 1)
        try:
            assert ScriptKeeper(keeping).load_missing() == len(scripts.load())
        finally:
            admin.config_set("maxmemory", 0)
        admin.rpush(KEPT, "{", '{"a": 1}', "[3]")
        assert ScriptKeeper(keeping).load_missing() == 0
        assert admin.llen(KEPT) == 4


def test_each_user_may_do_all_of_its_own_part(server: DeployedRedis, passwords: Path) -> None:
    """Every write of the store, and nothing that Redis noted as refused but the client's own greeting."""
    with (
        server.client("api", passwords) as api,
        server.client("worker", passwords) as working,
        server.client("driver", passwords) as driving,
        server.client("scripts", passwords) as keeping,
        server.client("admin", passwords) as admin,
    ):
        ScriptKeeper(keeping).load_missing()
        admin.execute_command("ACL", "LOG", "RESET")
        front, worker, driver = JobStore(api), JobStore(working), JobStore(driving)
        told: list[str] = []
        webhook = WebhookStore(front).add("https://hooks.example.com/x", ["job.succeeded", "job.failed"])
        WebhookStore(front).set_secret(webhook.webhook_id)
        for job_id in ("part-1", "part-2"):
            submit(front, job_id, idempotency_key=job_id)
        front.request_pause("part-2")
        front.resume("part-2")
        set_quota(front.calls, front.owner, 10.0)
        keys = KeyStore(front.calls)
        keys.add(key_id="0123456789abcdef", sha256="0" * 64, owner="local", name="x", scopes={Scope.READ})
        keys.touch(*keys.find("0123456789abcdef"))
        keys.count_write("0123456789abcdef", "local", 600)
        keys.revoke("0123456789abcdef")
        assert {"part-1", "part-2"} <= set(worker.queued())
        assert "local" in worker.owners()
        lease = claim(driver, "part-1")
        driver.hold_gpus(lease, 1.0)
        for write in writes_under(driver, lease):
            with suppress(Fenced, IllegalTransition, StepGap, ValueError):  # those after the job's end
                write()
        worker.sweep()
        worker.event("part-2", "job.driver_died", {}, level="error")
        lease = claim(worker, "part-2")  # gives up on one whose driver does not start
        worker.finish(lease, JobStatus.FAILED, "x")
        dispatcher = Dispatcher(
            worker, allow_private=True, poll_s=0.02, deliver=lambda url, *_, **__: told.append(url) or 200
        )
        thread = threading.Thread(target=dispatcher.run)
        thread.start()
        try:
            wait_for(lambda: told)
        finally:
            dispatcher.request_stop()
            thread.join(20)
        WebhookStore(front).remove(webhook.webhook_id)
        assert {entry["object"] for entry in admin.acl_log()} <= GREETING


def test_jobs_are_put_back_in_the_pod_that_the_runbook_names(
    server: DeployedRedis, passwords: Path, tmp_path: Path
) -> None:
    assert "exec deploy/serve -- equipoise recover" in (ROOT / "deploy" / "README.md").read_text()
    spec = json.dumps(reward_document(tmp_path))
    directory = tmp_path / "jobs" / "job-back"
    directory.mkdir(parents=True)
    keep_document(directory, owner="local", spec=spec)
    with server.client("scripts", passwords) as keeping:
        ScriptKeeper(keeping).load_missing()
    with server.client("worker", passwords) as working, pytest.raises(StoreUnavailable, match="forbids this"):
        list(recover(JobStore(working), tmp_path))
    with server.client("api", passwords) as api:
        assert [found.finding for found in recover(JobStore(api), tmp_path)] == [Finding.RECOVERED]
        assert JobStore(api).job("job-back").status is JobStatus.PAUSED


def test_a_driver_runs_a_whole_job_as_its_user(
    server: DeployedRedis, passwords: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real driver, with its URL in a file; what it trains is a stand-in, which needs neither Ray nor vLLM."""
    monkeypatch.setattr(training, "train", FakeTrainer())
    heard = signal.getsignal(signal.SIGTERM)
    with (
        server.client("api", passwords) as api,
        server.client("scripts", passwords) as keeping,
        server.client("admin", passwords) as admin,
    ):
        ScriptKeeper(keeping).load_missing()
        admin.execute_command("ACL", "LOG", "RESET")
        store = JobStore(api)
        store.submit(json.dumps(reward_document(tmp_path)), name="rated", job_id="job-whole")
        (tmp_path / "redis-url").write_text(server.url("driver", passwords))
        url = file_url(tmp_path / "redis-url")
        try:
            assert driver.drive("job-whole", url, tmp_path / "state", owner="local", ray_address=None) == 0
        finally:
            signal.signal(signal.SIGTERM, heard)
        job = store.job("job-whole")
        assert (job.status, job.reason) == (JobStatus.SUCCEEDED, None)
        assert {entry["object"] for entry in admin.acl_log()} <= GREETING
