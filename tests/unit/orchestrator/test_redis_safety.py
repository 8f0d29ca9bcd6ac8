"""On a real redis-server whose settings are changed while it runs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
import typer

from orchestrator.errors import Outage, StoreUnavailable
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.redis_calls import RedisCalls
from orchestrator.state.redis_safety import NEEDED, SettingsWatch, UnsafeRedis, check_settings, unsafe_settings
from services.commands.server import _check_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with connect(server.url) as client:
        yield client
        for setting, (needed, _) in NEEDED.items():
            client.config_set(setting, needed)


def test_our_own_server_is_safe(client: redis.Redis) -> None:
    assert check_settings(client) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "no"), ("appendfsync", "everysec"), ("appendfsync", "no"), ("maxmemory-policy", "allkeys-lru")],
)
def test_a_setting_that_loses_data_is_named_with_its_cure(client: redis.Redis, setting: str, value: str) -> None:
    client.config_set(setting, value)
    with pytest.raises(UnsafeRedis) as refused:
        check_settings(client)
    text = str(refused.value)
    assert f"{setting} is '{value}'" in text
    assert f"CONFIG SET {setting} {NEEDED[setting][0]}" in text
    assert f"--accept-redis-settings {setting}" in text
    (warning,) = check_settings(client, [setting])
    assert value in warning


def test_what_is_accepted_covers_nothing_else(client: redis.Redis) -> None:
    client.config_set("appendfsync", "everysec")
    client.config_set("maxmemory-policy", "volatile-ttl")
    with pytest.raises(UnsafeRedis) as refused:
        check_settings(client, ["appendfsync"])
    assert "maxmemory-policy" in str(refused.value)
    assert "everysec" not in str(refused.value)


def test_the_acceptance_of_an_unknown_setting_is_refused(client: redis.Redis) -> None:
    with pytest.raises(ValueError, match="no setting 'save'; those that can be accepted are appendonly"):
        check_settings(client, ["save"])


def test_where_settings_are_forbidden_it_warns(server: EmbeddedRedis, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "guest", "on", ">pw", "~*", "&*", "+@all", "-config")
    with connect(server.url.replace("unix://", "unix://guest:pw@")) as guest:
        assert unsafe_settings(guest) is None
        (warning,) = check_settings(guest)
    assert "does not show its settings" in warning
    assert "appendfsync always" in warning


def test_what_is_forbidden_is_named(server: EmbeddedRedis, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~eq:*", "+@all", "-set")
    with connect(server.url.replace("unix://", "unix://narrow:pw@")) as narrow:
        calls, asked = RedisCalls(narrow), []
        for forbidden in (
            partial(calls.command, "SET", "eq:a", "x"),
            partial(calls.together, [("GET", "eq:a"), ("GET", "other")]),
            partial(calls.script, "renew", ["other"], []),
        ):
            with pytest.raises(StoreUnavailable, match="forbids this") as refused:
                forbidden()
            asked.append((refused.value.outage, refused.value.asked))
    told = ("SET eq:a", "GET eq:a; GET other", "EVALSHA of renew.lua on other")
    assert asked == [(Outage.FORBIDDEN, words) for words in told]


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_command_does_not_start_on_a_redis_that_loses_data(
    server: EmbeddedRedis, client: redis.Redis, tmp_path: Path, command: str
) -> None:
    client.config_set("appendfsync", "everysec")
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", command, "--redis", server.url, "--state-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("equipoise: this Redis would lose data:\nequipoise:   appendfsync is 'everysec'")
    assert "--accept-redis-settings appendfsync" in done.stderr


def test_where_nobody_answers_nothing_is_said_of_its_settings(tmp_path: Path) -> None:
    with connect(f"unix://{tmp_path}/none.sock") as nobody, pytest.raises(redis.ConnectionError):
        check_settings(nobody)


@contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[Callable[[], None]]:
    """With what lets it go on."""
    assert server.pid is not None
    go_on = partial(os.kill, server.pid, signal.SIGCONT)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


def test_a_redis_that_is_late_is_waited_for(
    server: EmbeddedRedis, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    client.config_set("appendfsync", "everysec")
    with frozen(server) as go_on:
        threading.Timer(1.5, go_on).start()
        with pytest.raises(typer.Exit):
            _check_redis(server.url, "")
    assert capsys.readouterr().err.startswith("equipoise: this Redis would lose data")


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("worker",)])
def test_a_redis_that_answers_later_and_loses_data_ends_the_command(
    server: EmbeddedRedis, client: redis.Redis, tmp_path: Path, command: tuple[str, ...]
) -> None:
    client.config_set("appendfsync", "everysec")
    code = "from services import cli; from services.commands import server; server._REDIS_WAIT_S = 0.0; cli.app()"
    with frozen(server) as go_on:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--state-dir", str(tmp_path), *command, "--redis", server.url],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("WARNING: Redis does not answer yet")
        go_on()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "equipoise: this Redis would lose data:\nequipoise:   appendfsync is 'everysec'" in said


def test_a_redis_that_was_away_and_is_safe_is_left_alone(client: redis.Redis) -> None:
    watch = SettingsWatch(client, poll_s=0.01)
    watch.on_refusal = lambda: pytest.fail("refused")
    watch.run()
    assert watch.refusal is None
