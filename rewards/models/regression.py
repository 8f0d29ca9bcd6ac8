"""A learned reward with several interpretable heads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch
from rewards.models.directory import ModelError, local, locate, problems
from rewards.models.heads import SCORE, HeadsConfig, check_head
from rewards.models.options import ModelOptions
from rewards.registry import register


class RegressionOptions(ModelOptions):
    """A regression model and the head that counts."""

    head: str = Field(
        SCORE, max_length=64, description="name of a head, or `score`: what the gating network mixes from all of them"
    )


@register
class Regression:
    """A head of a learned regression model, or the mix of all its heads.

    Ratings are on the scale of the data that the model was trained on. Objectives that name one model share its
    forward pass.

    Raises ModelError where the directory holds no such model or it has no such head.
    """

    name: ClassVar[str] = "regression"
    Options: ClassVar[type[BaseModel]] = RegressionOptions
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    head_option: ClassVar[str] = "head"

    @classmethod
    def problems(cls, options: RegressionOptions) -> Iterator[tuple[str, str]]:
        return problems(options.model, options.revision)

    @classmethod
    def range_of(cls, options: RegressionOptions) -> tuple[float, float]:
        path = local(options.model)
        with contextlib.suppress(ModelError, OSError):
            return cls.range if path is None else HeadsConfig.read(path).range_of(options.head)
        return cls.range

    def __init__(self, options: RegressionOptions) -> None:
        from rewards.models.regression_model import RegressionRewardModel

        path, _ = locate(options.model, options.revision)
        self._model = RegressionRewardModel.load(path, options)
        check_head(options.head, self._model.names)
        self._head = options.head

    def score(self, batch: RewardBatch) -> list[float]:
        return self._score(batch, [self._head])[self._head]

    def score_heads(self, batch: RewardBatch) -> dict[str, list[float]]:
        return self._score(batch, self._model.names)

    def _score(self, batch: RewardBatch, wanted: list[str]) -> dict[str, list[float]]:
        if not len(batch):
            return {name: [] for name in wanted}
        ratings_BK = self._model.ratings(batch)
        columns = dict(zip(self._model.names, ratings_BK.unbind(dim=1), strict=False))
        if SCORE in wanted:
            columns[SCORE] = self._model.score(batch, ratings_BK)
        return {name: columns[name].tolist() for name in wanted}
