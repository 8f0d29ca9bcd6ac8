"""Reading runs: what is whole is read, and what is not is named by its line and field."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.arena.analysis import analyse
from orchestrator.arena.conduct import Arena, RunFailed
from orchestrator.arena.ledger import FILE, Ledger
from orchestrator.arena.plan import Planned, plan
from orchestrator.arena.protocol import FIRST, PRESETS
from orchestrator.arena.results import read_results
from orchestrator.spec import JobSpec
from tests.arena_records import failed, record, write
from tests.benchmarks import arena as benchmark
from tests.benchmarks.arena import shortened


def test_runs_are_read_plain_and_compressed(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.jsonl", [record(seed=0), record(seed=1), failed("gdpo/pama", "nan")])
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, packed):
        results = read_results(source)
        assert [run.seed for run in results.done] == [0, 1]
        assert [run.reason for run in results.failed] == ["nan"]


def test_a_line_cut_short_by_a_kill_is_left_out_and_told(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.jsonl", [record(seed=0), record(seed=1)])
    path.write_bytes(path.read_bytes()[:-100])
    results = read_results(path)
    assert [run.seed for run in results.done] == [0]
    assert results.left_out == ["line 2: cut short, as by a kill while it was written"]


@pytest.mark.parametrize("broken", ["cut short", "turned", "no gzip"])
def test_a_broken_gz_is_an_error_that_names_it(tmp_path: Path, broken: str) -> None:
    whole = gzip.compress(write(tmp_path / "runs.jsonl", [record(seed=seed) for seed in range(9)]).read_bytes())
    turned = whole[:200] + bytes(200) + whole[400:]
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes({"cut short": whole[:-100], "turned": turned, "no gzip": b"{}"}[broken])
    with pytest.raises(ValueError, match=r"^runs\.jsonl\.gz: expected a whole gzip file, got .*; copy it again$"):
        read_results(packed)


def test_half_a_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.jsonl", [record()])
    path.write_text('{"schema": 1, \n' + path.read_text())
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1: not JSON"):
        read_results(path)


class Hand:
    """A worker that makes up its runs' figures, and fails at one rule."""

    def make(self, planned: Planned, spec: JobSpec) -> dict[str, Any]:
        if planned.entry.name == "gdpo/dara":
            raise RunFailed("weights are not finite")
        whole = record(planned.entry.name, steps=planned.steps, objectives=tuple(spec.objective_names))
        made = ("seconds", "step_seconds", "validation", "test", "chosen_step", "weights", "train_rewards")
        return {key: whole[key] for key in made}

    def kill(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("task", ["sums3", "sums5"])
def test_what_the_arena_writes_is_read(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.arena.protocol.RULES", {"saw": 3})
    with Ledger(tmp_path) as ledger:
        runs = plan(PRESETS["full"], tasks=[task], rules=["gdpo/fixed", "gdpo/saw", "gdpo/dara"], seeds=2)
        Arena(runs=runs, ledger=ledger, hire=lambda _number: Hand()).run()
    results = read_results(tmp_path / FILE)
    assert [(run.entry, run.role, run.seed) for run in results.done] == [
        ("gdpo/fixed", "static", 0), ("gdpo/saw", "strategy", 0),
        ("gdpo/fixed", "static", 1), ("gdpo/saw", "strategy", 1),
    ]  # fmt: skip
    assert [(run.entry, run.reason) for run in results.failed] == [("gdpo/dara", "weights are not finite")] * 2
    assert set(results.done[0].versions) > {"python", "torch"}
    assert results.done[0].conditions == FULL
    assert [run.rule_version for run in results.done] == [1, 3, 1, 3]


@pytest.mark.parametrize(("change", "left"), [
    ({}, 0), ({"digest": "of targets with all digits"}, 0),
    ({"digest": "d", "targets": {"conciseness": 0.1, "clarity": 0.2}}, 1),
    ({"digest": "d", "conditions": {**FIRST, "protocol version": 9}}, 1), ({"digest": "d", "targets": {}}, 1),
])  # fmt: skip
def test_an_arena_goes_on_from_kept_runs_whose_targets_came_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], left: int
) -> None:
    """Kept figures have six digits, and the statics' figures make the targets that are in the digest."""
    monkeypatch.setattr(benchmark, "KEPT", tmp_path / "kept.jsonl.gz")
    runs = plan(PRESETS["full"], tasks=["sums3"], rules=["gdpo/fixed", "gdpo/static*", "lagrangian"], seeds=1)
    with Ledger(tmp_path) as ledger:
        Arena(runs=runs, ledger=ledger, hire=lambda _number: Hand()).run()
    benchmark.keep(tmp_path / FILE)
    again = tmp_path / "again"
    again.mkdir()
    *statics, lagrangian = gzip.decompress((tmp_path / "kept.jsonl.gz").read_bytes()).decode().splitlines()
    write(again / FILE, [*map(json.loads, statics), json.loads(lagrangian) | change])
    states = Arena(runs=runs, ledger=Ledger.peek(again), hire=lambda _number: Hand()).states()
    assert sum(state == "left" for _, state in states) == left
    assert states[-1][0].entry.name == "gdpo/lagrangian"


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"schema": 2}, r"line 2: schema: this version reads 1 alone, got 2"),
    ({"role": "winner"}, r"line 2: role: .*'static'"),
    ({"seed": "x"}, r"line 2: seed: "),
    ({"step_seconds": []}, r"line 2: run: step_seconds is empty"),
    ({"test": []}, r"line 2: run: test is empty"),
    ({"preference": {"accuracy": 1.0}}, r"line 2: run: preference must give each of"),
    ({"weights": [[1.0, 2.0]]}, r"line 2: run: weights must have 3 columns"),
    ({"objectives": {"accuracy": {"range": [1, 1]}}}, r"line 2: objectives\.accuracy: range must rise"),
    ({"validation": [{"step": 0, "objectives": {"accuracy": float("nan")}, "hypervolume": 0.1}]},
     r"line 2: validation\.0\.objectives\.accuracy: .*finite"),
    ({"validation": [{"step": 0, "objectives": {"speed": 0.1}, "hypervolume": 0.1}]},
     r"validation at step 0 has objectives \['speed'\], expected"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_foreign_records_are_named_by_line_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "runs.jsonl", [record(), record(seed=1) | change])
    with pytest.raises(ValueError, match=message):
        read_results(path)


@pytest.mark.parametrize(("line", "message"), [("[]", "expected an object, got list"), ("{}", "got None")])
def test_lines_of_other_kinds_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_results(path)


def test_a_file_without_runs_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.jsonl", [])
    with pytest.raises(ValueError, match="has no runs"):
        read_results(path)


def test_other_ranges_are_never_compared(tmp_path: Path) -> None:
    other = record(seed=1)
    other["objectives"]["accuracy"]["reference"] = 0.2
    path = write(tmp_path / "runs.jsonl", [record(), other])
    with pytest.raises(ValueError, match=r"sums3: gdpo/gradient \(seed 1\) has other objectives, ranges or references"):
        read_results(path)


def test_runs_with_another_budget_are_left_out_and_told(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.jsonl", [record(seed=0), record(seed=1), record(seed=2, steps=10)])
    results = read_results(path)
    assert [run.seed for run in results.done] == [0, 1]
    assert results.left_out == ["sums3 gdpo/gradient seed 2: steps: 10, where the compared runs of sums3 have 20"]


FULL = PRESETS["full"].conditions


@pytest.mark.parametrize(("change", "reason"), [
    ({"test": [{**record()["test"][0], "prompts": 48}]}, "test prompts: 48, where the compared runs of sums3 have 500"),
    ({"validation": record()["validation"][::2]}, "evaluations: 3, where the compared runs of sums3 have 5"),
    ({"conditions": FULL | {"prompts a step": 6}}, "prompts a step: 6, where the compared runs of sums3 have 32"),
    ({"conditions": FULL | {"protocol version": 9}}, "protocol version: 9, where the compared runs of sums3 have 1"),
    ({"digest": "e"}, "run again with other settings (digest e, not d); the first one counts"),
])  # fmt: skip
def test_a_run_of_other_conditions_never_takes_the_place_of_one(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    """As one of the smoke preset with as many steps: it is left out, though it is the later of the two."""
    whole = [record(seed=seed, conditions=FULL) for seed in range(2)]
    other = record(seed=0, lift=0.3, started="later") | change
    results = read_results(write(tmp_path / "runs.jsonl", [*whole, other]))
    assert [(run.seed, run.started == "later") for run in results.done] == [(0, False), (1, False)]
    assert results.left_out == [f"sums3 gdpo/gradient seed 0: {reason}"]


def test_records_that_tell_no_conditions_had_those_of_the_first_protocol(tmp_path: Path) -> None:
    records = [record(seed=0), record(seed=1), record(seed=2, conditions=dict(FIRST))]
    results = read_results(write(tmp_path / "runs.jsonl", records))
    assert ([run.seed for run in results.done], results.left_out) == ([0, 1, 2], [])
    records.append(record(seed=3, conditions={**FIRST, "protocol version": 2}))
    results = read_results(write(tmp_path / "runs.jsonl", records))
    assert [run.seed for run in results.done] == [0, 1, 2]
    told = "protocol version: 2, where the compared runs of sums3 have 1"
    assert results.left_out == [f"sums3 gdpo/gradient seed 3: {told}"]


def test_conditions_are_those_that_most_runs_have_together(tmp_path: Path) -> None:
    """Most have 40 steps, and most 100 validation prompts: hardly any have both. Of equally many, the full preset's."""
    had = [(120, 100), (120, 100), (40, 100), (40, 200), (40, 200)]
    records = [
        record(seed=seed, steps=steps, conditions=FULL | {"validation prompts": prompts},
               validation=record(steps=20)["validation"])
        for seed, (steps, prompts) in enumerate(had)
    ]  # fmt: skip
    results = read_results(write(tmp_path / "runs.jsonl", records))
    assert [run.seed for run in results.done] == [3, 4]
    results = read_results(write(tmp_path / "runs.jsonl", [*records, records[0] | {"seed": 5}]))
    assert [run.seed for run in results.done] == [0, 1, 5]


def test_runs_of_two_versions_of_a_rule_are_never_one_entry(tmp_path: Path) -> None:
    """Made again, the newer counts; a seed that was not is left out rather than averaged with them."""
    old = [record("gdpo/covariance", seed=seed) for seed in range(3)]
    new = [record("gdpo/covariance", seed=seed, rule_version=2, digest="n", started="later") for seed in range(2)]
    results = read_results(write(tmp_path / "runs.jsonl", [*old, *new, record(seed=2)]))
    assert [(run.entry, run.seed, run.rule_version) for run in results.done] == [
        ("gdpo/covariance", 0, 2), ("gdpo/covariance", 1, 2), ("gdpo/gradient", 2, 1),
    ]  # fmt: skip
    assert len(results.left_out) == 3
    assert results.left_out[2] == "sums3 gdpo/covariance seed 2: made by version 1 of the rule; version 2 ran as well"
    assert analyse(results).missing[0].startswith("sums3: ")
    told = analyse(read_results(write(tmp_path / "runs.jsonl", old))).missing[0]
    assert told == "gdpo/covariance: made by an older version of the rule; a resumed arena makes its runs again"


def test_runs_of_two_versions_of_a_plugin_are_never_one_entry(tmp_path: Path) -> None:
    old = [record("gdpo/theirs", seed=seed, packages=["theirs 1.0"]) for seed in range(3)]
    new = [record("gdpo/theirs", seed=seed, packages=["theirs 1.1"], digest="n") for seed in range(2)]
    results = read_results(write(tmp_path / "runs.jsonl", [*old, *new, record(seed=2)]))
    assert [(run.entry, run.seed, run.packages) for run in results.done] == [
        ("gdpo/theirs", 0, ["theirs 1.1"]), ("gdpo/theirs", 1, ["theirs 1.1"]), ("gdpo/gradient", 2, []),
    ]  # fmt: skip
    assert results.left_out[2] == "sums3 gdpo/theirs seed 2: made by theirs 1.0; theirs 1.1 ran later"


@pytest.mark.parametrize(("change", "reason"), [
    ({"chosen_step": 7}, "the step that it chose, 7, has no test figures"),
    ({"warnings": ["checkpoint.failed"]}, "a checkpoint could not be written, so its front may lack points"),
])  # fmt: skip
def test_a_run_whose_figures_have_a_gap_is_left_out_with_its_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    results = read_results(write(tmp_path / "runs.jsonl", [record(), record(seed=1) | change]))
    assert [run.seed for run in results.done] == [0]
    assert results.left_out == [f"sums3 gdpo/gradient seed 1: {reason}"]


def test_a_record_that_stands_there_twice_is_one_run(tmp_path: Path) -> None:
    """As where two files of runs were joined."""
    results = read_results(write(tmp_path / "runs.jsonl", [record(), record()]))
    assert (len(results.done), results.left_out) == (1, [])


def test_a_run_that_was_tried_again_counts_once(tmp_path: Path) -> None:
    again = record(seed=0, lift=0.1, started="later")
    records = [failed("gdpo/gradient", "full disk"), record(seed=0), again, failed("gdpo/gradient", "late")]
    results = read_results(write(tmp_path / "runs.jsonl", records))
    assert [run.test[0].objectives for run in results.done] == [again["test"][0]["objectives"]]
    assert results.failed == []
    assert results.left_out == ["sums3 gdpo/gradient seed 0: run twice; the later one counts"]
    json.dumps(results.done[0].model_dump())  # what was read is plain


def test_what_is_kept_with_the_project_names_no_folder_of_a_machine() -> None:
    reason = "No space left: '/home/me/out/scratch-0/step-5/a.part' (or /tmp/x); see https://e.org/a/b, gdpo/fixed"
    kept = shortened({"reason": reason, "entry": "gdpo/static(1,2,3)", "seconds": [1.23456789]})
    assert kept["reason"] == "No space left: 'a.part' (or x); see https://e.org/a/b, gdpo/fixed"
    assert (kept["entry"], kept["seconds"]) == ("gdpo/static(1,2,3)", [1.23457])
