"""Rows of ratings and of pairs, from JSONL files. Every mistake names its file and line, never a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from rewards.base import Message

_HUGE = 1e30  # what training computes in ends at 3e38
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class RatingRow:
    """A completion and how it was rated; an attribute that nobody rated is absent."""

    messages: tuple[Message, ...]
    completion: str
    ratings: dict[str, float]
    domain: str | None = None
    where: str = ""
    """File and line."""


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A completion that was preferred over each of the others, and by how much."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: tuple[str, ...]
    margin: float | None = None
    domain: str | None = None
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the files hold."""

    ratings: list[RatingRow] = field(default_factory=list)
    pairs: list[PairRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ratings) + len(self.pairs)

    def digest(self) -> str:
        """A hash of the rows, wherever their files lie."""
        rows: list[RatingRow | PairRow] = [*self.ratings, *self.pairs]
        content = [astuple(row)[:-1] for row in rows]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class RowError(ValueError):
    """A row that can't be used."""


def read_rows(files: Sequence[Path]) -> Rows:
    """The rows of all files, in order. Raises RowError for the first bad one, and where there is none at all."""
    rows = Rows()
    for file in files:
        for line, text in _lines(file):
            where = f"{file.name}, line {line}"
            try:
                row = _row(_document(text), where)
            except RowError as error:
                raise RowError(f"{where}: {error}") from None
            (rows.ratings if isinstance(row, RatingRow) else rows.pairs).append(row)  # type: ignore[arg-type]
    if not len(rows):
        raise RowError(f"{', '.join(file.name for file in files) or 'data'}: no rows")
    return rows


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:  # so that a bad byte has its line
            yield from ((i, line) for i, line in enumerate(lines, start=1) if line.strip())
    except FileNotFoundError:
        raise RowError(f"{file.name}: no such file") from None
    except IsADirectoryError:
        raise RowError(f"{file.name}: a folder; expected a JSONL file") from None


def _document(text: str) -> Any:
    try:
        text.encode()
        document = json.loads(text)
        if "\\ud" in text.lower():  # an escape may be half a character, which no tokenizer takes
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError("not UTF-8 text") from None
    except (ValueError, RecursionError):  # ValueError: also a number too long to read
        raise RowError("not valid JSON") from None
    return document


def _row(document: Any, where: str) -> RatingRow | PairRow:
    if not isinstance(document, dict):
        raise RowError("expected an object")
    document = _unfolded(document)
    common: dict[str, Any] = {
        "messages": _messages(document),
        "domain": _optional(document, "domain", str),
        "where": where,
    }
    if "ratings" in document:
        return RatingRow(completion=_text(document, "completion"), ratings=_ratings(document["ratings"]), **common)
    if "chosen" not in document:
        raise RowError("expected `completion` and `ratings`, or `chosen` and `rejected`")
    margin = document.get("margin")
    if margin is not None and (not _is_number(margin) or margin < 0):
        raise RowError("margin: expected a number, at least 0")
    return PairRow(chosen=_text(document, "chosen"), rejected=_rejected(document), margin=margin, **common)


def _unfolded(document: dict[str, Any]) -> dict[str, Any]:
    """A pair of whole chats, as TRL and the hub have them: completions, and the prompt that both begin with.

    That is the row's prompt then, whatever other columns repeat of it. A chat of one message has none.
    """
    found, prompts = dict(document), []
    for key in ("chosen", "rejected"):
        chat = document.get(key)
        if isinstance(chat, list) and chat and isinstance(chat[0], dict):
            *prompt, completion = _chat(chat, key)
            if completion["role"] != "assistant":
                raise RowError(f"{key}.{len(prompt)}.role: expected assistant, whose the completion is")
            found[key] = completion["content"]
            prompts.append(prompt)
    if any(prompts):
        if len(prompts) < 2 or prompts[0] != prompts[1]:
            raise RowError("rejected: expected a chat that begins with the same messages as that of chosen")
        found.pop("prompt", None)
        found["messages"] = prompts[0]
    return found


def _messages(document: dict[str, Any]) -> tuple[Message, ...]:
    if ("prompt" in document) == ("messages" in document):
        raise RowError("expected either `prompt` or `messages`")
    if "prompt" in document and isinstance(document["prompt"], str):
        return ({"role": "user", "content": document["prompt"]},)
    key = "prompt" if "prompt" in document else "messages"
    chat = document[key]
    if not isinstance(chat, list) or not chat:
        raise RowError(f"{key}: expected {'text or ' if key == 'prompt' else ''}a list of messages")
    return tuple(_chat(chat, key))


def _chat(chat: list[Any], key: str) -> list[Message]:
    for i, message in enumerate(chat):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise RowError(f"{key}.{i}.role: expected one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise RowError(f"{key}.{i}.content: expected text")
    return [{"role": message["role"], "content": message["content"]} for message in chat]


def _ratings(ratings: Any) -> dict[str, float]:
    if not isinstance(ratings, dict):
        raise RowError("ratings: expected an object of numbers by attribute")
    for name, value in ratings.items():
        if value is not None and not _is_number(value):
            raise RowError(f"ratings.{name[:64]}: expected a number, or null where it was not rated")
    return {name: float(value) for name, value in ratings.items() if value is not None}


def _rejected(document: dict[str, Any]) -> tuple[str, ...]:
    rejected = document.get("rejected")
    texts = [rejected] if isinstance(rejected, str) else rejected
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RowError("rejected: expected text, or a list of texts")
    return tuple(texts)


def _text(document: dict[str, Any], key: str) -> str:
    if not isinstance(document.get(key), str):
        raise RowError(f"{key}: expected text")
    return str(document[key])


def _optional(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if value is not None and not isinstance(value, kind):
        raise RowError(f"{key}: expected {'text' if kind is str else kind.__name__}, or nothing")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE
