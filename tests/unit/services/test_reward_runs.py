"""`equipoise rewards run`: rows in, the same rows with scores out, whatever stops it on the way."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rewards import registry
from rewards.base import RewardBatch, RewardOptions, RewardUnavailableError
from services.commands.rewards import read_options
from services.reward_runs import Run, RunError
from tests.support import is_open

ROW = {"prompt": "p", "completion": "four", "answer": 4, "kept": [1]}


class LengthOptions(RewardOptions):
    head: str = "characters"


class Length:
    """Its two heads count; fails on a completion that says so."""

    name: ClassVar[str] = "test_length"
    Options = LengthOptions
    range = (0.0, 99.0)
    head_option = "head"
    batches: ClassVar[list[RewardBatch]] = []

    def __init__(self, options: LengthOptions) -> None:
        self.options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        return self.score_heads(batch)[self.options.head]

    def score_heads(self, batch: RewardBatch) -> dict[str, list[float | None]]:
        self.batches.append(batch)
        if "stop" in batch.completions:
            raise KeyboardInterrupt
        if "fail" in batch.completions:
            raise ValueError("can't")
        texts = zip(batch.completions, batch.domains, strict=True)
        return {
            "characters": [None if domain == "code" else float(len(text)) for text, domain in texts],
            "tokens": [float(count) for count in batch.completion_tokens],
        }


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()
    monkeypatch.setitem(registry._registered, "test_length", Length)
    monkeypatch.setattr(Length, "batches", [])


def make(tmp_path: Path, rows: list[Any], **changes: Any) -> Run:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    fields: dict[str, Any] = {"name": "test_length", "options": {}, "source": source, "target": tmp_path / "out.jsonl"}
    return Run(**fields | {"batch": 2} | changes)


def written(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.target.read_text().splitlines()]


def test_rows_come_back_whole_with_their_scores(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        ROW,
        {**ROW, "domain": "code", "details": {"a": 1}},
        {"prompt": chat, "completion": "x" * 9, "truncated": True, "answer": 1e-5},
    ]
    run = make(tmp_path, rows)
    heard: list[int] = []
    assert run.check() == 3
    assert run.run(heard.append) == []
    assert heard == [0, 2, 3]
    found = written(run)
    scores = [row.pop("rewards") for row in found]
    assert found == rows
    assert scores == [
        {"test_length": 4.0, "test_length.characters": 4.0, "test_length.tokens": 1.0},
        {"test_length": None, "test_length.characters": None, "test_length.tokens": 1.0},
        {"test_length": 9.0, "test_length.characters": 9.0, "test_length.tokens": 3.0},
    ]
    first, second = Length.batches
    assert (first.answers, first.domains, first.details[1]) == (("4", "4"), (None, "code"), {"a": 1})
    assert (second.prompts, second.messages[0], second.truncated) == (("u",), chat, (True,))
    assert second.answers == ("0.00001",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_reward_sees_what_follows_the_thoughts_and_their_length(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": text} for text in ("hm </think> four", "hm </think>\n</think>", "no end")]
    run = make(tmp_path, rows, thoughts_end="</think>")
    assert run.unfinished != make(tmp_path, rows).unfinished
    run.run(lambda _: None)
    assert [completion for batch in Length.batches for completion in batch.completions] == ["four", "</think>", ""]
    assert [row["rewards"]["test_length.tokens"] for row in written(run)] == [4.0, 5.0, 2.0]
    assert [row["completion"] for row in written(run)] == [row["completion"] for row in rows]


def test_the_options_pick_the_head(tmp_path: Path) -> None:
    run = make(tmp_path, [ROW], options={"head": "tokens"})
    run.run(lambda _: None)
    assert written(run)[0]["rewards"]["test_length"] == 1.0


def test_rows_that_cannot_be_read_are_named_before_anything_is_scored(tmp_path: Path) -> None:
    rows: list[Any] = [ROW, b"{", b"3", {"prompt": "p"}, {**ROW, "completion": 3}, {**ROW, "prompt": []}, b'{"a": NaN}']
    with pytest.raises(RunError) as error:
        make(tmp_path, rows).check()
    assert [problem.partition(": ")[0] for problem in error.value.problems] == [f"row {i}" for i in range(2, 8)]
    assert error.value.problems[:3] == (
        "row 2: not valid JSON",
        "row 3: expected an object, got int",
        "row 4: completion: Field required",
    )
    with pytest.raises(RunError) as error:
        make(tmp_path, [{**ROW, "answer": True}, b'{"prompt": "p", "completion": "c", "answer": 1e999}']).check()
    assert error.value.problems == (
        "row 1: answer: expected text or a number, got bool",
        "row 2: answer: expected text or a number, got inf",
    )
    with pytest.raises(RunError, match="is empty"):
        make(tmp_path, []).check()
    with pytest.raises(RunError) as error:
        make(tmp_path, [b"{"] * 50).check()
    assert error.value.problems[20:] == ("and maybe more",)
    with pytest.raises(ValueError, match="option 'hed': no such option; did you mean 'head'"):
        make(tmp_path, [ROW], options={"hed": "x"}).check()
    assert Length.batches == []


def test_a_row_that_cannot_be_scored_is_named_and_ends_the_run(tmp_path: Path) -> None:
    rows = [ROW] * 2 + [{**ROW, "completion": "fail"}] + [ROW] * 4
    with pytest.raises(RunError) as error:
        make(tmp_path, rows, batch=4).run(lambda _: None)
    assert error.value.problems == ("row 3: test_length: ValueError: can't",)
    assert not (tmp_path / "out.jsonl").exists()
    assert not is_open(tmp_path / "in.jsonl")


def test_it_may_go_on_with_null_in_its_place(tmp_path: Path) -> None:
    rows = [ROW] * 2 + [{**ROW, "completion": "fail"}] + [ROW] * 4
    run = make(tmp_path, rows, batch=4, keep_going=True)
    assert run.run(lambda _: None) == ["row 3: test_length: ValueError: can't"]
    found = written(run)
    assert [row["rewards"]["test_length"] for row in found] == [4.0, 4.0, None, 4.0, 4.0, 4.0, 4.0]
    assert [row.get("rewards_error") for row in found].count(None) == 6


@pytest.mark.parametrize(
    "error", [RewardUnavailableError("away"), ConnectionResetError(), TimeoutError(), MemoryError()]
)
@pytest.mark.parametrize("keep_going", [False, True])
def test_an_outage_is_no_fault_of_rows(
    tmp_path: Path, error: Exception, keep_going: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, [ROW] * 5, keep_going=keep_going)
    score = Length.score_heads

    def until_away(self: Length, batch: RewardBatch) -> dict[str, list[float | None]]:
        if len(self.batches) > 1:
            raise error
        return score(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Length, "score_heads", until_away)
        with pytest.raises(RunError) as told:
            run.run(lambda _: None)
    assert told.value.problems == (
        f"test_length: {type(error).__name__}: {error}; no row is to blame, and the same command goes on",
    )
    heard: list[int] = []
    assert run.run(heard.append) == []
    assert heard == [4, 5]
    assert [row["rewards"]["test_length"] for row in written(run)] == [4.0] * 5


def test_fewer_rows_at_once_may_fit_where_many_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Length.score_heads

    def two_at_most(self: Length, batch: RewardBatch) -> dict[str, list[float | None]]:
        if len(batch) > 2:
            raise MemoryError
        return score(self, batch)

    monkeypatch.setattr(Length, "score_heads", two_at_most)
    run = make(tmp_path, [ROW] * 7, batch=7)
    assert run.run(lambda _: None) == []
    assert [row["rewards"]["test_length"] for row in written(run)] == [4.0] * 7


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "completion": "fail"}, {**ROW, "completion": "fiver"}, ROW, {**ROW, "completion": "stop"}]
    run = make(tmp_path, rows, batch=1, keep_going=True)
    with pytest.raises(KeyboardInterrupt):
        run.run(lambda _: None)
    assert not run.target.exists()
    part = run.unfinished
    with part.open("ab") as file:
        file.write(b'{"half a li')  # a kill in the middle of a write
    scored = len(Length.batches)
    other = make(tmp_path, rows, batch=1, options={"head": "tokens"})
    assert other.unfinished != part
    again = make(tmp_path, rows, batch=1, keep_going=True)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(Length, "score_heads", lambda _, batch: {"characters": [0.0] * len(batch)})
        heard: list[int] = []
        problems = again.run(heard.append)
    assert heard == [4, 5]
    assert problems == ["row 2: test_length: ValueError: can't"]
    assert len(Length.batches) == scored
    assert [row["rewards"]["test_length"] for row in written(again)] == [4.0, None, 5.0, 4.0, 0.0]
    assert not part.exists()


def test_two_at_once_do_not_write_the_same_file(tmp_path: Path) -> None:
    import fcntl

    run = make(tmp_path, [ROW])
    with run.unfinished.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            run.run(lambda _: None)


def test_half_a_character_survives(tmp_path: Path) -> None:
    run = make(tmp_path, [b'{"prompt": "p", "completion": "\\ud800"}'])
    run.run(lambda _: None)
    assert written(run)[0]["completion"] == "\ud800"


def test_options_come_from_words_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("words: [a, b]\ndepth: 2\n")
    assert read_options([str(file), "depth=3", "name=x=y", "flag=true"]) == {
        "words": ["a", "b"],
        "depth": 3,
        "name": "x=y",
        "flag": True,
    }
    for text, message in ((str(tmp_path / "no"), "expected KEY=VALUE or a file"), ("a={", "a: not a YAML value")):
        with pytest.raises(ValueError, match=message):
            read_options([text])
    for text, message in (
        ("[1]", "expected a mapping"),
        ("depth: 2\ndepth: 3", "line 2: the key 'depth' stands twice"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_options([str(file)])
