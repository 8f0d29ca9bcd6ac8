"""What judging costs on our side: calls a second beside what the endpoint allows, overhead of calls and cache hits.

    python -m tests.benchmarks.reward_judges [--calls 512] [--delay-ms 20]

A scripted endpoint in a process of its own answers after a fixed delay. Figures are compared inside one run: calls a
second with concurrency / (delay + one bare call), and a judged call with a bare one of httpx. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import yaml

from rewards.base import RewardBatch
from rewards.judges.judge import Judge, JudgeOptions
from rewards.judges.profiles import VARIABLE

CONCURRENCY = (1, 16, 64)
WORDS = "The answer follows from the second line, which adds what the first one left out. " * 8  # some 150 tokens
_BODY = json.dumps(
    {
        "choices": [{"message": {"role": "assistant", "content": '{"reason": "as asked", "score": 7}'}}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 20},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)

Figures = dict[str, float]


def _serve(delay_s: float, ready: Connection) -> None:
    """As little of HTTP as a client needs, so that the endpoint is never what is measured."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
                if delay_s:
                    await asyncio.sleep(delay_s)
                writer.write(_ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=512)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def endpoint(delay_s: float) -> Iterator[str]:
    """Base URL of an endpoint that answers after `delay_s`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(delay_s, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


@contextmanager
def judging(url: str, **profile: Any) -> Iterator[Judge]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "judges.yaml"
        fields = {"base_url": url, "model": "m", "allow_private": True, "deadline_s": 600}
        file.write_text(yaml.safe_dump({"judges": {"local": {**fields, **profile}}}))
        os.environ[VARIABLE] = str(file)
        judge = Judge(JudgeOptions(profile="local", rubric="helpfulness"))
        try:
            yield judge
        finally:
            judge.close()


def batch(size: int, salt: str) -> RewardBatch:
    return RewardBatch(
        prompts=(WORDS,) * size,
        completions=tuple(f"{salt} {i} {WORDS}" for i in range(size)),
        answers=(None,) * size,
        completion_tokens=(150,) * size,
        truncated=(False,) * size,
        max_tokens=512,
    )


def measure_overhead(calls: int) -> Figures:
    """Of one call at a time without any delay: the median of a judged call beside a bare one of the same bytes."""
    with endpoint(0.0) as url, judging(url, max_concurrency=1) as judge, httpx.Client() as bare:
        question = judge._question(batch(1, "bare"), 0)
        assert question is not None
        body = {"model": "m", "messages": question.messages}
        judged_s, bare_s = [], []
        for i in range(calls):
            started = time.perf_counter()
            bare.post(f"{url}/chat/completions", json=body).raise_for_status()
            bare_s.append(time.perf_counter() - started)
            rows = batch(1, f"overhead {i}")
            started = time.perf_counter()
            judge.score(rows)
            judged_s.append(time.perf_counter() - started)
    return {
        "judged_call_ms": 1e3 * median(judged_s),
        "bare_call_ms": 1e3 * median(bare_s),
        "overhead_ms": 1e3 * (median(judged_s) - median(bare_s)),
    }


def measure_throughput(calls: int, delay_s: float) -> Figures:
    """Calls a second of one batch, and their share of what `concurrency` endless loops of bare calls would make."""
    figures: Figures = {}
    with endpoint(delay_s) as url:
        with httpx.Client() as bare:
            seconds = []
            for _ in range(32):
                started = time.perf_counter()
                bare.post(f"{url}/chat/completions", json={"messages": WORDS}).raise_for_status()
                seconds.append(time.perf_counter() - started)
        for concurrency in CONCURRENCY:
            with judging(url, max_concurrency=concurrency) as judge:
                judge.score(batch(concurrency, "connect"))
                rows = batch(min(calls, concurrency * 64), "measure")
                started = time.perf_counter()
                judge.score(rows)
                per_s = len(rows) / (time.perf_counter() - started)
            figures[f"calls_per_s_at_{concurrency}"] = per_s
            figures[f"share_of_ideal_at_{concurrency}"] = per_s * median(seconds) / concurrency
    return figures


def measure_cache(calls: int) -> Figures:
    """Of an answer that is known: in memory, and in a file only."""
    figures: Figures = {}
    rows = batch(calls, "cache")
    with endpoint(0.0) as url, tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "answers.sqlite")
        for name, profile in (("memory", {}), ("file", {"cache_file": file, "cache_entries": 0})):
            with judging(url, **profile) as judge:
                judge.score(rows)
                asked, seconds = judge.figures()["calls"], []
                for _ in range(5):
                    started = time.perf_counter()
                    judge.score(rows)
                    seconds.append(time.perf_counter() - started)
                assert judge.figures()["calls"] == asked
            figures[f"{name}_hit_us"] = 1e6 * median(seconds) / calls
    return figures


def measure(calls: int = 512, delay_s: float = 0.02) -> Figures:
    """All of it: `calls` of every measurement, of an endpoint that answers after `delay_s`."""
    figures = measure_overhead(calls) | measure_throughput(calls, delay_s) | measure_cache(calls)
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=512, help="of every measurement")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="of the endpoint's answers")
    options = parser.parse_args()
    figures = measure(options.calls, options.delay_ms / 1e3)
    for name, value in figures.items():
        print(f"{name:24} {value:10.3f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
