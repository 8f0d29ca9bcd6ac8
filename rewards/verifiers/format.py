"""Format as published with dynamic reward weighting (arXiv 2509.11452): two marks of steps, and a box."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import BaseModel

from rewards.base import RewardBatch, RewardOptions
from rewards.registry import register

_BOX_WITH_SOMETHING = re.compile(r"\\boxed\{\s*+[^}\s]")
_ENUMERATED = re.compile(
    r"""(?:^|[\s(])(?:\bstep\s*+)?(?:\d++|[ivxlcdm]++|[a-z])[).:-]  # 1.  b)  (iv)  Step 2:
      | (?:^|\s)[-*\u2022]\s                                        # a bullet
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_ORDINAL = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b", re.IGNORECASE
)


@register
class Format:
    r"""1 where the completion enumerates two steps or more and boxes something, else 0: the published rule.

    An enumerated step is a number, a letter or a Roman numeral with a mark behind it (`1.`, `(b)`, `Step 2:`) or a
    bullet, anywhere in the text; two words such as `first` and `then` do as well. Easy to satisfy without any work
    (`a. b. \boxed{0}` scores 1), so `clarity` is the one to train on; this one is for comparisons with the paper.
    """

    name: ClassVar[str] = "format"
    Options: ClassVar[type[BaseModel]] = RewardOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: RewardOptions) -> None:
        del options

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(_is_boxed(text) and _has_steps(text)) for text in batch.completions]


def _is_boxed(text: str) -> bool:
    """A box with something in it that is closed, be it later."""
    box = _BOX_WITH_SOMETHING.search(text)
    return box is not None and "}" in text[box.end() :]


def _has_steps(text: str) -> bool:
    return any(sum(1 for _ in pattern.finditer(text)) >= 2 for pattern in (_ENUMERATED, _ORDINAL))
