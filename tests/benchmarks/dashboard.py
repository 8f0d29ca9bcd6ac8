"""What the dashboard costs and how soon it shows what happened, in a real Chromium on this machine.

    python -m tests.benchmarks.dashboard [PART ...] [--pages 25] [--window-s 5] [--turns 24] [--rounds 3] [--updates 60]

Parts: start (serve until /readyz, with the dashboard and without), load (a first visit with an empty cache until a
job's charts are drawn), update (from a step's commit by Redis' clock until its chart is drawn), long (10,000 steps of 5
objectives: until all charts in sight are drawn, and the longest gap between frames while scrolling through), slowdown
(steps a second of a job that hashes, with open pages and their server stopped or running, in turns; then it is killed).
Server, driver, Redis and browser share the machine; in the part slowdown pages are open without a browser, as other
people's computers draw them (watchers.py), and one real page says whether they are sent what it is sent. Figures go to
tests/benchmarks/results/dashboard.json as each part ends; the last line is all of them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from playwright.sync_api import Browser, BrowserContext, Page, WebSocket, sync_playwright
from rich.console import Console
from rich.table import Table

from services.dashboard.watch import LINGER_S
from tests.benchmarks.machine import machine
from tests.benchmarks.watchers import watching
from tests.browser.chromium import launch
from tests.browser.conftest import wait_for_points
from tests.browser.seeded import names_of
from tests.browser.stage import Stage
from tests.toy_api import KEY

Figures = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "dashboard.json"
TARGETS: dict[str, float] = {"ready_s": 3.0, "load_s": 2.0, "update_p95_s": 2.0, "long_job_s": 3.0, "slowdown": 0.03}
WATCH = """name => {
    const chart = [...document.querySelectorAll('.chart-canvas')].find((one) => one.ariaLabel.startsWith(name));
    window.drawn = {};
    const note = () => { window.drawn[chart.dataset.points] ??= Date.now() / 1000; };
    new MutationObserver(note).observe(chart, { attributes: true, attributeFilter: ['data-points'] });
}"""
SCROLL = """() => new Promise((done) => {
    const gaps = [];
    let last = performance.now();
    const end = document.documentElement.scrollHeight - innerHeight;
    const frame = (now) => {
        gaps.push(now - last);
        last = now;
        scrollBy(0, 60);
        if (scrollY >= end - 1) done(gaps.slice(1));
        else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
})"""


def signed_in(browser: Browser, stage: Stage) -> BrowserContext:
    """A browser with an empty cache and a session."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(120_000)
    answer = context.request.post(
        f"{stage.url}/signin", form={"key": KEY}, headers={"origin": stage.url}, max_redirects=0
    )
    assert answer.status == 303, answer.status
    return context


def opened(context: BrowserContext, stage: Stage, job: str, least: int) -> tuple[Page, float]:
    """A job's page, and how long it took until its first chart was drawn and its controls answer."""
    page = context.new_page()
    began = time.monotonic()
    page.goto(f"{stage.url}/jobs/{job}", wait_until="commit")
    wait_for_points(page, "", least)
    page.wait_for_function("window.did_handshake === true")
    return page, time.monotonic() - began


def measure_start(stage: Stage, _browser: Browser, options: argparse.Namespace) -> Figures:
    """`equipoise serve` until /readyz, with the dashboard and without, in turns."""
    found: dict[str, list[float]] = {"1": [], "0": []}
    for _ in range(options.rounds):
        for chosen, times in found.items():
            stage.api.kill()
            os.environ["EQUIPOISE_DASHBOARD"] = chosen
            times.append(stage.api.start())
    os.environ.pop("EQUIPOISE_DASHBOARD")
    stage.api.kill()
    stage.api.start()
    return {"ready_s": median(found["1"]), "ready_without_s": median(found["0"])}


def measure_load(stage: Stage, browser: Browser, options: argparse.Namespace) -> Figures:
    """First visits, each with an empty cache; the very first one after the server's start is told apart."""
    job = stage.seeded(names_of(3), steps=200, every=10, name="load")
    stage.api.kill()
    stage.api.start()
    times = []
    for _ in range(max(4, options.rounds + 1)):
        context = signed_in(browser, stage)
        times.append(opened(context, stage, job, 200)[1])
        context.close()
    return {"load_cold_s": times[0], "load_s": median(times[1:]), "load_max_s": max(times[1:])}


def measure_update(stage: Stage, browser: Browser, options: argparse.Namespace) -> Figures:
    """Every step of a job of two steps a second."""
    job = stage.job(step_s=0.45, steps=100_000, seed=31)
    stage.wait_for_step(job, 3)
    context = signed_in(browser, stage)
    page, _ = opened(context, stage, job, 3)
    page.evaluate(WATCH, "accuracy")
    first = stage.store.job(job).step + 2
    stage.wait_for_step(job, first + options.updates, timeout_s=options.updates * 5)
    time.sleep(3)
    drawn: dict[str, float] = page.evaluate("window.drawn")
    context.close()
    stage.client.cancel(job)
    committed = {record["step"]: record["at"] for record in stage.client.iter_metrics(job, names=["at"])}
    late = []
    for step in range(first, first + options.updates):
        seen = [at for points, at in drawn.items() if int(points) >= step]
        late.append(min(seen) - committed[step])
    cuts = quantiles(late, n=20)
    return {"update_p50_s": median(late), "update_p95_s": cuts[18], "update_max_s": max(late)}


def measure_long(stage: Stage, browser: Browser, options: argparse.Namespace) -> Figures:
    """Ten thousand steps of five objectives."""
    job = stage.seeded(names_of(5), steps=10_000, every=100, name="long", total=20_000)
    times, frames = [], []
    for _ in range(max(3, options.rounds - 1)):
        context = signed_in(browser, stage)
        page, took_s = opened(context, stage, job, 300)
        times.append(took_s)
        frames += page.evaluate(SCROLL)
        context.close()
    return {
        "long_job_s": median(times),
        "long_job_max_s": max(times),
        "scroll_frame_p95_ms": quantiles(frames, n=20)[18],
        "scroll_frame_max_ms": max(frames),
    }


def measure_slowdown(stage: Stage, browser: Browser, options: argparse.Namespace) -> Figures:
    """A job that keeps a core busy, with open pages, its server stopped and let go in turns; then it is killed.

    Some six steps a second, a checkpoint every four seconds and an evaluation every eight: as fast as jobs come.
    """
    job = stage.job(step_s=0.0, steps=1_000_000, seed=33, work_mib=200, every=25)
    stage.wait_for_step(job, 5)
    seen = browser_messages(stage, browser, job, options.window_s)
    server, driver = psutil.Process(stage.api.process.pid), psutil.Process(busiest(stage))
    rates: dict[str, list[float]] = {"stopped": [], "watched": [], "killed": []}
    cores: dict[str, list[float]] = {kind: [] for kind in rates}  # that the job has: what others leave it

    def count(kind: str) -> None:
        before = sum(driver.cpu_times()[:2])
        rates[kind].append(rate(stage, job, options.window_s))
        cores[kind].append((sum(driver.cpu_times()[:2]) - before) / options.window_s)

    with watching(stage.url, KEY, f"/jobs/{job}", options.pages) as watchers:
        time.sleep(LINGER_S)  # the real page's reading ends
        watchers.reset()
        before, watched_s = sum(server.cpu_times()[:2]), 0.0
        for _ in range(options.turns):
            for kind, turn in (("stopped", server.suspend), ("watched", server.resume)):
                turn()
                time.sleep(0.5)
                count(kind)
            watched_s += options.window_s + 0.5
        server_cores = (sum(server.cpu_times()[:2]) - before) / watched_s
        messages = [page.messages / watched_s for page in watchers.pages]
        fence = stage.store.job(job).fence
        stage.api.kill()
        for _ in range(options.turns // 2):
            count("killed")
    record = stage.store.job(job)
    assert (record.status, record.fence) == ("running", fence), "the job did not go on as if nothing had happened"
    stage.api.start()
    stage.client.cancel(job)
    stopped = median(rates["stopped"])
    losses = [1 - watched / alone for alone, watched in zip(rates["stopped"], rates["watched"], strict=True)]
    return {
        "steps_per_s_server_stopped": stopped,
        "steps_per_s_watched": median(rates["watched"]),
        "slowdown": median(losses),
        "slowdown_quartiles": [round(cut, 3) for cut in quantiles(losses, n=4)],
        "steps_per_s_server_killed": median(rates["killed"]),
        "job_cores": {kind: round(median(found), 3) for kind, found in cores.items()},
        "killed_cores_lost": 1 - median(cores["killed"]) / median(cores["stopped"]),
        "server_cores_watched": server_cores,
        "messages_per_s": median(messages),
        "messages_per_s_browser": seen,
        "pages": options.pages,
        "turns": options.turns,
    }


def busiest(stage: Stage) -> int:
    """The process that does the job's work: of the stage's, the one that has had most of the processor lately."""
    own = [process for process in psutil.Process().children(recursive=True) if process.pid != stage.api.process.pid]
    before = {process.pid: sum(process.cpu_times()[:2]) for process in own}
    time.sleep(1)
    return max(own, key=lambda process: sum(process.cpu_times()[:2]) - before[process.pid]).pid


def browser_messages(stage: Stage, browser: Browser, job: str, window_s: float) -> float:
    """What a real page of that job is sent a second: pages without a screen must be sent as much."""
    context = signed_in(browser, stage)
    page = context.new_page()
    frames: list[str] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda data: frames.append(str(data)))

    page.on("websocket", listen)
    page.goto(f"{stage.url}/jobs/{job}", wait_until="commit")
    wait_for_points(page, "", 1)
    page.wait_for_timeout(2_000)
    before = len(frames)
    page.wait_for_timeout(1_000 * window_s)
    told = sum(frame.startswith("42") for frame in frames[before:])  # socket.io's events, without pings
    context.close()
    return told / window_s


def rate(stage: Stage, job: str, window_s: float) -> float:
    began, first = time.monotonic(), stage.store.job(job).step
    time.sleep(window_s)
    return (stage.store.job(job).step - first) / (time.monotonic() - began)


PARTS: dict[str, Callable[[Stage, Browser, argparse.Namespace], Figures]] = {
    "start": measure_start,
    "load": measure_load,
    "update": measure_update,
    "long": measure_long,
    "slowdown": measure_slowdown,
}


def show(figures: Figures) -> None:
    table = Table("figure", "value", "target", "")
    for name, value in figures.items():
        if isinstance(value, int | float):
            target = TARGETS.get(name)
            told = ("", "") if target is None else (f"<= {target:g}", "met" if value <= target else "MISSED")
            table.add_row(name, f"{value:.3g}", *told)
    Console(width=100).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when absent")
    parser.add_argument("--pages", type=int, default=25, help="that are open at once")
    parser.add_argument("--window-s", type=float, default=5.0, help="over which steps are counted")
    parser.add_argument("--turns", type=int, default=24, help="of the server in the part slowdown")
    parser.add_argument("--rounds", type=int, default=3, help="of what is measured several times")
    parser.add_argument("--updates", type=int, default=60, help="steps whose way to the chart is timed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; parts are {', '.join(PARTS)}")
    results: Figures = json.loads(options.results.read_text()) if options.results.exists() else {}
    scratch = Path(tempfile.mkdtemp(prefix="equipoise-dashboard-"))
    try:
        with sync_playwright() as playwright, Stage(scratch) as stage:
            browser = launch(playwright)
            for name in options.parts or PARTS:
                print(f"== {name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
                results |= PARTS[name](stage, browser, options)
                results["machine"] = machine()
                options.results.write_text(json.dumps(results, indent=1) + "\n")
            browser.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show(results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
