"""A job as it happens, in a terminal: a live view, or one line per step where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.clock import STAGES, tokens_per_s
from orchestrator.comparison import tested_points
from orchestrator.directions import better_words
from policies.places import is_gated
from services.client import ApiError, Client, RateLimited, Unavailable
from services.client.flows import RESTING
from services.terminal import Document, fail, say
from services.text import at_told, duration, event_line, figure, is_number, plain, signed, sparkline
from services.trackers.recorder import Open, Recorder

_STAGES = tuple(({"rollout": "roll out"}.get(stage, stage), stage) for stage in (*STAGES, "other"))
_TRAINING = {"loss": "loss", "pairs right": "pair_accuracy", "gradient": "grad_norm"}
_LEVEL_STYLES = {"warning": "yellow", "error": "bold red"}
_SMOOTHING_STEPS = 5
_TREND_WIDTH = 16
_PATIENCE_S = 120.0
_EVENTS_KEPT = 1000
LONG_S = 600.0  # what a step is at for longer gets a line
_NOT_SHOWN = ("gramian", "engine_health")  # the largest parts of a record
_SHOWN = (  # of a step: its whole record is ten times as large, and a job may have ten thousands
    "objectives", "weights", "evaluation", "timings_s", "tokens", "mean_tokens", "entropy", "kl", *_TRAINING.values(),
)  # fmt: skip


class Follower:
    """What is known of one job; `poll` asks for the rest."""

    def __init__(self, client: Client, job_id: str, trackers: Mapping[str, Open] = MappingProxyType({})) -> None:
        self._client = client
        self.job: Document = client.job(job_id)
        self.recorder = Recorder(client, self.job, trackers)
        self.steps: list[Document] = []
        self.front: Document = {}
        self.events: list[Document] = []
        self.trouble = ""
        self._away_since: float | None = None
        self._names = None if trackers else _SHOWN

    @property
    def trains_reward(self) -> bool:
        """A job with neither objectives nor a front."""
        return bool(self.job.get("spec", {}).get("kind") == "reward_model")

    def poll(self) -> tuple[list[Document], list[Document]]:
        """Fetches what is new; returns the new steps and events.

        A server, or a proxy before it, that does not answer now is `trouble` at first, and an ApiError when it stays
        away.
        """
        try:
            news = self._fetch()
        except ApiError as error:
            self._away_since = self._away_since or time.monotonic()
            if not isinstance(error, Unavailable | RateLimited) or time.monotonic() - self._away_since > _PATIENCE_S:
                raise
            self.trouble = f"{error}; trying again"
            return [], []
        self.trouble, self._away_since = "", None
        self.recorder.take(self.job, self.steps, self.front)
        return news

    def _fetch(self) -> tuple[list[Document], list[Document]]:
        job_id = self.job["id"]
        self.job = self._client.job(job_id)
        events = self._fetch_events()
        self.events = [*self.events, *events][-_EVENTS_KEPT:]
        undone = [event["data"]["to"] for event in events if event["type"] in ("job.claimed", "job.rewound")]
        last = min([self.job["step"], *undone])  # a crash undid the steps after it
        self.steps = [step for step in self.steps if step["step"] <= last]
        after = self.steps[-1]["step"] if self.steps else 0
        steps: list[Document] = [
            {name: value for name, value in step.items() if name not in _NOT_SHOWN}
            for step in self._client.iter_metrics(job_id, after=after, names=self._names)
        ]
        self.steps += steps
        if self.trains_reward:
            return steps, events
        if not self.front or self.job["status"] in RESTING or any(step.get("evaluation") for step in steps):
            self.front = self._client.front(job_id)
        return steps, events

    def _fetch_events(self) -> list[Document]:
        """What is new. Where the last one is another than it was, the job was put back: all that was known is gone.

        So it is asked for again with each look: from an older copy of Redis, a job gives its numbers a second time.
        """
        last = self.events[-1] if self.events else None
        found: list[Document] = []
        after, more = last["seq"] - 1 if last else 0, True
        while more:
            page = self._client.events(self.job["id"], after=after, limit=100)
            found += page["data"]
            more = page["has_more"] and bool(page["data"])
            after = page["data"][-1]["seq"] if page["data"] else after
        if last is None:
            return found
        if found and found[0]["seq"] == last["seq"] and found[0].get("at") == last.get("at"):
            return found[1:]
        if found and found[0]["seq"] > last["seq"]:  # it is no longer kept, and maybe others after it
            return found
        self.events, self.steps, self.front = [], [], {}
        return self._fetch_events()


class Untold(Exception):
    """The job rests, and a tracker does not have all of it; the message names it."""


def follow(
    client: Client,
    job_id: str,
    console: Console,
    *,
    poll_s: float = 1.0,
    trackers: Mapping[str, Open] = MappingProxyType({}),
) -> Document:
    """Shows the job until it rests, and returns it; `trackers` are told of it meanwhile. Raises Untold."""
    follower = Follower(client, job_id, trackers)
    try:
        if console.is_terminal:
            _follow_live(follower, console, poll_s)
        else:
            _follow_lines(follower, console, poll_s)
        follower.recorder.finish(follower.job, follower.steps, follower.front)
    finally:
        follower.recorder.close(follower.job["status"])
    if follower.front.get("points"):
        console.print(front_table(follower.front))
    if trouble := follower.recorder.trouble:
        raise Untold(trouble)
    return follower.job


def follow_to_end(
    client: Client, job_id: str, console: Console, trackers: Mapping[str, Open] = MappingProxyType({})
) -> None:
    """For a command: exit code 0 only where the job has succeeded, else 1; 2 where a tracker lacks some of it.

    130 after Ctrl-C, which lets the job go on.
    """
    try:
        job = follow(client, job_id, console, trackers=trackers)
    except Untold as error:
        fail(f"{error}; the job is as it was, and the same command sends what is missing")
    except KeyboardInterrupt:
        say(f"detached, the job goes on; `equipoise follow {job_id}` shows it, `equipoise cancel {job_id}` ends it")
        raise typer.Exit(130) from None
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _follow_live(follower: Follower, console: Console, poll_s: float) -> None:
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            _, events = follower.poll()
            for event in events:
                live.console.print(Text(event_line(event), style=_LEVEL_STYLES.get(event["level"], "dim")))
            live.update(_view(follower), refresh=True)
            if follower.job["status"] in RESTING:
                return
            time.sleep(poll_s)


def _follow_lines(follower: Follower, console: Console, poll_s: float) -> None:
    stage = trouble = untold = ""
    told_of: Any = None  # since when what goes on for long does
    while True:
        steps, events = follower.poll()
        if follower.recorder.trouble != untold:
            untold = follower.recorder.trouble
            _line(console, f"- {plain(untold) or 'the trackers take steps again'}")
        if follower.trouble != trouble:
            trouble = follower.trouble
            _line(console, f"- {trouble or 'the server is back'}")
        for event in events:
            _line(console, f"- {event_line(event)}")
        if (now := follower.job["progress"].get("stage")) != stage and now:
            stage = now
            _line(console, f"- {plain(now)}")
        since = follower.job["progress"].get("since")
        if since != told_of and (at := at_told(follower.job["progress"], LONG_S)):
            told_of = since
            _line(console, f"- {at}")
        for step in steps:
            _line(console, step_line(follower.job, follower.steps[0], step))
        if follower.job["status"] in RESTING:
            _line(console, outcome_line(follower.job))
            return
        time.sleep(poll_s)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _view(follower: Follower) -> RenderableType:
    view = render(follower.job, follower.steps, follower.front, follower.events)
    troubles = [
        Text(plain(trouble), style="yellow") for trouble in (follower.trouble, follower.recorder.trouble) if trouble
    ]
    return Group(view, *troubles) if troubles else view


def render(job: Document, steps: list[Document], front: Document, events: list[Document]) -> RenderableType:
    """The whole view from four documents of the API; pure, so that a test can read it."""
    parts: list[RenderableType] = [_header(job), _progress(job)]
    if steps and "objectives" not in steps[-1]:
        parts.append(_training(steps))
    elif steps:
        parts += [_objectives(steps), _health(steps[-1], front), _times(steps)]
    warnings = [event for event in events if event["level"] in _LEVEL_STYLES][-3:]
    parts += [Text(event_line(event), style=_LEVEL_STYLES[event["level"]]) for event in warnings]
    return Group(*parts)


def step_line(job: Document, first: Document, step: Document) -> str:
    """One step as one line."""
    parts = [f"step {step['step']}/{job['total_steps'] or '?'}"]
    if "objectives" not in step:  # a reward model is trained
        parts += [f"{name} {figure(step.get(key), 4)}" for name, key in _TRAINING.items() if is_number(step.get(key))]
        return "  ".join([*parts, f"left {duration(job['progress'].get('eta_s'))}"])
    for name, now in step["objectives"].items():
        change = _difference(now["mean"], first["objectives"][name]["mean"])
        parts.append(f"{plain(name)} {figure(now['mean'])} ({signed(change)})")
    if evaluation := step.get("evaluation"):
        parts.append(f"hypervolume {figure(evaluation.get('hypervolume'), 4)}")
    parts.append(f"{_speed(step)} tokens/s")
    parts.append(f"left {duration(job['progress'].get('eta_s'))}")
    return "  ".join(parts)


def outcome_line(job: Document) -> str:
    why = plain(job["reason"] or "").removeprefix(f"{job['status']}: ")  # "paused: ..." is said once
    reason = f": {why}" if why else ""
    return f"{job['id']} {job['status']}{reason} (step {job['step']}/{job['total_steps'] or '?'})"


def front_table(front: Document) -> Table:
    """The start and every point on the front, with what each reaches on held-out prompts of both splits."""
    names = front["objectives"]
    volumes = dict(front.get("hypervolume_by_step", []))
    table = Table(
        title=f"Pareto front: {_hypervolume(front)}{_tested(front)}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    told = [plain(name + better_words(front, name)) for name in names]
    for column in ("step", "prompts", *told, "tokens", "volume", ""):
        table.add_column(
            Text(column), justify="left" if column in ("prompts", "") else "right", no_wrap=column == "prompts"
        )
    for point in (point for point in front["points"] if point["on_front"] or point["step"] == 0):
        notes = ["kept" if point["checkpoint"] else "", "" if point["on_front"] else "off it"]
        notes.append("collapsed" if point.get("collapsed") else "")
        table.add_row(
            str(point["step"]),
            "validation",
            *_figures(point, names),
            figure(volumes.get(point["step"]), 4),
            ", ".join(note for note in notes if note),
        )
        for kind, values in (point.get("test") or {}).items():
            table.add_row("", f"test {plain(kind)}", *_figures(values or {}, names), "", "")
        for name, values in (point.get("sets") or {}).items():
            table.add_row("", plain(name), *_figures(values, names), "", "")
    captions = {
        "an objective with a gate counts after it on the front; figures are before it": is_gated(front["points"]),
        "±: standard error": any(point.get("standard_errors") for point in front["points"]),
    }
    table.caption = "\n".join(caption for caption, is_due in captions.items() if is_due) or None
    return table


def _figures(values: Document, names: list[str]) -> list[str]:
    means, errors = (values.get(key) or {} for key in ("objectives", "standard_errors"))
    told = (figure(means.get(name)) + (f" ±{figure(errors[name])}" if errors.get(name) else "") for name in names)
    return [*told, figure(values.get("mean_tokens"), 1)]


def _header(job: Document) -> Text:
    style = {"running": "bold green", "failed": "bold red", "paused": "yellow"}.get(job["status"], "bold")
    text = Text.assemble((plain(job["name"]), "bold"), f"  {job['id']}  ", (job["status"], style))
    if job["reason"]:
        text.append(f"  {plain(job['reason'])}")
    if (stage := job["progress"].get("stage")) and job["status"] not in RESTING:
        at = at_told(job["progress"])
        text.append(f"  {plain(stage)}{f', {at}' if at else ''}", style="cyan")
    return text


def _progress(job: Document) -> RenderableType:
    total = job["total_steps"] or 1
    grid = Table.grid(padding=(0, 1))
    left = duration(job["progress"].get("eta_s"))
    share = f"{100 * job['step'] / total:.0f}%"
    grid.add_row(
        f"step {job['step']}/{job['total_steps'] or '?'}",
        ProgressBar(total=total, completed=job["step"], width=30),
        share,
        "" if job["status"] in RESTING else f"time left {left}",
    )
    return grid


def _objectives(steps: list[Document]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("objective", "now", "since start", "held-out", "trend", "weight", "strategy"):
        width = _TREND_WIDTH if column == "trend" else None
        table.add_column(column, justify="left" if column in ("objective", "trend") else "right", min_width=width)
    last = steps[-1]
    evaluation: Document = next((step["evaluation"] for step in reversed(steps) if step.get("evaluation")), {})
    for name in last["objectives"]:
        series = [step["objectives"][name]["mean"] for step in steps]
        now, start = _ends(series)
        table.add_row(
            Text(plain(name)),
            figure(now),
            _arrow(_difference(now, start)),
            figure(evaluation.get("objectives", {}).get(name)),
            sparkline(series, _TREND_WIDTH),
            figure(last["weights"]["applied"].get(name), 2),
            figure(last["weights"]["strategy"].get(name), 2),
        )
    return table


def _training(steps: list[Document]) -> Table:
    """What a reward model's updates say."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("figure", "now", "since start", "trend"):
        table.add_column(column, justify="left" if column in ("figure", "trend") else "right")
    for name, key in _TRAINING.items():
        series = [step.get(key) for step in steps]
        now, start = _ends(series)
        if now is not None:
            table.add_row(name, figure(now, 4), signed(_difference(now, start)), sparkline(series, _TREND_WIDTH))
    return table


def _health(step: Document, front: Document) -> Text:
    pairs = [
        ("", _hypervolume(front)),
        ("tokens/s", _speed(step)),
        ("tokens each", figure(step.get("mean_tokens"), 1)),
        ("entropy", figure(step.get("entropy"), 2)),
        ("KL", figure(step.get("kl"), 4)),
    ]
    return Text("   ").join(Text.assemble((f"{name} " if name else "", "dim"), value) for name, value in pairs)


def _hypervolume(front: Document) -> str:
    now, start = front.get("hypervolume"), front.get("hypervolume_base")
    return f"hypervolume {figure(now, 4)} ({figure(start, 4)} at the start)"


def _tested(front: Document) -> str:
    now, start = front.get("hypervolume_test"), front.get("hypervolume_test_base")
    if now is None:
        return ""
    tested, of = tested_points(front)
    part = "" if tested == of else f", with {tested} of its {of} points,"
    return f"; on the test split{part} {figure(now, 4)} ({figure(start, 4)} at the start)"


def _times(steps: list[Document]) -> Text:
    """Where the time of the latest steps went."""
    recent = steps[-_SMOOTHING_STEPS:]
    totals = {key: sum(step["timings_s"].get(key) or 0.0 for step in recent) for _, key in (*_STAGES, ("", "step"))}
    whole = totals["step"] or 1.0
    parts = [f"{name} {100 * totals[key] / whole:.0f}%" for name, key in _STAGES]
    return Text.assemble(("time ", "dim"), "  ".join(parts), ("   per step ", "dim"), f"{whole / len(recent):.1f} s")


def _ends(series: list[Any]) -> tuple[float | None, float | None]:
    """The latest value and the first one, each as a mean over a few steps, as single steps are noisy."""
    known = [value for value in series if is_number(value)]
    if not known:
        return None, None
    window = min(_SMOOTHING_STEPS, max(1, len(known) // 2))
    return sum(known[-window:]) / window, sum(known[:window]) / window


def _arrow(change: float | None) -> Text:
    if change is None or abs(change) < 0.0005:
        return Text("→ " + signed(change), style="dim")
    return Text(f"↑ {signed(change)}", style="green") if change > 0 else Text(f"↓ {signed(change)}", style="red")


def _difference(now: Any, start: Any) -> float | None:
    return now - start if is_number(now) and is_number(start) else None


def _speed(step: Document) -> str:
    speed = tokens_per_s(step)
    return "–" if speed is None else f"{speed:,.0f}"
