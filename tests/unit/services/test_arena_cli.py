"""`equipoise arena` without running any: what it lists, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from orchestrator.arena.conduct import Arena, heading
from orchestrator.arena.ledger import FILE, Ledger
from orchestrator.arena.plan import plan
from orchestrator.arena.protocol import PRESETS
from orchestrator.arena.tasks import TASKS
from orchestrator.spec import parse_spec
from services.cli import app
from services.commands.arena import left_words, progress


def run(tmp_path: Path, *words: str) -> Result:
    return CliRunner().invoke(
        app, ["--state-dir", str(tmp_path), "arena", *words], env={"COLUMNS": "200"}, catch_exceptions=False
    )


def record(count: int, **changes: Any) -> list[dict[str, Any]]:
    """The first runs of the smoke preset, done."""
    found = []
    for planned in plan(PRESETS["smoke"])[:count]:
        spec = planned.spec(())
        assert spec is not None
        found.append(heading(planned, spec) | {"status": "done", "seconds": {"total": 90.0}} | changes)
    return found


def write(directory: Path, runs: list[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text("".join(json.dumps(one) + "\n" for one in runs))


def test_the_runs_are_listed_with_what_has_become_of_them(tmp_path: Path) -> None:
    write(tmp_path / "arena", record(1))
    with Ledger(tmp_path / "arena"):  # also while an arena writes
        done = run(tmp_path, "--preset", "smoke", "--list")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines() if "sums3" in line]
    assert [row[-2] for row in rows] == ["done"] + ["left"] * 5
    assert rows[0][1:8:2] == ["sums3", "gdpo/fixed", "static", "0"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_printed_as_a_job_that_can_be_submitted(tmp_path: Path, task: str) -> None:
    done = run(tmp_path, "--task-spec", task)
    assert done.exit_code == 0
    spec = parse_spec(yaml.safe_load(done.stdout))
    assert spec.objective_names == tuple(objective["name"] for objective in TASKS[task].objectives)


def test_a_job_of_ones_own_is_the_task(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "1+1=", "answer": "2"})] * 3
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    spec: dict[str, Any] = {
        "name": "mine", "steps": 6, "policy": {"model": "someone/model"},
        "data": {"type": "files"} | {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
        "objectives": [{"name": name, "reward": {"name": "math"}} for name in ("a", "b")],
    }  # fmt: skip
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = run(tmp_path, "--task", "job.yaml", "--rules", "gdpo/saw", "--seeds", "2", "--list")
    assert done.exit_code == 0, done.stderr
    rows = [line.replace("│", "").split() for line in done.stdout.splitlines() if "gdpo/saw" in line]
    assert rows == [["mine", "gdpo/saw", "strategy", str(seed), "6", "left"] for seed in (0, 1)]
    del spec["data"]["test"]
    spec["data"] |= {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    file.write_text(yaml.safe_dump(spec))
    done = run(tmp_path, "--task", str(file), "--list")
    assert (done.exit_code, "--task: data.test: the arena chooses on validation" in done.stderr) == (2, True)


def test_without_resume_it_says_what_is_there_and_how_to_go_on(tmp_path: Path) -> None:
    write(tmp_path / "out", [*record(1), *record(1, status="failed", seed=1)])
    done = run(tmp_path, "--preset", "smoke", "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "has 2 runs already (1 done, 1 failed); --resume makes the 5 of yours that are left" in done.stderr


def test_with_nothing_left_it_ends_at_once(tmp_path: Path) -> None:
    write(tmp_path / "arena", record(6))
    done = run(tmp_path, "--preset", "smoke", "--resume")
    assert (done.exit_code, done.stdout.split(":")[0]) == (0, "0 runs made, 0 left")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "fulll"], "--preset: no preset 'fulll'"),
        (["--rules", "gdpo/gradint"], "--rules: no entry 'gdpo/gradint', did you mean 'gdpo/gradient'"),
        (["--tasks", "held_out"], "--tasks: held_out is kept for the end"),
        (["--task-spec", "sums"], "--task-spec: no task 'sums'"),
        (["--retry-failed"], "--retry-failed: goes with --resume"),
        (["--task", "absent.yaml"], "--task: absent.yaml: No such file"),
        (["--task", "absent.yaml", "--tasks", "sums3"], "--task: stands in the place of --tasks"),
    ],
)
def test_what_can_not_be_is_refused_with_a_reason(tmp_path: Path, words: list[str], said: str) -> None:
    done = run(tmp_path, *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_directory_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "--out", str(tmp_path / "file" / "below"))
    assert done.exit_code == 2
    assert f"can't write {tmp_path / 'file' / 'below' / FILE}" in done.stderr


def test_progress_counts_by_task_and_says_what_is_left(tmp_path: Path) -> None:
    write(tmp_path, record(2))
    arena = Arena(runs=plan(PRESETS["smoke"]), ledger=Ledger.peek(tmp_path), hire=lambda _: pytest.fail("nobody"))
    arena.workers = 2
    assert left_words(arena) == "4 runs left, about 3 min"
    arena.workers = 1
    table = progress(arena)
    assert [list(column.cells) for column in table.columns] == [["sums3"], ["2"], [""], [""], ["4"], [""]]
    assert table.title == "4 runs left, about 6 min"
    arena.limit = 3
    assert left_words(arena) == "3 of 4 runs left, about 4 min"
    arena.made.append({})
    assert left_words(arena) == "2 of 4 runs left, about 3 min"
    assert left_words(Arena(runs=plan(PRESETS["smoke"]), ledger=Ledger(tmp_path), hire=lambda _: pytest.fail("x"))) == (
        "6 runs left"
    )
