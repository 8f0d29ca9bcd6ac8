"""Many requests while Redis is frozen: each is told in time, however many wait."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import httpx
import pytest

from orchestrator.errors import StoreUnavailable
from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import Breaker, RedisCalls, connect
from orchestrator.state.store import JobStore
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings
from tests.lossy import frozen

KEY = "eqp_test"
# A call waits for Redis twice, a second each. Without the breaker the last of these requests waits some 16 s; a busy
# machine takes its own time for 200 of them.
ONE_CALL_S = 10.0


def test_two_hundred_requests_at_once_are_all_told_in_time(tmp_path: Path) -> None:
    api = ApiServer("127.0.0.1", 0)
    with EmbeddedRedis(tmp_path / "redis") as server, connect(server.url) as client:
        api.start(JobStore(client), Settings(state_dir=tmp_path, key_sha256=digest(KEY)))
        try:
            with httpx.Client(base_url=api.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as http:
                made = http.post("/v1/keys", json={"name": "another", "scopes": ["read"]}).json()["key"]
                with frozen(server):
                    answers = asyncio.run(asked_at_once(api.url, [KEY, made] * 100))
                assert {response.status_code for response, _ in answers} == {503}
                assert all(int(response.headers["retry-after"]) > 0 for response, _ in answers)
                assert max(took_s for _, took_s in answers) < ONE_CALL_S
                deadline = time.monotonic() + 20
                while http.get("/v1/jobs").status_code != 200:
                    assert time.monotonic() < deadline, "Redis is back, and the server does not see it"
                    time.sleep(0.05)
        finally:
            api.stop()


async def asked_at_once(url: str, keys: list[str]) -> list[tuple[httpx.Response, float]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:

        async def ask(key: str) -> tuple[httpx.Response, float]:
            began = time.monotonic()
            response = await http.get("/v1/jobs", headers={"authorization": f"Bearer {key}"})
            return response, time.monotonic() - began

        return await asyncio.gather(*(ask(key) for key in keys))


def test_while_redis_is_away_one_call_at_a_time_looks_for_it(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url, timeout_s=0.2) as client:
        patient, calls = RedisCalls(client), RedisCalls(client).failing_fast()
        assert calls.command("PING") is True
        with frozen(server):
            with pytest.raises(StoreUnavailable, match="tried twice"):
                calls.command("PING")
            with pytest.raises(StoreUnavailable, match="just now"):
                calls.command("PING")
            with pytest.raises(StoreUnavailable, match="tried twice"):  # drivers have patience of their own
                patient.command("PING")
        assert patient.command("PING") is True
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(StoreUnavailable):
                assert calls.command("PING") is True
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert all(calls.command("PING") for _ in range(100))


def test_one_probe_among_many_threads() -> None:
    breaker = Breaker(rest_s=0.0)
    assert breaker.admits()
    assert breaker.admits()
    breaker.saw(answered=False)
    admitted: list[bool] = []
    threads = [threading.Thread(target=lambda: admitted.append(breaker.admits())) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 1
    breaker.saw(answered=False)
    assert breaker.admits()
    assert not breaker.admits()
    breaker.saw(answered=True)
    assert breaker.admits()
    assert breaker.admits()
    long = Breaker(rest_s=3600)
    long.saw(answered=False)
    assert not long.admits()
