"""What the API carries on this machine: server, Redis and load generator all on it, each a process of its own.

    python -m tests.benchmarks.api [PART ...] [--rounds 3] [--block-s 2] [--sse-s 60] [--readers 500] [--jobs 10000]

Parts: load (submit, read, list, steer and events at 1, 50 and 500 clients beside a bare FastAPI route that does one
Redis GET under the same server settings, interleaved), once (1,000 concurrent submits with 100 idempotency keys), sse
(readers of one job's stream), many (10,000 finished jobs beside 10). Rate limits are off. read_key is a read with a
key that was made for a person; the others come with the installation's own, which is known without Redis. The clients
are plain asyncio connections that are kept alive and ask again as soon as they are answered: an HTTP library would cost
more than the routes do. Figures go to tests/benchmarks/results/api.json as each part ends; the last line is all of them
as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from orchestrator.spec import parse_spec
from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from orchestrator.state.keystore import KeyStore, Scope
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.steering import initial_steering
from services.keys import digest, new_stored_key
from services.settings import Limits, Settings
from tests.benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "api.json"
KEY = "eqp_benchmark"
OWNER = "bench"
BARE = "bare:value"
KINDS = ("api", "bare", "bare_async")
LEVELS = (1, 50, 500)
SPEC: dict[str, Any] = {
    "name": "benchmark",
    "steps": 100,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.5},
        {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.3},
        {"name": "clarity", "reward": {"name": "clarity"}, "weight": 0.2},
    ],
}
TARGETS: dict[str, tuple[str, float]] = {
    "ratio_get": (">=", 0.5),
    "p99_ms_50": ("<=", 100),
    "errors_5xx": ("==", 0),
    "jobs_created": ("==", 100),
    "sse_missed": ("==", 0),
    "sse_repeated": ("==", 0),
    "list_ratio_10k": ("<=", 1.1),
    "read_ratio_10k": ("<=", 1.1),
}
Figures = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------- servers


@contextmanager
def serving(kind: str, redis_url: str, directory: Path) -> Iterator[tuple[int, int]]:
    """(port, pid) of a server in a process of its own: `api`, or `bare` and `bare_async` to compare with."""
    command = [sys.executable, "-m", "tests.benchmarks.api", "--serve", kind, redis_url, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.stdin.close()  # it ends at the end of its input
        process.wait(30)


def serve(kind: str, redis_url: str, directory: Path) -> None:
    """Under the server settings of `equipoise up`, whatever the app."""
    from services import server

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = JobStore(connect(redis_url), owner=OWNER)
    limits = Limits(writes_per_minute=0, active_jobs=0, active_jobs_local=0)
    settings = Settings(state_dir=directory, key_sha256=digest(KEY), limits=limits)
    if kind != "api":
        server.create_app = lambda *_: bare(kind, redis_url)  # type: ignore[assignment]
    api = server.ApiServer("127.0.0.1", 0)
    api.start(store, settings)
    print(api.port, flush=True)
    sys.stdin.read()
    api.stop()


def bare(kind: str, redis_url: str) -> Any:
    """One route, one GET: with the API's own client in a thread as the API has it, or with the asyncio client."""
    import redis.asyncio
    from fastapi import FastAPI
    from starlette.responses import Response

    app = FastAPI()
    app.state.stopping = threading.Event()
    if kind == "bare":
        client: Any = connect(redis_url)

        @app.get("/value")
        def value() -> Response:
            return Response(client.get(BARE), media_type="application/json")
    else:
        pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url, decode_responses=True, max_connections=40)
        awaited: Any = redis.asyncio.Redis(connection_pool=pool)

        @app.get("/value")
        async def value_async() -> Response:
            return Response(await awaited.get(BARE), media_type="application/json")

    return app


# ---------------------------------------------------------------------------------------------------------- clients


class Connection:
    """HTTP/1.1 kept alive, for answers of a known length."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        start = head.lower().index(b"content-length:") + 15
        length = int(head[start : head.index(b"\r\n", start)])
        return int(head[9:12]), await self.reader.readexactly(length)

    def close(self) -> None:
        self.writer.close()


def request(method: str, path: str, document: Any = None, key: str = KEY, **headers: str) -> bytes:
    content = b"" if document is None else json.dumps(document).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if document is not None:
        lines += ["content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class Answers:
    """Of one kind of request at one level."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # of each block
    statuses: dict[int, int] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.append(seconds)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    @property
    def rate(self) -> float:
        return median(self.rates)

    def ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)


async def block(port: int, clients: int, seconds: float, asked: Sequence[bytes], answers: Answers) -> None:
    """Clients that ask as soon as they are answered; all connect first, and a short start does not count."""
    connections = [Connection(port) for _ in range(clients)]
    for connection in connections:
        await connection.open()
    counted_from = time.perf_counter() + min(0.3, seconds / 4)
    end = counted_from + seconds
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        mine = itertools.cycle(asked[number % len(asked) :: clients] or asked[number % len(asked) :])
        while (began := time.perf_counter()) < end:
            status, _ = await connections[number].ask(next(mine))
            now = time.perf_counter()
            if began >= counted_from:
                answers.add(status, now - began)
            if counted_from <= now < end:
                done += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    answers.rates.append(done / seconds)
    for connection in connections:
        connection.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """On uvloop where it is there, as the server."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


# ------------------------------------------------------------------------------------------------------------- jobs


def submit(store: JobStore, count: int, document: dict[str, Any] = SPEC) -> list[str]:
    """Queued jobs, by the store's own call."""
    spec = parse_spec(document)
    text, steering = spec.to_json(), initial_steering(spec).model_dump(mode="json")

    def one(_: int) -> str:
        job_id = f"job-{secrets.token_hex(6)}"
        store.submit(text, name=spec.name, job_id=job_id, steering=steering)
        return job_id

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, range(count)))


def finish(store: JobStore, ids: Sequence[str]) -> None:
    """Each is claimed, started and ended as a driver does it."""

    def one(job_id: str) -> None:
        lease = store.claim(job_id, nonce=secrets.token_hex(8), ttl_s=60).lease
        assert lease is not None
        store.set_status(lease, JobStatus.RUNNING)
        store.finish(lease, JobStatus.SUCCEEDED)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, ids))


def step_record() -> dict[str, Any]:
    names = [objective["name"] for objective in SPEC["objectives"]]
    figures = {"mean": 0.123456789, "std": 0.123456789, "zero_share": 0.0123456789}
    weights = dict.fromkeys(names, 0.333333333333)
    return {"objectives": dict.fromkeys(names, figures), "weights": {"strategy": weights, "applied": weights}}


# ------------------------------------------------------------------------------------------------------------- load


def measure_load(options: argparse.Namespace) -> Figures:
    """Requests/s and latencies of every kind of request at every level."""
    with world() as (store, redis_url, directory), ExitStack() as servers:
        store.calls.command("SET", BARE, parse_spec(SPEC).to_json())
        key = made_key(store)
        ids = submit(store, max(LEVELS))
        for job_id in ids:
            for number in range(10):
                store.event(job_id, "benchmark", {"number": number})
        ports = {kind: servers.enter_context(serving(kind, redis_url, directory))[0] for kind in KINDS}
        kinds: dict[str, tuple[int, list[bytes]]] = {
            "bare": (ports["bare"], [request("GET", "/value")]),
            "bare_async": (ports["bare_async"], [request("GET", "/value")]),
            "read": (ports["api"], [request("GET", f"/v1/jobs/{job_id}") for job_id in ids]),
            "read_key": (ports["api"], [request("GET", f"/v1/jobs/{job_id}", key=key) for job_id in ids]),
            "list": (ports["api"], [request("GET", "/v1/jobs")]),
            "events": (ports["api"], [request("GET", f"/v1/jobs/{job_id}/events") for job_id in ids]),
            "submit": (ports["api"], [request("POST", "/v1/jobs", SPEC)]),
        }
        found = {(kind, level): Answers() for kind in (*kinds, "steer") for level in LEVELS}
        for level, _ in itertools.product(LEVELS, range(options.rounds)):
            # Each round steers jobs of its own: the log of a job, which a steer reads, grows with every steer.
            fresh = submit(store, max(LEVELS))
            steers = [request("PUT", f"/v1/jobs/{job_id}/steering", {"mode": "manual"}) for job_id in fresh]
            for kind, (port, asked) in {**kinds, "steer": (ports["api"], steers)}.items():
                run(block(port, level, options.block_s, asked, found[kind, level]))
        log = steer_by_log(store, ports["api"])
    figures: Figures = {}
    for (kind, level), answers in found.items():
        figures |= {
            f"{kind}_rps_{level}": round(answers.rate, 1),
            f"{kind}_p50_ms_{level}": round(answers.ms(0.5), 2),
            f"{kind}_p99_ms_{level}": round(answers.ms(0.99), 2),
        }
    ours = [kind for kind in (*kinds, "steer") if not kind.startswith("bare")]
    for kind in ours:
        name = "get" if kind == "read" else kind
        figures[f"ratio_{name}"] = ratio(found[kind, 50], found["bare", 50])
    figures["ratio_get_async"] = ratio(found["read", 50], found["bare_async", 50])
    for level in LEVELS:
        figures[f"p99_ms_{level}"] = max(figures[f"{kind}_p99_ms_{level}"] for kind in ours)
    figures["load_errors_5xx"] = sum(answers.errors for answers in found.values())
    figures["load_statuses"] = {
        kind: dict(sorted(sum_of(found[kind, level].statuses for level in LEVELS).items()))
        for kind in (*kinds, "steer")
    }
    return figures | log


def ratio(ours: Answers, bare: Answers) -> float:
    """Of requests a second, each block beside the other's of the same round, as the machine is not always as fast."""
    return round(median(mine / its for mine, its in zip(ours.rates, bare.rates, strict=True)), 3)


def made_key(store: JobStore) -> str:
    """One that people are given: unlike the installation's own, it is looked up at every request."""
    key_id, text = new_stored_key()
    scopes, keys = {Scope.READ}, KeyStore(store.calls)
    keys.add(key_id=key_id, sha256=digest(text), owner=OWNER, name="benchmark", scopes=scopes, expires_in_s=None)
    return text


def sum_of(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for found in counts:
        for key, count in found.items():
            total[key] = total.get(key, 0) + count
    return total


def steer_by_log(store: JobStore, port: int) -> Figures:
    """How long a steer takes on a job that was steered often."""
    fresh, steered = submit(store, 2)
    for number in range(1000):
        store.steer(steered, change={"blend": number / 1000}, if_match=None, by="benchmark")

    async def measure() -> tuple[float, float]:
        answers = {job_id: Answers() for job_id in (fresh, steered)}
        connection = Connection(port)
        await connection.open()
        for _ in range(40):
            for job_id, mine in answers.items():
                began = time.perf_counter()
                status, _ = await connection.ask(request("PUT", f"/v1/jobs/{job_id}/steering", {"mode": "manual"}))
                assert status == 202
                mine.add(status, time.perf_counter() - began)
        connection.close()
        return answers[fresh].ms(0.5), answers[steered].ms(0.5)

    short, long = run(measure())
    return {"steer_ms_short_log": round(short, 2), "steer_ms_1000_changes": round(long, 2)}


# ------------------------------------------------------------------------------------------------------------- once


def measure_once(_options: argparse.Namespace) -> Figures:
    """1,000 concurrent submits, ten for each of 100 idempotency keys."""
    with world() as (store, redis_url, directory), serving("api", redis_url, directory) as (port, _):
        keys = [secrets.token_hex(8) for _ in range(100)]
        answers, ids = Answers(), set()

        async def one(connection: Connection, key: str, gate: asyncio.Event) -> None:
            await gate.wait()
            began = time.perf_counter()
            status, body = await connection.ask(request("POST", "/v1/jobs", SPEC, idempotency_key=key))
            answers.add(status, time.perf_counter() - began)
            if status == 201:
                ids.add(json.loads(body)["id"])

        async def all_at_once() -> float:
            gate = asyncio.Event()
            connections = [Connection(port) for _ in range(1000)]
            for connection in connections:
                await connection.open()
            tasks = [asyncio.create_task(one(connections[i], keys[i % 100], gate)) for i in range(1000)]
            await asyncio.sleep(0)
            began = time.perf_counter()
            gate.set()
            await asyncio.gather(*tasks)
            seconds = time.perf_counter() - began
            for connection in connections:
                connection.close()
            return seconds

        seconds = run(all_at_once())
        kept = store.calls.command("ZCARD", f"mo:{OWNER}:jobs")
    return {
        "jobs_created": kept,
        "ids_answered": len(ids),
        "accepted_of_1000": answers.statuses.get(201, 0),
        "errors_5xx": answers.errors,
        "once_p50_ms": round(answers.ms(0.5), 1),
        "once_p99_ms": round(answers.ms(0.99), 1),
        "once_s": round(seconds, 2),
    }


# -------------------------------------------------------------------------------------------------------------- sse


@dataclass
class Heard:
    """What one reader of a stream got."""

    numbers: list[int] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    ended: bool = False


async def listen(port: int, job_id: str, heard: Heard) -> None:
    """Reads the chunks of a stream until the server ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request("GET", f"/v1/jobs/{job_id}/events", accept="text/event-stream"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    rest = b""
    while size := int(await reader.readline(), 16):
        piece = await reader.readexactly(size + 2)
        now = time.time()
        *events, rest = (rest + piece[:-2]).split(b"\n\n")
        for event in events:
            data = next((line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")), None)
            if data is not None:
                document = json.loads(data)
                heard.numbers.append(document["seq"])
                if document["type"] == "benchmark":
                    heard.lags_s.append(now - document["at"])
    heard.ended = True
    writer.close()


def measure_sse(options: argparse.Namespace) -> Figures:
    """Readers of one job at 10 events/s: all that was written, once each, in order."""
    with world() as (store, redis_url, directory), serving("api", redis_url, directory) as (port, pid):
        (job_id,) = submit(store, 1)
        everyone = [Heard() for _ in range(options.readers)]
        server = psutil.Process(pid)

        async def measure() -> tuple[float, float]:
            readers = [asyncio.create_task(listen(port, job_id, heard)) for heard in everyone]
            while not all(heard.numbers for heard in everyone):  # the first event is job.queued
                await asyncio.sleep(0.05)
            server.cpu_percent()
            began = time.perf_counter()
            for number in range(round(10 * options.sse_s)):
                await asyncio.sleep(max(0.0, began + number / 10 - time.perf_counter()))
                await asyncio.to_thread(store.event, job_id, "benchmark", {"number": number})
            busy = server.cpu_percent()
            await asyncio.to_thread(store.request_cancel, job_id)  # which ends the streams
            ending = time.perf_counter()
            await asyncio.wait(readers, timeout=120)
            for reader in readers:
                reader.cancel()
            return busy, time.perf_counter() - ending

        busy, ending_s = run(measure())
        written = []
        while page := store.events(job_id, after=len(written), limit=1000).items:
            written += [event.seq for event in page]
        assert written == list(range(1, round(10 * options.sse_s) + 3)), "the job's own events have a gap"
    lags = sorted(lag for heard in everyone for lag in heard.lags_s)
    return {
        "sse_readers": options.readers,
        "sse_s": options.sse_s,
        "sse_events": len(written),
        "sse_missed": sum(len(set(written) - set(heard.numbers)) for heard in everyone),
        "sse_repeated": sum(len(heard.numbers) - len(set(heard.numbers)) for heard in everyone),
        "sse_disordered": sum(heard.numbers != sorted(heard.numbers) for heard in everyone),
        "sse_not_ended": sum(not heard.ended for heard in everyone),
        "sse_p50_lag_ms": round(1e3 * lags[len(lags) // 2], 1),
        "sse_p99_lag_ms": round(1e3 * lags[int(0.99 * len(lags))], 1),
        "sse_server_cpu_percent": round(busy, 1),
        "sse_end_s": round(ending_s, 2),
    }


# ------------------------------------------------------------------------------------------------------------- many


def measure_many(options: argparse.Namespace) -> Figures:
    """Finished jobs, few in one Redis and many in another: what a list, a read and a job cost."""
    with world() as few, world() as many, ExitStack() as servers:
        ids = {}
        for (store, _, _), count in ((few, 10), (many, options.jobs)):
            before = used_bytes(store)
            made = submit(store, count)
            finish(store, made)
            ids[store] = made
            bytes_per_job = (used_bytes(store) - before) / count
        step_bytes = bytes_of_steps(many[0])
        ports = [servers.enter_context(serving("api", redis_url, at))[0] for _, redis_url, at in (few, many)]
        paths = {
            "list": ["/v1/jobs?limit=10"] * 2,
            "read": [f"/v1/jobs/{ids[store][len(ids[store]) // 2]}" for store, _, _ in (few, many)],
        }
        answers = {(kind, place): Answers() for kind in paths for place in (0, 1)}
        slow = {
            "list_by_status": "/v1/jobs?status=running",
            "list_by_metadata": "/v1/jobs?metadata%5Bteam%5D=x",
        }

        async def measure() -> Figures:
            connections = [Connection(port) for port in ports]
            for connection in connections:
                await connection.open()
            for number, kind, place in itertools.product(range(420), paths, (0, 1)):
                began = time.perf_counter()
                status, _ = await connections[place].ask(request("GET", paths[kind][place]))
                assert status == 200
                if number >= 20:
                    answers[kind, place].add(status, time.perf_counter() - began)
            figures: Figures = {}
            for name, path in slow.items():
                seconds = []
                for _ in range(3):
                    began = time.perf_counter()
                    status, _ = await connections[1].ask(request("GET", path))
                    assert status == 200
                    seconds.append(time.perf_counter() - began)
                figures[f"{name}_ms_10k"] = round(1e3 * median(seconds), 1)
            for connection in connections:
                connection.close()
            return figures

        figures = run(measure())
    for kind in paths:
        small, large = (answers[kind, place].ms(0.5) for place in (0, 1))
        figures |= {f"{kind}_ms_10": round(small, 3), f"{kind}_ms_10k": round(large, 3)}
        figures[f"{kind}_ratio_10k"] = round(large / small, 3)
    return {
        "finished_jobs": options.jobs,
        "bytes_per_job": round(bytes_per_job),
        "bytes_per_step": round(step_bytes),
        **figures,
    }


def used_bytes(store: JobStore) -> int:
    info = store.calls.command("INFO", "memory")
    lines = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return int(lines["used_memory"])


def bytes_of_steps(store: JobStore, steps: int = 1000) -> float:
    """What a committed step adds."""
    (job_id,) = submit(store, 1)
    lease = store.claim(job_id, nonce="n", ttl_s=600).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    before, record = used_bytes(store), step_record()
    for step in range(1, steps + 1):
        store.commit(lease, step=step, digest=secrets.token_hex(32), record=record)
    added = used_bytes(store) - before
    store.finish(lease, JobStatus.SUCCEEDED)
    return added / steps


# ------------------------------------------------------------------------------------------------------------- main


@contextmanager
def world() -> Iterator[tuple[JobStore, str, Path]]:
    """A Redis of its own that loses nothing, as `equipoise up` has it."""
    with (
        tempfile.TemporaryDirectory(prefix="eqp-") as directory,
        EmbeddedRedis(Path(directory) / "redis") as redis,
        connect(redis.url, timeout_s=5) as client,
    ):
        yield JobStore(client, owner=OWNER), redis.url, Path(directory)


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "load": measure_load,
    "once": measure_once,
    "sse": measure_sse,
    "many": measure_many,
}


def show(figures: Figures) -> None:
    console = Console(width=140)
    table = Table("requests", *(f"{name} {level}" for level in LEVELS for name in ("req/s", "p50 ms", "p99 ms")))
    for kind in ("bare", "bare_async", "read", "read_key", "list", "events", "submit", "steer"):
        cells = [figures.get(f"{kind}_{name}_{level}") for level in LEVELS for name in ("rps", "p50_ms", "p99_ms")]
        table.add_row(kind, *("" if cell is None else f"{cell:g}" for cell in cells))
    console.print(table)
    rest = Table("figure", "value", "target", "")
    for name, value in figures.items():
        if name in TARGETS:
            sign, target = TARGETS[name]
            met = {">=": value >= target, "<=": value <= target, "==": value == target}[sign]
            rest.add_row(name, f"{value:g}", f"{sign} {target:g}", "met" if met else "MISSED")
        elif isinstance(value, int | float) and not name.startswith(("bare", "read_", "list_r", "list_p", "submit_")):
            rest.add_row(name, f"{value:g}", "", "")
    console.print(rest)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.api", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when absent")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of every kind and level")
    parser.add_argument("--block-s", type=float, default=2.0, help="length of a block")
    parser.add_argument("--sse-s", type=float, default=60.0, help="how long events are written")
    parser.add_argument("--readers", type=int, default=500, help="of the stream")
    parser.add_argument("--jobs", type=int, default=10_000, help="finished ones")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "REDIS", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.serve[1], Path(options.serve[2]))
        return
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; parts are {', '.join(PARTS)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    results: Figures = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in options.parts or PARTS:
        print(f"== {name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        results |= PARTS[name](options)
        results["machine"] = machine()
        options.results.parent.mkdir(exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
