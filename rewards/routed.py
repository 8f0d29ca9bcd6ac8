"""A reward that is asked about the prompts of some domains alone (CGPO, arXiv 2409.20370)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rewards import registry
from rewards.base import Reward, RewardBatch, Scores, check_list


class Routed:
    """Passes on the rows with one of its domains; the others get None. A batch without such rows is not passed on."""

    def __init__(self, reward: Any, domains: Sequence[str]) -> None:
        self._reward = reward
        self._domains = frozenset(domains)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_reward":  # also while it is unpickled
            raise AttributeError(name)
        return getattr(self._reward, name)

    def score(self, batch: RewardBatch) -> Scores:
        rows = self._rows(batch)
        return scatter(self._reward.name, self._reward.score(batch.rows(rows)) if rows else (), rows, len(batch))

    def _rows(self, batch: RewardBatch) -> list[int]:
        return [row for row, domain in enumerate(batch.domains) if domain in self._domains]


class RoutedHeads(Routed):
    """The same for a reward with several scores."""

    def score_heads(self, batch: RewardBatch) -> Mapping[str, Scores]:
        rows = self._rows(batch)
        if not rows:
            return _NoScores(len(batch))
        found = self._reward.score_heads(batch.rows(rows))
        return {head: scatter(self._reward.name, scores, rows, len(batch)) for head, scores in found.items()}


class _NoScores(dict[str, Scores]):
    """None in every row, whichever head is asked for: which there are, the reward alone knows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __contains__(self, head: object) -> bool:
        return True

    def __missing__(self, head: str) -> Scores:
        return [None] * self._size


def build(name: str, options: Mapping[str, object], domains: Sequence[str] | None = None) -> Reward:
    """As `registry.build`; with `domains` it is asked about rows of these alone."""
    reward: Any = registry.build(name, options)
    if domains is not None:
        reward = (RoutedHeads if hasattr(reward, "score_heads") else Routed)(reward, domains)
    return cast(Reward, reward)


def scatter(name: str, scores: Any, rows: Sequence[int], size: int) -> list[float | None]:
    """`scores` in the rows that they are of, None in the others of `size`. Raises RewardLengthError."""
    check_list(name, scores, len(rows))
    out: list[float | None] = [None] * size
    for row, score in zip(rows, scores, strict=True):
        out[row] = score
    return out
