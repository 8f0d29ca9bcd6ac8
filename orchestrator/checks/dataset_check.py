"""Reads rows of files, as a child process (orchestrator/children.py): their bytes are a stranger's."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import children
from orchestrator.rollouts.prompts import Contents, DatasetError, Prompt, examine, in_bounds, preview, too_long
from orchestrator.rollouts.split_files import SplitFiles, each_of
from orchestrator.specs.data import Columns, Share
from policies.models import with_system
from rewards import registry

MAX_PROBLEMS = 20
TIMEOUT_S = 300.0
_SHORT_TIMEOUT_S = 30.0  # where an answer is waited for
_MEMORY_BYTES = 4 * 1024**3  # a small Parquet file can hold much
_LIMIT = "can't be read, or not within the memory that the server has for it"
_COMPARED = 1_000_000  # prompts of a split that others are compared with: their hashes are held
_SHOWN_CHARACTERS = 4000
_SHOWN_MESSAGES = 100


@dataclass(frozen=True, kw_only=True)
class Reading(SplitFiles):
    """The files of a split, and what its prompts must fit into."""

    tokenizer: Path | None = None  # where prompts are measured
    room: int = 0  # tokens
    system: str | None = None  # beside each prompt
    is_train: bool = False
    rewards: tuple[str, ...] = ()  # which compare with the answers

    def document(self) -> dict[str, Any]:
        return {
            "paths": [str(path) for path in self.paths],
            "columns": self.columns.model_dump(),
            "limit": self.limit,
            "share": None if self.share is None else self.share.model_dump(),
            "is_held_out": self.is_held_out,
            "tokenizer": None if self.tokenizer is None else str(self.tokenizer),
            "room": self.room,
            "system": self.system,
            "is_train": self.is_train,
            "rewards": self.rewards,
        }

    @classmethod
    def of(cls, document: dict[str, Any]) -> Reading:
        share, tokenizer = document["share"], document["tokenizer"]
        placed = {
            "paths": tuple(map(Path, document["paths"])),
            "columns": Columns.model_validate(document["columns"]),
            "share": None if share is None else Share.model_validate(share),
            "tokenizer": None if tokenizer is None else Path(tokenizer),
            "rewards": tuple(document["rewards"]),
        }
        return cls(**{**document, **placed})


def check(path: Path, columns: Columns, *, owner: str = "") -> tuple[int, list[str]]:
    """Rows, and what is wrong: the first problems, then how it goes on. ChildBusy where that can't be told now."""
    question = {"path": str(path), "columns": columns.model_dump()}
    try:
        answer: dict[str, Any] = children.ask(__name__, {"check": question}, timeout_s=TIMEOUT_S, owner=owner)
    except children.ChildTimeout:
        return 0, [f"can't be read within {TIMEOUT_S:g} s"]
    except children.ChildBusy:
        raise
    except children.ChildError:
        return 0, [_LIMIT]
    return answer["rows"], answer["problems"]


Outcome = Contents | str | None
"""Of a reading: what the rows have, what is wrong with the file, or None where that took too long to tell."""


def outcomes_of(readings: Sequence[Reading], *, owner: str = "") -> list[Outcome]:
    """In their order, the training's first. ChildBusy where they can't be read now.

    What takes too long is not refused: the driver reads it all.
    """
    if not readings:
        return []
    question = [reading.document() for reading in readings]
    try:
        found: list[dict[str, Any]] = children.ask(
            __name__, {"read": question}, timeout_s=_SHORT_TIMEOUT_S, owner=owner
        )
    except children.ChildTimeout:
        return [None] * len(readings)
    except children.ChildBusy:
        raise
    except children.ChildError:
        if len(readings) == 1:
            return [_LIMIT]
        return [
            outcome for reading in readings for outcome in outcomes_of([reading], owner=owner)
        ]  # which of them it was
    return [each["problem"] or _contents(each) for each in found]


def _contents(found: dict[str, Any]) -> Contents:
    return Contents(
        domains=set(found["domains"]),
        details=set(found["details"]),
        unanswered=_counts(found["unanswered"]),
        unmeetable={reward: _counts(rows) for reward, rows in found["unmeetable"]},
        rows=found["rows"],
        repeated=found["repeated"],
        validated=found["validated"],
        twice=found["twice"],
        boxed=found["boxed"],
    )


def _counts(pairs: list[Any]) -> dict[str | None, tuple[int, int]]:
    return {domain: (first, count) for domain, (first, count) in pairs}


def shown(path: Path, columns: Columns, *, after: int, limit: int, owner: str = "") -> list[dict[str, Any]]:
    """Rows numbered above `after` with what is long cut. DatasetError where they can't be read, ChildBusy for now."""
    question = {"path": str(path), "columns": columns.model_dump(), "after": after, "limit": limit}
    try:
        answer: dict[str, Any] = children.ask(__name__, {"show": question}, timeout_s=_SHORT_TIMEOUT_S, owner=owner)
    except children.ChildBusy:
        raise
    except children.ChildError:
        raise DatasetError(_LIMIT) from None
    if "problem" in answer:
        raise DatasetError(answer["problem"])
    rows: list[dict[str, Any]] = answer["rows"]
    return rows


@dataclass(frozen=True)
class Seen:
    """Hashes of the first prompts of the splits that were read before."""

    train: set[int] = field(default_factory=set)
    held_out: set[int] = field(default_factory=set)

    def compare(self, prompt: int, contents: Contents, own: set[int]) -> None:
        """One of a held-out split, of which `own` are the earlier ones."""
        contents.repeated += prompt in self.train
        contents.validated += prompt in self.held_out
        contents.twice += prompt in own
        _add(own, prompt)


def read(reading: Reading, seen: Seen) -> Contents:
    """What every row has, none kept. Raises DatasetError for the first that can't be used.

    A prompt's length is a lower bound, without the chat template: what is too long here is so for certain. Prompts are
    looked up among those of `seen`, which takes them too.
    """
    tokenizer = None if reading.tokenizer is None else _tokenizer(reading.tokenizer)
    checks = {name: check[0] for name in reading.rewards if (check := registry.truth_check(name)) is not None}
    rows = each_of(reading)
    contents, own = Contents(), set[int]()
    with contextlib.closing(rows):
        for path, prompt in in_bounds(rows):
            contents.add(prompt)
            for reward, takes in checks.items():
                contents.check_answer(prompt, reward, takes)
            messages = prompt.messages
            same = hash(tuple((message["role"], message["content"]) for message in messages))
            if reading.is_train:
                contents.twice += same in seen.train
                _add(seen.train, same)
            else:
                seen.compare(same, contents, own)
            text = prompt.text
            if reading.system is not None and with_system(messages, reading.system) is not messages:
                text = f"{reading.system}\n{text}"
            if tokenizer is None or len(text) <= reading.room:  # ordinary text has no more tokens than characters
                continue
            tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
            if tokens > reading.room:
                raise DatasetError(f"{path}: row {prompt.row}: {too_long(tokens, reading.room)}")
    seen.held_out.update(own)
    return contents


def _add(prompts: set[int], prompt: int) -> None:
    if len(prompts) < _COMPARED:
        prompts.add(prompt)


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the library raises nothing narrower; the driver's own loading names what is wrong with it
        return None


def _checked(path: Path, columns: Columns) -> dict[str, Any]:
    try:
        rows, problems = examine(path, columns, most=MAX_PROBLEMS)
    except DatasetError as error:
        rows, problems = 0, [str(error)]
    cleaned = [problem.removeprefix(f"{path}: ") for problem in problems]
    return {"rows": rows, "problems": [problem[:300] for problem in cleaned]}


def _outcome(reading: Reading, seen: Seen) -> dict[str, Any]:
    try:
        contents = read(reading, seen)
    except DatasetError as error:
        return {"problem": str(error)}
    return {
        "problem": None,
        "domains": [*contents.domains],
        "details": [*contents.details],
        "unanswered": [*contents.unanswered.items()],  # None is no key of JSON
        "unmeetable": [[reward, [*rows.items()]] for reward, rows in contents.unmeetable.items()],
        "rows": contents.rows,
        "repeated": contents.repeated,
        "validated": contents.validated,
        "twice": contents.twice,
        "boxed": contents.boxed,
    }


def _shown(path: Path, columns: Columns, after: int, limit: int) -> dict[str, Any]:
    try:
        return {"rows": [_cut_row(prompt) for prompt in preview(path, columns, after=after, limit=limit)]}
    except DatasetError as error:
        return {"problem": str(error)}


def _cut_row(prompt: Prompt) -> dict[str, Any]:
    content: Any = prompt.content
    if isinstance(content, str):
        content = _cut(content)
    else:
        content = [{name: _cut(message[name]) for name in ("role", "content")} for message in content[:_SHOWN_MESSAGES]]
    shown = {"row": prompt.row, "prompt": content, "answer": None if prompt.answer is None else _cut(prompt.answer)}
    if prompt.domain is not None:
        shown["domain"] = prompt.domain
    if prompt.details:
        shown["details"] = {name: _cut_value(value) for name, value in prompt.details.items()}
    return shown


def _cut_value(value: Any) -> Any:
    """What is long, as the start of its JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _SHOWN_CHARACTERS else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _answer(question: dict[str, Any]) -> Any:
    def placed(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "path": Path(document["path"]), "columns": Columns.model_validate(document["columns"])}

    if "check" in question:
        return _checked(**placed(question["check"]))
    if "show" in question:
        return _shown(**placed(question["show"]))
    seen = Seen()
    return [_outcome(Reading.of(document), seen) for document in question["read"]]


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.alarm(int(TIMEOUT_S) + 30)  # whoever asked has killed us by then, unless it died itself
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(_answer(json.load(sys.stdin)), answers)
    answers.close()


if __name__ == "__main__":
    _main()
