from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rewards.base import RewardBatch

MakeBatch = Callable[..., RewardBatch]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Builds a batch from its completions; every other column has a neutral default."""

    def make(
        *completions: str,
        answers: Sequence[str | None] | None = None,
        tokens: Sequence[int] | None = None,
        max_tokens: int = 100,
        prompts: Sequence[str] | None = None,
        truncated: Sequence[bool] | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> RewardBatch:
        size = len(completions)
        return RewardBatch(
            prompts=tuple(prompts) if prompts is not None else ("prompt",) * size,
            completions=completions,
            answers=tuple(answers) if answers is not None else ("1",) * size,
            completion_tokens=tuple(tokens) if tokens is not None else (10,) * size,
            truncated=tuple(truncated) if truncated is not None else (False,) * size,
            max_tokens=max_tokens,
            details=tuple(details),
        )

    return make
