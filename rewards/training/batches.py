"""Rows as the trainer takes them: tokens, targets, and an order that needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.base import RewardBatch
from rewards.models.chat import ChatEncoder
from rewards.models.directory import ModelError
from rewards.training.data import PairRow, RatingRow, RowError, Rows
from rewards.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class RatedTexts:
    """N completions; targets_NK is NaN where an attribute was not rated."""

    tokens: list[list[int]]
    targets_NK: Tensor


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N pairs; one chosen completion against several rejected ones is as many pairs."""

    chosen: list[list[int]]
    rejected: list[list[int]]
    margins_N: Tensor


def rated_texts(rows: Sequence[RatingRow], settings: TrainSettings, encoder: ChatEncoder) -> RatedTexts:
    """Raises RowError for a rating outside its head's range, and for a head that no row rates."""
    targets_NK = torch.full((len(rows), len(settings.heads)), torch.nan)
    for n, row in enumerate(rows):
        for k, head in enumerate(settings.heads):
            if (value := row.ratings.get(head.name)) is None:
                continue
            low, high = head.range
            if not low <= value <= high:
                raise RowError(f"{row.where}: ratings.{head.name}: expected a number between {low:g} and {high:g}")
            targets_NK[n, k] = value
    for k, head in enumerate(settings.heads):
        if torch.isnan(targets_NK[:, k]).all():
            rated = sorted({name for row in rows for name in row.ratings})
            raise RowError(
                f"heads.{k}.name: no row rates {head.name!r}; rows rate {', '.join(rated[:20]) or 'nothing'}"
            )
    return RatedTexts(tokens=[encode(encoder, row, row.completion) for row in rows], targets_NK=targets_NK)


def pairs_of(rows: Sequence[PairRow], settings: TrainSettings, encoder: ChatEncoder) -> Pairs:
    """Raises RowError for a pair without a margin where the loss needs one."""
    chosen: list[list[int]] = []
    rejected: list[list[int]] = []
    margins: list[float] = []
    for row in rows:
        if row.margin is None and settings.pair_loss != "plain":
            raise RowError(f"{row.where}: margin: pair_loss {settings.pair_loss} needs the magnitude of the preference")
        first = encode(encoder, row, row.chosen)
        for text in row.rejected:
            chosen.append(first)
            rejected.append(encode(encoder, row, text))
            margins.append(row.margin if row.margin is not None else 1.0)
    return Pairs(chosen=chosen, rejected=rejected, margins_N=torch.tensor(margins))


def encode(encoder: ChatEncoder, row: RatingRow | PairRow, completion: str | None) -> list[int]:
    """Tokens of the row's chat with the completion, or up to where it starts; errors name the file and line."""
    try:
        text = None if completion is None else encoder.clean(completion)
        return encoder.fit(encoder.encode(row.messages, text), 0)
    except ModelError as error:
        raise RowError(f"{row.where}: {error}") from None


def reward_batch(rows: Sequence[tuple[RatingRow | PairRow, str]]) -> RewardBatch:
    """The columns that a learned reward reads; the others hold what it does not."""
    size = len(rows)
    return RewardBatch(
        prompts=tuple(row.messages[-1]["content"] for row, _ in rows),
        messages=tuple(list(row.messages) for row, _ in rows),
        completions=tuple(text for _, text in rows),
        answers=(None,) * size,
        completion_tokens=(0,) * size,
        truncated=(False,) * size,
        max_tokens=1,
        domains=tuple(row.domain for row, _ in rows),
    )


class Order:
    """Which rows an update sees: every epoch in an order of its own, which seed and epoch decide."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self._size, self._batch_size, self._seed = size, min(batch_size, size), seed
        self._epoch, self._rows = -1, torch.empty(0)

    def batch(self, step: int) -> list[int]:
        """The rows of update `step`, counted from 0. A batch may reach into the next epoch."""
        start = step * self._batch_size
        return [self._row(position) for position in range(start, start + self._batch_size)]

    def steps(self, epochs: int) -> int:
        """Updates in so many epochs."""
        return -(-epochs * self._size // self._batch_size)

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self._size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._rows = epoch, torch.randperm(self._size, generator=generator)
        return int(self._rows[place])


def check_data(rows: Rows, settings: TrainSettings) -> None:
    """Raises RowError where the objective needs rows of a kind that the files do not hold."""
    if settings.objective != "bradley_terry" and not rows.ratings:
        raise RowError(f"train: {settings.objective} needs rows of ratings")
    if (settings.objective != "regression" or settings.gating) and not rows.pairs:
        raise RowError(f"train: {'gating' if settings.objective == 'regression' else settings.objective} needs pairs")
