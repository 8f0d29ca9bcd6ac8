"""Ray's own start, on machines that are busy."""

from typing import Any

import pytest
import ray

from orchestrator.cluster import Cluster

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


def test_a_second_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, Exception(SLOW), Exception(SLOW))
    with pytest.raises(Exception, match="timed out during startup"):
        Cluster()
    assert calls.count("init") == 2


def test_any_other_error_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starting(monkeypatch, ConnectionError("no cluster there"))
    with pytest.raises(ConnectionError):
        Cluster()
    assert calls == ["init"]
