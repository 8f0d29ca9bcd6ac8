"""Which part of a completion is the answer."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from rewards.verifiers.boxed import last_boxed
from rewards.verifiers.rows import RowOptions

Where = Literal["completion", "last_line", "boxed", "tag", "marker"]

_MARKER = re.compile(r"\banswer(?:[ \t]{1,20}is\b)?[ \t]{0,20}:|\banswer[ \t]{1,20}is\b|####", re.IGNORECASE)


class ExtractOptions(RowOptions):
    """Of a verifier that compares an answer with the row's."""

    needs_answer: ClassVar[bool] = True

    where: Where = Field(
        "completion",
        description="what is compared: the whole `completion`, its `last_line`, the last `boxed` content, what the "
        "last `tag` <answer>...</answer> holds, or what follows the last `marker` (Answer:, the answer is, ####) in "
        "its line",
    )


def extract(completion: str, where: Where) -> str | None:
    """That part, stripped; None where there is none, or nothing in it."""
    found: str | None = completion
    if where == "last_line":
        found = completion.strip().rpartition("\n")[2]
    elif where == "boxed":
        boxed = last_boxed(completion)
        found = boxed.content if boxed else None
    elif where == "tag":
        found = _last_tag(completion)
    elif where == "marker":
        found = _after_marker(completion)
    return (found or "").strip() or None


def _last_tag(completion: str) -> str | None:
    head, closing, _ = completion.rpartition("</answer>")
    _, opening, inner = head.rpartition("<answer>")
    return inner if closing and opening else None


def _after_marker(completion: str) -> str | None:
    markers = list(_MARKER.finditer(completion))
    return completion[markers[-1].end() :].partition("\n")[0] if markers else None
