"""The job's one file of references: it grows chunk by chunk, and no kill, cut or mix-up goes unseen."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.journal import Wishes
from orchestrator.references import References
from orchestrator.storage.checkpoint_store import CheckpointStore, Remote
from orchestrator.storage.checkpoints import CheckpointError, directory_name
from tests.loop_fakes import Killed, Run, make_spec, resume, start

OBJECTIVES = [
    {"name": "accuracy", "reward": {"name": "math"}, "weight": 3.0},
    {"name": "brevity", "reward": {"name": "conciseness"}, "transform": {"name": "lsc"}},
]
SPEC = make_spec(objectives=OBJECTIVES, sampling={"reference_rollouts": 5}, steps=4)  # 10 prompts in chunks of 2


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def chunks(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.rand(2, 3, generator=generator), "b": torch.randn(2, 3, generator=generator)} for _ in range(count)
    ]


def written(path: Path, count: int) -> References:
    made = References(path)
    for chunk in chunks(count):
        made.append(chunk)
    return made


def reread(path: Path) -> References:
    found = References(path)
    found.read()
    return found


# ----------------------------------------------------------------------------- the file


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    made = References(tmp_path / "r")
    odd = {"a": torch.tensor([[1 / 3, -0.0, math.nan]]), "b": torch.tensor([[1e-45, 3.4e38, 0.1]])}
    made.append(odd)
    found = reread(tmp_path / "r")
    assert found.prompts == 1
    for name, values_PN in odd.items():
        assert found.values[name].numpy().tobytes() == values_PN.numpy().tobytes()
    assert found.digest == made.digest
    assert reread(tmp_path / "absent").prompts == 0


def test_cut_at_every_byte_it_goes_on_to_the_same(tmp_path: Path) -> None:
    expected = written(tmp_path / "whole", 3)
    content = (tmp_path / "whole").read_bytes()
    for size in range(0, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:size])
        found = reread(tmp_path / "cut")
        assert found.prompts % 2 == 0
        for chunk in chunks(3)[found.prompts // 2 :]:
            found.append(chunk)
        assert reread(tmp_path / "cut").digest == found.digest == expected.digest, size


def test_they_are_found_by_the_number_of_their_prompt(tmp_path: Path) -> None:
    """Those that the job will not reach have none. Lines of an earlier version are of all prompts, in their order."""
    old, new = written(tmp_path / "old", 1), References(tmp_path / "new")
    new.append(chunks(1)[0], [1, 0])
    assert torch.equal(old.of("a", [1, 0, 1]), new.of("a", [0, 1, 0]))
    assert old.digest != new.digest == reread(tmp_path / "new").digest
    new.append(chunks(2)[1], [9, 4])
    found = reread(tmp_path / "new")
    assert (list(found.rows), found.of("c", [9])) == ([1, 0, 9, 4], None)
    with pytest.raises(KeyError):
        found.of("a", [2])


def test_a_line_that_stands_twice_counts_once(tmp_path: Path) -> None:
    expected = written(tmp_path / "r", 3)
    lines = (tmp_path / "r").read_bytes().splitlines(keepends=True)
    (tmp_path / "r").write_bytes(lines[0] + lines[1] + lines[0] + lines[1] + lines[2] + lines[2])
    assert reread(tmp_path / "r").digest == expected.digest


@pytest.mark.parametrize("change", ["value", "name", "missing"])
def test_another_content_has_another_digest(tmp_path: Path, change: str) -> None:
    expected = written(tmp_path / "r", 2)
    lines = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    if change == "value":
        lines[1]["values"]["a"][0][0] += 1e-6
    if change == "name":
        lines = [{**line, "values": dict(zip("ba", line["values"].values(), strict=True))} for line in lines]
    (tmp_path / "r").write_text("".join(json.dumps(line) + "\n" for line in lines[: 1 if change == "missing" else 2]))
    assert reread(tmp_path / "r").digest != expected.digest


# ----------------------------------------------------------------------------- the loop


def whole(directory: Path) -> Run:
    run = start(directory, SPEC)
    assert run.loop.run() == "succeeded"
    return run


def sampled_prompts(run: Run) -> list[Any]:
    return [batch[0].prompt_tokens for batch in run.engines.batches if len(batch) == 10]


def test_rewards_health_keeps_nothing_of_the_references(tmp_path: Path) -> None:
    """No step asks for it, and each round has all of its calls."""
    spec = make_spec(
        objectives=OBJECTIVES, sampling={"reference_rollouts": 5}, steps=1, metadata={"toy.rewards": json.dumps({})}
    )
    run = start(tmp_path, spec)
    pool = run.loop.parts.rewards
    for _ in run.loop.collector.sample_references():
        pass
    assert {found.purpose for found in pool._ended} == {""}  # which the next step's health forgets
    assert run.loop.run() == "succeeded"
    assert all(figures["calls"] > 0 for figures in run.journal.records[1]["reward_health"].values())
    pool.close()


def test_a_kill_costs_one_chunk_of_references(tmp_path: Path) -> None:
    expected = whole(tmp_path / "whole")
    assert len(sampled_prompts(expected)) == 5
    for at in range(1, 6):
        run = start(tmp_path / str(at), SPEC)
        score, calls = run.rewards.score, []

        def dying(batch: Any, score: Any = score, calls: Any = calls, at: int = at) -> Any:
            calls.append(batch)
            if len(calls) == at:
                raise Killed
            return score(batch)

        run.rewards.score = dying  # type: ignore[method-assign]
        with pytest.raises(Killed):
            run.loop.run()
        assert len(sampled_prompts(run)) == at
        again = resume(run, SPEC)
        assert again.loop.run() == "succeeded"
        assert sampled_prompts(again) == sampled_prompts(expected)[at - 1 :]
        assert again.figures() == expected.figures()
        assert again.loop.collector.known.digest == expected.loop.collector.known.digest


def test_of_two_holders_that_sample_at_once_all_have_the_first_ones(tmp_path: Path) -> None:
    """On a disk that both write to: one has lost the job, and does not know it yet."""
    run = start(tmp_path, SPEC)
    known = run.loop.collector.known
    append = known.append

    def late(values: Any, index: Any) -> None:
        if not known.path.exists():
            other = References(known.path)
            other.append({name: values_PN + 0.125 for name, values_PN in values.items()}, index)
        append(values, index)

    known.append = late  # type: ignore[method-assign]
    run.journal.die_at = ("before commit", 1)
    with pytest.raises(Killed):
        run.loop.run()
    assert resume(run, SPEC).loop.run() == "succeeded"


def test_checkpoints_hold_the_digest_alone(tmp_path: Path) -> None:
    run = whole(tmp_path)
    directory = tmp_path / directory_name(4)
    assert sorted(path.name for path in directory.iterdir()) == [
        "learner.json",
        "manifest.json",
        "policy",
        "state.json",
    ]
    state = json.loads((directory / "state.json").read_text())
    assert state["collector"]["references"] == run.loop.collector.known.digest
    assert len((directory / "state.json").read_text()) < 20_000


def test_another_file_of_references_is_noticed(tmp_path: Path) -> None:
    run = start(tmp_path, SPEC)
    run.journal.die_at = ("before commit", 3)
    with pytest.raises(Killed):
        run.loop.run()
    path = run.loop.collector.known.path
    path.write_text(path.read_text().replace("0.", "0.1", 1))
    with pytest.raises(CheckpointError, match="is not what the job was trained with"):
        resume(run, SPEC)
    path.unlink()
    with pytest.raises(CheckpointError, match="is not what the job was trained with"):
        resume(run, SPEC)


@pytest.mark.parametrize("stored", ["by its content", "beside a late holder's", "by an earlier version"])
def test_another_machine_takes_them_from_the_store(tmp_path: Path, stored: str) -> None:
    expected = whole(tmp_path / "whole")
    url = f"file://{tmp_path}/store"
    run = start(tmp_path / "one", SPEC, store=CheckpointStore(tmp_path / "one", Remote(url, "local", "job")))
    run.journal.die_at = ("before commit", 4)
    with pytest.raises(Killed):
        run.loop.run()
    run.journal.die_at = ("", 0)
    if stored == "beside a late holder's":  # its own references, and it has not heard yet that the job is another's
        late = CheckpointStore(tmp_path / "late", Remote(url, "local", "job"))
        other = start(tmp_path / "late", SPEC, profile=lambda _: (0.3, 0.7), store=late, fence=0)
        other.journal.die_at = ("before register", 0)
        with pytest.raises(Killed):
            other.loop.run()
        assert other.loop.collector.known.digest != expected.loop.collector.known.digest
    elif stored == "by an earlier version":
        (kept,) = (tmp_path / "store" / "local" / "job").glob("*.jsonl")
        kept.rename(kept.with_name(run.loop.collector.known.path.name))
    for part in (None, 1):  # this machine has nothing, or what an earlier attempt here left
        there = tmp_path / f"two {part}"
        store = CheckpointStore(there, Remote(url, "local", "job"))
        store.registered = {step: entry["digest"] for step, entry in run.journal.registered.items()}
        again = start(there, SPEC, journal=run.journal, fence=2, store=store)
        if part:
            lines = run.loop.collector.known.path.read_text().splitlines(keepends=True)
            again.loop.collector.known.path.write_text(lines[0])
        again.loop.resume(max(store.registered), sorted(store.registered))
        assert again.loop.collector.known.digest == expected.loop.collector.known.digest
    assert again.loop.run() == "succeeded"
    assert again.figures() == expected.figures()
    assert sampled_prompts(again) == []


# ----------------------------------------------------------------- while a step is sampled


def silent(run: Run) -> None:
    """No group has signal, so that every step takes all its rounds."""
    sample = run.engines.sample

    def flat(request: Any) -> Any:
        found = sample(request)
        object.__setattr__(found, "text", "0.5 0.5")
        return found

    run.engines.sample = flat  # type: ignore[method-assign]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("outcome", ["paused", "stopped", "cancelled"])
def test_a_wish_is_heard_in_the_middle_of_a_round(tmp_path: Path, outcome: str, rounds: int) -> None:
    spec = make_spec(sampling={"zero_signal": {"name": "refill", "max_rounds": 5}}, steps=3)
    expected = start(tmp_path / "whole", spec)
    silent(expected)
    assert expected.loop.run() == "succeeded"
    run = start(tmp_path / "run", spec)
    silent(run)

    def batches_of(step: int) -> int:
        return len([b for b in run.engines.batches if len(b) == 12]) if len(run.journal.records) == step else 0

    wishes = {"paused": Wishes(pause=True), "stopped": Wishes(stop=True), "cancelled": Wishes(cancel=True)}
    run.journal.wish = lambda: wishes[outcome] if batches_of(1) == 6 + rounds else Wishes()
    assert run.loop.run() == outcome
    assert batches_of(1) == 6 + rounds  # of the six of step 2
    assert list(run.journal.records) == [1]
    if outcome == "cancelled":
        return
    assert max(run.journal.registered) == 1
    run.journal.wish = Wishes
    again = resume(run, spec)
    silent(again)
    assert again.loop.run() == "succeeded"
    assert again.figures() == expected.figures()


def test_a_wish_that_is_withdrawn_changes_nothing(tmp_path: Path) -> None:
    spec = make_spec(sampling={"zero_signal": {"name": "refill", "max_rounds": 5}}, steps=2)
    expected, run = start(tmp_path / "whole", spec), start(tmp_path / "run", spec)
    for each in (expected, run):
        silent(each)
    asked = iter([Wishes(), Wishes(pause=True), Wishes()])
    run.journal.wish = lambda: next(asked, Wishes()) if run.journal.registered else Wishes()
    assert expected.loop.run() == run.loop.run() == "succeeded"
    assert run.figures() == expected.figures()
    assert len(run.engines.batches) == len(expected.engines.batches) + 1
