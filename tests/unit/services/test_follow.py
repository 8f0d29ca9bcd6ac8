"""The live view and the plain lines, from documents alone."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console, RenderableType

from orchestrator.state.census import Pulse
from services import follow as module
from services.client import ApiError, RateLimited, Unavailable, Unreachable
from services.dashboard.watch import figures
from services.follow import Follower, follow, front_table, outcome_line, render, step_line
from services.text import duration, event_line, plain, sparkline

Document = dict[str, Any]


def a_job(**changes: Any) -> Document:
    return {
        "id": "job-1", "name": "tiny", "status": "running", "reason": None, "step": 20, "total_steps": 40,
        "attempts": 1, "checkpoint_step": 20, "progress": {"stage": "training", "eta_s": 80.0}, **changes,
    }  # fmt: skip


def a_step(step: int, accuracy: float | None = None, **changes: Any) -> Document:
    return {
        "step": step,
        "objectives": {
            "accuracy": {"mean": 0.5 + step / 100 if accuracy is None else accuracy, "std": 0.1, "zero_share": 0.2},
            "clarity": {"mean": 0.9 - step / 100, "std": 0.1, "zero_share": 0.2},
        },
        "weights": {
            "strategy": {"accuracy": 0.81, "clarity": 0.19},
            "applied": {"accuracy": 0.6, "clarity": 0.4},
        },
        "tokens": 12000, "mean_tokens": 30.5, "entropy": 0.7, "kl": 0.01, "evaluation": None,
        "timings_s": {"rollout": 1.0, "score": 0.1, "learn": 0.8, "sync": 0.05, "evaluate": 0.0, "step": 2.0},
        **changes,
    }  # fmt: skip


FRONT: Document = {
    "objectives": ["accuracy", "clarity"], "ranges": {}, "reference": {}, "initial": {}, "hypervolume": 0.6123,
    "hypervolume_base": 0.5001, "hypervolume_by_step": [[0, 0.5001], [10, 0.55], [20, 0.6123]],
    "points": [
        {"step": 0, "objectives": {"accuracy": 0.5, "clarity": 0.9}, "mean_tokens": 28.0, "on_front": False,
         "collapsed": False, "checkpoint": False, "test": None,
         "standard_errors": {"accuracy": 0.021, "clarity": None}},
        {"step": 10, "objectives": {"accuracy": 0.4, "clarity": 0.4}, "mean_tokens": 20.0, "on_front": False,
         "collapsed": False, "checkpoint": False, "test": None},
        {"step": 20, "objectives": {"accuracy": 0.71, "clarity": 0.82}, "mean_tokens": 31.0, "on_front": True,
         "collapsed": False, "checkpoint": True,
         "test": {"sampled": {"objectives": {"accuracy": 0.69, "clarity": 0.8}, "mean_tokens": 31.0,
                              "standard_errors": {"accuracy": 0.03, "clarity": 0.012}},
                  "greedy": {"objectives": {"accuracy": 0.93, "clarity": 0.85}, "mean_tokens": 30.0}}},
    ],
}  # fmt: skip


def shown(view: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(view)
    return console.export_text()


def event(seq: int, kind: str, level: str = "info", **data: Any) -> Document:
    return {"seq": seq, "type": kind, "at": 1.0, "level": level, "data": data}


def test_the_view_answers_where_it_is_what_moves_and_who_decides() -> None:
    steps = [a_step(step) for step in range(1, 21)]
    steps[-1]["evaluation"] = {
        "objectives": {"accuracy": 0.66, "clarity": 0.7},
        "hypervolume": 0.6123,
        "mean_tokens": 30,
    }
    text = shown(render(a_job(), steps, FRONT, [event(1, "collapse.detected", "warning", objective="clarity")]))
    for part in (
        "tiny  job-1  running  training", "step 20/40", "50%", "time left 1:20",
        "0.680", "↑ +0.150", "↓ -0.150", "0.660", "0.60", "0.81",
        "hypervolume 0.6123 (0.5001 at the start)", "tokens/s 6,000", "roll out 50%", "learn 40%", "2.0 s",
        "collapse.detected  objective=clarity",
    ):  # fmt: skip
        assert part in text, part
    assert "▁" in text
    assert "█" in text


def test_the_view_stands_before_the_first_step_and_without_a_total() -> None:
    text = shown(render(a_job(step=0, total_steps=None, progress={"stage": "starting engines"}), [], {}, []))
    assert "starting engines" in text
    assert "step 0/?" in text


def test_the_view_survives_figures_that_are_missing() -> None:
    step = a_step(1, entropy=None, kl=None, mean_tokens=None)
    step["objectives"]["accuracy"]["mean"] = None
    step["timings_s"]["step"] = None
    assert "–" in shown(render(a_job(), [step], {}, []))


def test_a_step_that_evaluates_is_as_fast_as_others_and_its_shares_are_all_of_it() -> None:
    timings = {"rollout": 2.0, "score": 0.0, "learn": 1.0, "sync": 0.0, "evaluate": 6.0, "checkpoint": 2.0}
    step = a_step(1, timings_s={**timings, "other": 1.0, "step": 12.0})
    text = shown(render(a_job(), [step], {}, []))
    shares = "roll out 17%  score 0%  learn 8%  sync 0%  evaluate 50%  checkpoint 17%  other 8%"
    assert shares in text
    assert "tokens/s 3,000" in text
    pulse = Pulse(step=1, record=step, hypervolume=None)
    assert pulse.tokens_per_s == figures(step)["tokens_per_s"] == 3000
    assert "3,000 tokens/s" in step_line(a_job(), step, step)


@pytest.mark.parametrize("has_errors", [False, True])
def test_the_front_says_of_gates_and_errors(has_errors: bool) -> None:
    point = {**FRONT["points"][2], "counted": {"accuracy": 0.7, "clarity": 0.8}}
    point |= {"standard_errors": {"accuracy": 0.02}} if has_errors else {}
    gate = "an objective with a gate counts after it on the front; figures are before it"
    caption = front_table({**FRONT, "points": [point]}).caption
    assert caption == (f"{gate}\n±: standard error" if has_errors else gate)


def test_a_step_is_one_line() -> None:
    line = step_line(a_job(), a_step(1), a_step(20))
    assert line == ("step 20/40  accuracy 0.700 (+0.190)  clarity 0.700 (-0.190)  6,000 tokens/s  left 1:20")


def test_the_front_shows_further_sets_beside_its_points() -> None:
    point = {**FRONT["points"][0], "sets": {"hard": {"objectives": {"accuracy": 0.25}, "mean_tokens": 40.0}}}
    lines = [" ".join(line.split()) for line in shown(front_table({**FRONT, "points": [point]}), width=80).splitlines()]
    assert "hard 0.250 40.0" in [line.replace(" - ", " ").replace(" – ", " ") for line in lines]


def test_the_front_shows_the_start_and_its_points_on_both_splits() -> None:
    lines = [" ".join(line.split()) for line in shown(front_table(FRONT), width=80).splitlines() if line.strip()]
    assert lines[0] == "Pareto front: hypervolume 0.6123 (0.5001 at the start)"
    tested = front_table({**FRONT, "hypervolume_test": 0.55, "hypervolume_test_base": 0.49})
    assert "at the start); on the test split 0.5500 (0.4900 at the start)" in str(tested.title)
    other = {**FRONT["points"][2], "step": 30, "test": None}  # beyond evaluation.test_points
    in_part = front_table({**FRONT, "hypervolume_test": 0.55, "points": [*FRONT["points"], other]})
    assert "; on the test split, with 1 of its 2 points, 0.5500" in str(in_part.title)
    turned = front_table({**FRONT, "directions": {"accuracy": {"better": "nearer", "target": 0.5}}})
    assert str(turned.columns[2].header) == "accuracy (nearer to 0.5 is better)"
    assert lines[3:] == [
        "0 validation 0.500 ±0.021 0.900 28.0 0.5001 off it",
        "20 validation 0.710 0.820 31.0 0.6123 kept",
        "test sampled 0.690 ±0.030 0.800 ±0.012 31.0",
        "test greedy 0.930 0.850 30.0",
        "±: standard error",
    ]


def test_what_comes_from_elsewhere_does_not_steer_the_terminal() -> None:
    hostile = "\x1b]0;title\x07\x1b[31mred\u202e\r\n[bold]x[/bold]"
    for text in (
        shown(render(a_job(name=hostile, reason=hostile), [], {}, [event(1, hostile, "error", message=hostile)])),
        outcome_line(a_job(reason=hostile)),
        event_line(event(1, hostile, message=hostile)),
        plain(hostile),
    ):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
        assert "[bold]x[/bold]" in text  # shown as text, not read as markup


class FakeClient:
    """Answers `job` from a list of documents in turn, and the rest from what was set."""

    def __init__(self, jobs: list[Document | ApiError], steps: list[Document], events: list[Document]) -> None:
        self.jobs, self.steps, self.happened = jobs, steps, events

    def job(self, _: str) -> Document:
        answer = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        if isinstance(answer, ApiError):
            raise answer
        return answer

    def iter_metrics(self, _: str, *, after: int, names: Any) -> Iterator[Document]:
        self.asked_for = names
        return (step for step in self.steps if step["step"] > after)

    def events(self, _: str, *, after: int, limit: int) -> Document:
        found = [event for event in self.happened if event["seq"] > after]
        return {"data": found[:limit], "has_more": len(found) > limit}

    def front(self, _: str) -> Document:
        return FRONT


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)


def followed(client: FakeClient, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, record=True, soft_wrap=True)
    follow(client, "job-1", console)  # type: ignore[arg-type]
    return console.export_text()


@pytest.mark.usefixtures("no_waiting")
def test_without_a_terminal_every_step_is_a_line_and_the_end_is_told() -> None:
    jobs: list[Document | ApiError] = [a_job(), a_job(), a_job(status="succeeded", step=5, total_steps=5)]
    lines = followed(FakeClient(jobs, [a_step(step) for step in range(1, 6)], [event(1, "job.queued")])).splitlines()
    assert sum(line.startswith("step ") for line in lines) == 5
    assert sum("job.queued" in line for line in lines) == 1
    assert sum(line == "- training" for line in lines) == 1
    assert "job-1 succeeded (step 5/5)" in lines
    assert any("Pareto front" in line for line in lines)


@pytest.mark.usefixtures("no_waiting")
def test_what_a_step_is_at_is_told_and_a_line_where_it_goes_on_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.text.time.time", lambda: 1000.0)

    def at(stage: str, since: float) -> Document:
        return a_job(progress={"stage": "training", "at": stage, "since": since})

    assert "training, generating for 1:05" in shown(render(at("rollout", 935.0), [], FRONT, []))
    jobs: list[Document | ApiError] = [at("rollout", 935.0), at("commit", 10.0), at("commit", 10.0)]
    lines = followed(FakeClient([*jobs, a_job(status="paused")], [], [])).splitlines()
    assert [line for line in lines if " for " in line] == ["- committing the step for 16:30"]


@pytest.mark.usefixtures("no_waiting")
def test_on_a_terminal_events_scroll_above_the_view() -> None:
    jobs: list[Document | ApiError] = [a_job(), a_job(status="paused")]
    text = followed(FakeClient(jobs, [a_step(1)], [event(1, "steering.applied", version=2)]), terminal=True)
    assert "steering.applied  version=2" in text
    assert "paused" in text


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_server_that_is_away_for_a_while_is_waited_for(terminal: bool) -> None:
    away = Unreachable(0, "unreachable", "no server")
    jobs: list[Document | ApiError] = [a_job(), away, away, a_job(status="succeeded")]
    text = followed(FakeClient(jobs, [], []), terminal=terminal)
    assert "no server; trying again" in text
    assert "succeeded" in text


@pytest.mark.parametrize(
    "error", [Unavailable(502, "x", "a proxy"), Unavailable(504, "x", "a proxy"), RateLimited(429, "x", "busy")]
)
def test_what_passes_is_waited_out(error: ApiError) -> None:
    follower = Follower(FakeClient([a_job(), error, a_job()], [a_step(1)], []), "job-1")  # type: ignore[arg-type]
    assert follower.poll() == ([], [])
    assert follower.trouble == f"{error}; trying again"
    assert follower.poll() == ([a_step(1)], [])
    assert follower.trouble == ""


def test_a_refusal_is_not_waited_out_and_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FakeClient([a_job(), ApiError(404, "not_found", "no such job")], [], [])
    with pytest.raises(ApiError, match="no such job"):
        Follower(gone, "job-1").poll()  # type: ignore[arg-type]
    away = Follower(FakeClient([a_job(), Unavailable(503, "x", "no Redis")], [], []), "job-1")  # type: ignore[arg-type]
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    assert away.poll() == ([], [])
    now += module._PATIENCE_S + 1
    with pytest.raises(ApiError, match="no Redis"):
        away.poll()


def test_steps_that_a_crash_undid_are_forgotten() -> None:
    client = FakeClient([a_job()], [a_step(step) for step in (1, 2, 3)], [])
    follower = Follower(client, "job-1")  # type: ignore[arg-type]
    follower.poll()
    client.happened = [event(1, "job.claimed", **{"from": 3, "to": 1})]
    client.steps = [a_step(1), a_step(2, accuracy=0.9)]
    steps, _ = follower.poll()
    assert [step["step"] for step in steps] == [2]
    assert [step["objectives"]["accuracy"]["mean"] for step in follower.steps] == [0.51, 0.9]


@pytest.mark.parametrize("numbers", ["below", "passed"])
def test_a_job_that_was_put_back_from_an_older_copy_is_read_anew(numbers: str) -> None:
    """Its events have the old numbers, and some of its steps happened otherwise: trackers would keep what is gone."""
    happened = [event(1, "job.queued"), event(2, "job.claimed", **{"from": 0, "to": 0}), event(3, "evaluated")]
    client = FakeClient([a_job()], [a_step(step) for step in (1, 2, 3)], happened)
    follower = Follower(client, "job-1")  # type: ignore[arg-type]
    follower.poll()
    assert client.asked_for == module._SHOWN
    assert follower.poll() == ([], [])
    again = [{**event(seq, "evaluated"), "at": 2.0} for seq in (2, 3, 4)]
    client.happened = [happened[0], *(again if numbers == "passed" else [])]
    client.steps = [a_step(step, accuracy=0.9) for step in (1, 2, 3, 4)]
    assert follower.poll() == (client.steps, client.happened)
    assert follower.steps == client.steps


def test_steps_above_the_job_s_are_undone_though_no_event_told() -> None:
    client = FakeClient([a_job(), a_job(step=20), a_job(step=1)], [a_step(step) for step in (1, 2, 3)], [])
    follower = Follower(client, "job-1")  # type: ignore[arg-type]
    follower.poll()
    client.steps = [a_step(1)]
    follower.poll()
    assert [step["step"] for step in follower.steps] == [1]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: duration(59.6), "1:00"),
        (lambda: duration(3725), "1:02:05"),
        (lambda: duration(None), "–"),
        (lambda: duration(float("inf")), "–"),
        (lambda: sparkline([]), ""),
        (lambda: sparkline([None, float("nan")]), ""),
        (lambda: sparkline([1, 1, 1]), "▄▄▄"),
        (lambda: sparkline([0, None, 1]), "▁█"),
        (lambda: len(sparkline(range(1000))), 24),
    ],
)
def test_figures_for_people(call: Callable[[], object], expected: object) -> None:
    assert call() == expected


def test_a_reason_that_names_the_state_is_told_once():
    assert outcome_line(a_job(status="paused", reason="paused: kl is 2")) == "job-1 paused: kl is 2 (step 20/40)"
    assert outcome_line(a_job(status="failed", reason="oom")) == "job-1 failed: oom (step 20/40)"
