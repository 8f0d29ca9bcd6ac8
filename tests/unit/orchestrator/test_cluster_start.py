"""Ray's own start, on machines that are busy."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_config import JobConfig

from orchestrator.actors.cluster import Cluster
from orchestrator.errors import ActorLost, ResourcesBusy

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


def starting(monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> list[str]:
    """What Ray is asked, where its first starts fail so."""
    calls: list[str] = []
    left = list(failures)

    def init(**_: Any) -> None:
        calls.append("init")
        if left:
            raise left.pop(0)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    return calls


def test_a_start_that_took_too_long_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, Exception(SLOW))
    Cluster()
    assert calls == ["init", "shutdown", "init"]


def test_a_second_one_is_no_fault_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, Exception(SLOW), Exception(SLOW))
    with pytest.raises(ActorLost, match="did not start in its time"):
        Cluster()
    assert calls == ["init", "shutdown", "init", "shutdown"]


def test_another_error_of_the_second_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, Exception(SLOW), OSError("no space left"))
    with pytest.raises(OSError, match="no space left"):
        Cluster()
    assert calls == ["init", "shutdown", "init"]


def test_any_other_error_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, ConnectionError("no cluster there"))
    with pytest.raises(ConnectionError):
        Cluster()
    assert calls == ["init"]


@pytest.mark.parametrize("safe", [False, True])
def test_rays_workers_import_nothing_from_a_folder_that_the_driver_does_not(
    monkeypatch: pytest.MonkeyPatch, safe: bool
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr("orchestrator.actors.cluster.sys", SimpleNamespace(flags=SimpleNamespace(safe_path=safe)))
    Cluster()
    config = given.get("job_config") or JobConfig()
    assert config._runtime_env_has_working_dir() is safe  # by which ray.init leaves the current folder out


@pytest.mark.parametrize("home", ["", "/proc/none"])
def test_a_ray_of_ones_own_needs_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    """Users of containers and of services often have none; Ray would keep its token there."""
    starting(monkeypatch)
    for name, value in (("RAY_AUTH_TOKEN", ""), ("RAY_AUTH_TOKEN_PATH", ""), ("HOME", home or str(tmp_path))):
        monkeypatch.setenv(name, value)
    Cluster()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == (64 if home else 0)


@pytest.fixture
def port() -> Iterator[int]:
    """Somebody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch, closed_port: int, address: str) -> None:
    calls, address = starting(monkeypatch), address.format(closed_port)
    with pytest.raises(ResourcesBusy, match=r"EQUIPOISE_RAY_ADDRESS.*refused") as told:
        Cluster(address=address)
    assert address in str(told.value)
    assert calls == []  # Ray would have tried for minutes


def test_no_port_at_all_is_told_like_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch)
    with pytest.raises(ResourcesBusy, match="99999"):
        Cluster(address="127.0.0.1:99999")


def test_so_is_one_that_listens_and_does_not_answer(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    calls = starting(monkeypatch, ConnectionError("ray did not\nanswer"))
    with pytest.raises(ResourcesBusy, match=f"127.0.0.1:{port}.*answer"):
        Cluster(address=f"127.0.0.1:{port}")
    assert calls == ["init"]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "auto"])
def test_one_that_is_there_is_joined(monkeypatch: pytest.MonkeyPatch, port: int, address: str) -> None:
    calls = starting(monkeypatch)
    Cluster(address=address.format(port))
    assert calls == ["init"]


@pytest.fixture
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_sigterm")
@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("in_the_start", [True, False])
def test_sigterm_is_heard_by_who_heard_it_before(
    monkeypatch: pytest.MonkeyPatch, port: int, joins: bool, in_the_start: bool
) -> None:
    heard: list[int] = []

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray's does
        if in_the_start:
            signal.raise_signal(signal.SIGTERM)

    starting(monkeypatch)
    monkeypatch.setattr(ray, "init", init)
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    address = f"127.0.0.1:{port}" if joins else None
    if in_the_start:
        with pytest.raises(SystemExit):
            Cluster(address=address)
    else:
        Cluster(address=address)
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


@pytest.mark.usefixtures("_sigterm")
def test_a_process_without_a_handler_of_its_own_has_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    def rays(*_: Any) -> None:
        pass

    starting(monkeypatch)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, rays))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Cluster()
    assert signal.getsignal(signal.SIGTERM) is rays
