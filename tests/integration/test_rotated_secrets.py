"""Secrets that are replaced while what uses them runs: Redis's password, the server's certificate, its own key.

A judge's key is in unit/rewards/judges/test_judge.py, the token of a Ray cluster in unit/orchestrator/test_ray_jobs.py.
"""

import json
import logging
import os
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from orchestrator import logs
from orchestrator.launch.launchers import SubprocessLauncher
from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import connect
from orchestrator.state.redis_secret import file_url
from orchestrator.state.store import JobStore, StoreUnavailable
from services.client import AuthenticationError, Client
from services.keys import digest, new_key
from services.server import ApiServer
from services.settings import Settings, Tls, write_credentials
from tests.store_support import submit
from tests.support import self_signed


def eventually(check: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------- Redis


class Guarded:
    """A Redis with a user, whose URL lies in a file."""

    def __init__(self, server: EmbeddedRedis, admin: redis.Redis, directory: Path) -> None:
        self.server, self.admin = server, admin
        self.file = directory / "redis-url"

    def set_password(self, password: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", "app", "on", "resetpass", f">{password}", "~*", "&*", "+@all")

    def write(self, password: str) -> None:
        """As a mounted secret is replaced: at once."""
        hidden = self.file.with_suffix(".new")
        hidden.write_text(self.server.url.replace("unix://", f"unix://app:{password}@") + "\n")
        hidden.rename(self.file)

    def disconnect(self) -> None:
        self.admin.execute_command("CLIENT", "KILL", "USER", "app")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    with EmbeddedRedis(tmp_path / "redis") as server, connect(server.url) as admin:
        guarded = Guarded(server, admin, tmp_path)
        guarded.set_password("first-pass/word")
        guarded.write("first-pass%2Fword")
        yield guarded


def test_a_new_password_of_redis_is_taken_with_the_next_connection(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_known_secrets", set())
    with connect(file_url(guarded.file)) as client:
        store = JobStore(client)
        submit(store, "one")
        guarded.set_password("second-password")
        guarded.disconnect()
        with pytest.raises(StoreUnavailable) as refused:  # the file has the old one still
            submit(store, "two")
        assert "first-pass" not in str(refused.value)
        guarded.write("second-password")
        submit(store, "two")
        guarded.file.unlink()  # it may be away for a moment
        guarded.disconnect()
        assert [job.job_id for job in store.jobs().items] == ["two", "one"]
    assert {"first-pass/word", "second-password"} <= logs._known_secrets


def test_a_worker_hands_its_drivers_the_file_and_never_the_password(guarded: Guarded, tmp_path: Path) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    launcher = SubprocessLauncher(file_url(guarded.file), tmp_path, command=lambda *_: [sys.executable, "-c", show])
    driver = launcher.start("job-1", "local", fence=0)
    eventually(lambda: driver.poll() is not None)
    environment = json.loads(driver.log_path.read_text())
    assert environment["EQUIPOISE_REDIS_URL"] == f"file://{guarded.file}"
    assert "first-pass" not in json.dumps(environment)
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN" not in environment
    other = launcher.start("job-2", "acme", fence=0)
    eventually(lambda: other.poll() is not None)
    assert json.loads(other.log_path.read_text())["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_a_driver_gets_in_with_the_file_alone(guarded: Guarded, tmp_path: Path) -> None:
    guarded.set_password("second-password")
    guarded.write("second-password")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.driver", "--job", "gone", "--state-dir", str(tmp_path)],
        env={**os.environ, "EQUIPOISE_REDIS_URL_FILE": str(guarded.file)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "JobNotFound" in done.stderr, done.stderr
    assert "second-password" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"\xff", "not UTF-8"), (b"http://x", "expected a Redis URL")]
)
def test_a_file_that_holds_no_url_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "redis-url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as refused:
        connect(file_url(file))
    assert str(file) in str(refused.value)


def test_a_url_without_a_password_may_lie_in_a_file_too(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "redis url").write_text(f"{redis_url}\n")
    with connect(file_url(tmp_path / "redis url")) as client:
        assert client.ping()


# ---------------------------------------------------------------------------------------------------- the API


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url) as client:
        yield JobStore(client, owner=f"rotated-{uuid.uuid4().hex}")


def shown(server: ApiServer) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


def test_a_new_certificate_is_shown_to_new_connections_and_a_pair_that_does_not_fit_is_not(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "next").mkdir()
    cert, key = self_signed(tmp_path)
    new_cert, new_key_file = self_signed(tmp_path / "next")
    server = ApiServer("127.0.0.1", 0, tls=Tls(cert=cert, key=key))
    server.start(store, Settings(state_dir=tmp_path, key_sha256=digest("x")))
    trusting = ssl.create_default_context(cafile=cert)
    try:
        with httpx.Client(base_url=server.url, verify=trusting) as connected, caplog.at_level(logging.WARNING):
            assert connected.get("/livez").status_code == 200
            before = shown(server)
            new_cert.rename(cert)  # the key is still the old one
            eventually(lambda: "stays in use" in caplog.text)
            assert shown(server) == before
            new_key_file.rename(key)
            eventually(lambda: shown(server) != before)
            assert shown(server).split() == cert.read_text().split()
            assert connected.get("/livez").status_code == 200  # on the connection that it has
    finally:
        server.stop()


def test_another_key_in_the_file_is_the_servers_own_from_then_on(store: JobStore, tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    server = ApiServer("127.0.0.1", 0)
    write_credentials(tmp_path, server.url, first)
    server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(first), follow_key_file=True, poll_s=0.05))

    def takes(key: str) -> bool:
        with Client(server.url, key) as client:
            try:
                return client.own_key()["scopes"] == ["read", "submit", "steer", "admin"]
            except AuthenticationError:
                return False

    try:
        submit(store, "j")
        assert (takes(first), takes(second)) == (True, False)
        headers = {"authorization": f"Bearer {first}", "accept": "text/event-stream"}
        with httpx.stream("GET", f"{server.url}/v1/jobs/j/events", headers=headers, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            write_credentials(tmp_path, server.url, second)
            eventually(lambda: takes(second))
            assert not takes(first)
            for _ in lines:  # ends: the key that opened it is no more
                pass
        (tmp_path / "api.json").write_text("damaged")
        time.sleep(1.2)
        assert takes(second)
    finally:
        server.stop()
