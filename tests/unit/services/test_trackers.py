"""Jobs told to trackers: every step once, whatever happens to who tells it."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from services import follow as following
from services.client import NotFound, Unavailable
from services.trackers import figures, recorder
from services.trackers.base import NotInstalled, Run
from services.trackers.choice import chosen
from services.trackers.recorder import Recorder, settled_step
from services.trackers.tensorboard import TensorBoard
from tests.event_protos import CLASSES, events_of
from tests.tracker_stand_ins import Server, install

Document = dict[str, Any]
SPEC: Document = {
    "name": "tiny/1",
    "steps": 20,
    "seed": None,
    "objectives": [{"name": "a", "weight": 0.5}],
    "on": [1, 2],
}


def a_job(status: str = "running", checkpoint: int | None = 10, step: int = 12) -> Document:
    return {
        "id": "job-1", "name": "tiny/1", "status": status, "reason": None, "step": step, "total_steps": 20,
        "checkpoint_step": checkpoint, "started_at": 1000.0, "progress": {}, "spec": SPEC,
    }  # fmt: skip


def a_step(step: int) -> Document:
    evaluation = {
        "objectives": {"a": 0.5 + step, "b": 0.1}, "mean_tokens": 20.0, "truncated_share": 0.0, "hypervolume": 0.6,
        "sets": {"hard-ones": {"objectives": {"a": 0.2, "b": None}, "mean_tokens": 31.0}},
    }  # fmt: skip
    return {
        "step": step,
        "objectives": {
            "a": {"mean": step / 100, "std": 0.1, "group_std": 0.05, "zero_share": 0.25},
            "b": {"mean": None, "std": None},
        },
        "weights": {"strategy": {"a": 0.9, "b": 0.1}, "applied": {"a": 0.6, "b": 0.4}},
        "weights_because": {"mode": "auto", "share": 0.0, "figures": {"slope": {"a": 0.3, "b": None}}, "held": {}},
        "staleness": {"mean": 0.5, "max": 1}, "timings_s": {"rollout": 1.0, "step": 2.0},
        "reward_health": {"a": {"calls": 2, "latency_s_p50": None}}, "kl": 0.01, "entropy": 0.7, "loss": -0.2,
        "tokens": 900, "mean_tokens": 30.5, "evaluation": evaluation if step % 10 == 0 else None,
        "gold": {"mean": 0.3, "correlation": {"a": 0.8, "b": None}}, "engines": {"healthy": 2},
        "gramian": [[1.0]], "falling": [], "engine_health": {"0": {"health": "serving"}},
    }  # fmt: skip


def a_point(step: int, **more: Any) -> Document:
    return {
        "step": step, "objectives": {"a": 0.4, "b": 0.5}, "mean_tokens": 28.0, "on_front": True, "checkpoint": True,
        "test": {"sampled": {"objectives": {"a": 0.3}}}, **more,
    }  # fmt: skip


FRONT: Document = {"objectives": ["a", "b"], "points": [a_point(0), a_point(10, test=None), a_point(20)]}


class Api:
    """Of a client: the rollouts of the steps of which they are kept."""

    def __init__(self) -> None:
        self.kept = {10: ["<b>2|3</b>", "x" * 3000], 20: ["done"]}
        self.away = False

    def iter_rollouts(self, _: str, *, step: int) -> Iterator[Document]:
        if self.away:
            raise Unavailable(503, "unavailable", "the API is away")
        if step not in self.kept:
            raise NotFound(404, "not_found", "no rollouts are kept of this step")
        for number, completion in enumerate(self.kept[step], start=1):
            yield {
                "number": number, "step": step, "prompt": [{"role": "user", "content": "2+3"}],
                "completion": completion, "rewards": {"a": 1.0, "b": None}, "advantage": 0.25, "tokens": 3,
            }  # fmt: skip


Kept = Callable[[], tuple[list[Document], dict[str, Any]]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    install(made := Server(), monkeypatch)
    return made


@pytest.fixture(params=["tensorboard", "wandb", "mlflow"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> tuple[dict[str, Any], Kept]:
    """How it is asked for, and what it has: figures by step in the order of logging, and tables."""
    words: dict[str, list[Any]] = {"tensorboard": [], "wandb": [], "mlflow": []}
    words[request.param] = [tmp_path / "runs" if request.param == "tensorboard" else "http://user:hidden@there/x"]

    def kept() -> tuple[list[Document], dict[str, Any]]:
        if request.param == "tensorboard":
            return of_tensorboard(tmp_path / "runs")
        run = server.run("job-1")
        return run["rows"], run["tables"]

    return words, kept


def of_tensorboard(directory: Path) -> tuple[list[Document], dict[str, Any]]:
    rows, tables = [], {}
    for path in sorted((directory / "tiny_1" / "job-1").glob("events.*")):
        for event in events_of(path)[1:]:
            scalars = {value.tag: value.simple_value for value in event.summary.value if not value.HasField("metadata")}
            rows.append({"step": event.step, **scalars})
            tables |= {
                f"{value.tag}/{event.step}": value.tensor.string_val[0].decode()
                for value in event.summary.value
                if value.metadata.plugin_data.plugin_name == "text"
            }
    return rows, tables


def told(words: dict[str, Any], job: Document, api: Api | None = None, *, made: int | None = None) -> Recorder:
    """A call of the command that looks once, while the job has so many steps."""
    teller = Recorder(api or Api(), job, chosen(**words))  # type: ignore[arg-type]
    steps = [a_step(step) for step in range(1, (job["step"] if made is None else made) + 1)]
    teller.take(job, steps, FRONT)
    return teller


def steps_of(kept: Kept) -> list[int]:
    return [int(row["step"]) for row in kept()[0]]


def test_a_second_call_goes_on_where_the_first_ended(tracker: tuple[dict[str, Any], Kept]) -> None:
    words, kept = tracker
    told(words, a_job()).close("running")
    assert steps_of(kept) == [*range(10)]
    told(words, a_job(step=15)).close("running")
    assert steps_of(kept) == [*range(10)]
    told(words, a_job("succeeded", 20, step=20)).close("succeeded")
    assert steps_of(kept) == [*range(21)]
    told(words, a_job("succeeded", 20, step=20)).close("succeeded")
    assert steps_of(kept) == [*range(21)]


def test_a_job_that_is_over_is_told_whole(tracker: tuple[dict[str, Any], Kept]) -> None:
    words, kept = tracker
    told(words, a_job("failed", 10, step=13)).close("failed")
    rows, tables = kept()
    assert [int(row["step"]) for row in rows] == [*range(14)]
    first, tenth = rows[0], rows[10]
    assert first["held_out/a"] == pytest.approx(0.4)
    assert first["test_sampled/a"] == pytest.approx(0.3)
    assert tenth["train/a"] == pytest.approx(0.1)
    assert tenth["held_out/a"] == 10.5
    assert tenth["front/hypervolume"] == pytest.approx(0.6)
    assert {"rollouts/10", "front/13"} <= tables.keys()
    assert "rollouts/5" not in tables


def test_what_a_step_says() -> None:
    assert figures.of_step(a_step(10)) == {
        "train/a": 0.1, "train_std/a": 0.1, "train_group_std/a": 0.05, "train_zero_share/a": 0.25,
        "weights_because/slope/a": 0.3, "weights/a": 0.6, "weights/b": 0.4, "weights_of_strategy/a": 0.9,
        "weights_of_strategy/b": 0.1, "held_out/a": 10.5, "held_out/b": 0.1, "held_out_rollouts/mean_tokens": 20.0,
        "held_out_rollouts/truncated_share": 0.0, "set_hard-ones/a": 0.2, "front/hypervolume": 0.6,
        "staleness/mean": 0.5, "staleness/max": 1.0, "timings_s/rollout": 1.0, "timings_s/step": 2.0,
        "reward_health/a/calls": 2.0, "training/kl": 0.01,
        "training/entropy": 0.7, "training/loss": -0.2, "training/tokens": 900.0, "training/mean_tokens": 30.5,
        "gold/mean": 0.3, "gold/correlation/a": 0.8, "engines/healthy": 2.0,
    }  # fmt: skip
    training = {"step": 3, "loss": 0.5, "pair_accuracy": 0.7, "timings_s": {"step": 1.0}}
    assert figures.of_step(training) == {"training/loss": 0.5, "training/pair_accuracy": 0.7, "timings_s/step": 1.0}


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (a_job(checkpoint=None), -1),
        (a_job(checkpoint=10), 9),
        (a_job("paused", 10), 9),  # the steps after it may be made again
        (a_job("cancelling", 10), 9),
        *((a_job(status, 10), float("inf")) for status in ("succeeded", "failed", "cancelled")),
    ],
)
def test_steps_that_a_crash_may_undo_are_not_told_yet(job: Document, expected: float) -> None:
    assert settled_step(job) == expected


def test_the_run_is_called_by_the_job_and_has_its_spec(server: Server, tmp_path: Path) -> None:
    words: dict[str, Any] = {"tensorboard": [tmp_path], "wandb": ["mine"], "mlflow": []}
    told(words, a_job("failed", step=3)).close("failed")
    run = server.run("job-1")
    assert (run["name"], run["project"], run["config"], run["status"]) == ("tiny/1", "mine", SPEC, 1)
    server.runs.clear()
    told({**words, "wandb": [], "mlflow": ["there"]}, a_job("failed", step=3)).close("failed")
    settings = {"name": "tiny/1", "steps": "20", "objectives.0.name": "a", "objectives.0.weight": "0.5", "on": "[1, 2]"}
    assert server.run("job-1")["config"] == settings
    assert server.run("job-1")["status"] == "FAILED"
    _, tables = of_tensorboard(tmp_path)
    assert "      weight: 0.5" in tables["spec/0"]
    (path,) = (tmp_path / "tiny_1" / "job-1").glob("events.*")
    about = [value for value in events_of(path)[1].summary.value if value.tag.startswith("_hparams_")]
    content = CLASSES["HParamsPluginData"].FromString(about[0].metadata.plugin_data.content)
    assert {entry.key for entry in content.session_start_info.hparams} == settings.keys()


def test_mlflow_gets_names_that_it_takes(server: Server) -> None:
    schema = {"$defs": {"item": {"type": "string"}}}
    metadata = {"team@x": "ann", "a,b": "1", "a;b": "2", "http://x/": "y", "größe": "z"}
    job = {**a_job("succeeded", step=3), "spec": {"metadata": metadata, "schema": schema}}
    teller = told({"tensorboard": [], "wandb": [], "mlflow": ["there"]}, job)
    assert teller.trouble == ""
    assert server.run("job-1")["config"] == {
        "metadata.team_x": "ann", "metadata.a_b": "1", "metadata.http___x_": "y", "metadata.größe": "z",
        "schema._defs.item.type": "string",
    }  # fmt: skip
    assert server.run("job-1")["rows"]


def test_rollouts_are_a_table_whose_texts_are_shown_as_they_are(tmp_path: Path, server: Server) -> None:
    words: dict[str, Any] = {"tensorboard": [tmp_path], "wandb": ["mine"], "mlflow": []}
    told(words, a_job("succeeded", 20, step=20)).close("succeeded")
    rows = server.run("job-1")["tables"]["rollouts/10"]
    assert rows[0] == [1, "user: 2+3", "<b>2|3</b>", 1.0, None, 0.25, 3]
    assert len(rows[1][2]) == 2000
    shown = of_tensorboard(tmp_path)[1]["rollouts/10"].splitlines()
    assert shown[0] == "| number | prompt | completion | a | b | advantage | tokens |"
    assert shown[2] == "| 1 | user: 2+3 | &#60;b&#62;2&#124;3&#60;/b&#62; | 1 |  | 0.25 | 3 |"


def test_the_steps_times_are_the_jobs(tmp_path: Path) -> None:
    told({"tensorboard": [tmp_path], "wandb": [], "mlflow": []}, a_job("succeeded", step=3)).close("succeeded")
    (path,) = (tmp_path / "tiny_1" / "job-1").glob("events.*")
    assert [event.wall_time for event in events_of(path)[1:]] == [1000.0, 1002.0, 1004.0, 1006.0]


@pytest.mark.parametrize("took_it", [False, True])
@pytest.mark.parametrize(("kind", "where"), [("wandb", "mine"), ("mlflow", "http://u:hidden@there")])
def test_a_dead_tracker_harms_nobody_and_gets_the_rest_later(
    kind: str, where: str, took_it: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now_s[0])
    words: dict[str, Any] = {"wandb": [], "mlflow": [], kind: [where], "tensorboard": [tmp_path]}
    teller = Recorder(Api(), a_job(), chosen(**words))  # type: ignore[arg-type]
    steps = [a_step(step) for step in range(1, 13)]
    server.fails, server.after = [ConnectionError("nobody there")], took_it
    teller.take(a_job(), steps, FRONT)
    assert teller.trouble.endswith(": nobody there")
    assert "hidden" not in teller.trouble
    assert [row["step"] for row in of_tensorboard(tmp_path)[0]] == [*range(10)]
    teller.take(a_job(), steps, FRONT)  # too early to try again
    assert teller.trouble
    now_s[0] += 1.0
    teller.take(a_job(), steps, FRONT)
    assert teller.trouble == ""
    assert [row["step"] for row in server.run("job-1")["rows"]] == [*range(10)]
    teller.close("running")


def test_an_api_that_is_away_leaves_no_step_out(tmp_path: Path) -> None:
    words: dict[str, Any] = {"tensorboard": [tmp_path], "wandb": [], "mlflow": []}
    api = Api()
    api.away = True
    teller = told(words, a_job("succeeded", step=20), api)
    assert teller.trouble == f"--tensorboard {tmp_path}: the API is away"
    assert [row["step"] for row in of_tensorboard(tmp_path)[0]] == [*range(10)]
    api.away = False
    told(words, a_job("succeeded", step=20), api).close("succeeded")
    rows, tables = of_tensorboard(tmp_path)
    assert [row["step"] for row in rows] == [*range(21)]
    assert "rollouts/10" in tables


def test_a_step_that_was_half_written_is_written_again(tmp_path: Path) -> None:
    words: dict[str, Any] = {"tensorboard": [tmp_path], "wandb": [], "mlflow": []}
    told(words, a_job()).close("running")
    (path,) = (tmp_path / "tiny_1" / "job-1").glob("events.*")
    path.write_bytes(path.read_bytes()[:-9])
    told(words, a_job("succeeded", step=12)).close("succeeded")
    _, second = sorted((tmp_path / "tiny_1" / "job-1").glob("events.*"))
    assert [event.step for event in events_of(second)[1:]] == [9, 10, 11, 12]


def test_two_calls_do_not_write_one_run(tmp_path: Path) -> None:
    run = Run(id="job-1", name="../../etc", spec=SPEC)
    first = TensorBoard(run, tmp_path)
    assert first.folder == tmp_path / "_.._etc" / "job-1"
    with pytest.raises(OSError, match="another `equipoise follow` writes"):
        TensorBoard(run, tmp_path)
    first.close("running")
    TensorBoard(run, tmp_path).close("running")


def test_a_folder_is_named_as_far_as_a_file_system_takes_it(tmp_path: Path) -> None:
    tracker = TensorBoard(Run(id="job-1", name="对齐" * 60, spec=SPEC), tmp_path)
    assert tracker.folder == tmp_path / ("对齐" * 42 + "对") / "job-1"
    tracker.close("running")


@pytest.mark.parametrize(("kind", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_package_that_is_not_there_is_told_with_how_to_get_it(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    words: dict[str, Any] = {"tensorboard": [], "wandb": [], "mlflow": [], kind: ["x"]}
    with pytest.raises(NotInstalled, match=rf"^--{kind} needs the package {package}, .*pip install {package}`$"):
        chosen(**words)


class Followed(Api):
    """As much of a client as following a job that is over takes."""

    def job(self, _: str) -> Document:
        return a_job("succeeded", 20, step=20)

    def events(self, _: str, *, after: int, limit: int) -> Document:
        assert (after, limit) == (0, 100)
        return {"data": [], "has_more": False}

    def iter_metrics(self, _: str, *, after: int, names: None) -> list[Document]:
        assert names is None, "they are told all figures"
        return [a_step(step) for step in range(after + 1, 21)]

    def front(self, _: str) -> Document:
        return {**FRONT, "hypervolume": 0.6, "hypervolume_base": 0.5, "hypervolume_by_step": []}


def test_following_tells_them_and_says_which_one_is_behind(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.0)
    words: dict[str, Any] = {"tensorboard": [tmp_path], "wandb": ["mine"], "mlflow": []}
    server.fails = [ConnectionError("nobody there")]
    client: Any = Followed()
    console = Console(file=io.StringIO(), width=120)
    with pytest.raises(typer.Exit) as ended:
        following.follow_to_end(client, "job-1", console, chosen(**words))
    assert ended.value.exit_code == 2
    assert "--wandb mine: nobody there; the job is as it was, and the same command" in capsys.readouterr().err
    assert [row["step"] for row in of_tensorboard(tmp_path)[0]] == [*range(21)]
    following.follow_to_end(client, "job-1", console, chosen(**words))
    assert [row["step"] for row in server.run("job-1")["rows"]] == [*range(21)]
    assert server.run("job-1")["status"] == 0
