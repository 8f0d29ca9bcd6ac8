"""A learned reward from preferences: a standard sequence classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch
from rewards.models.directory import check_directory, local, locate, problems
from rewards.models.heads import SCORE, check_head
from rewards.models.options import ModelOptions
from rewards.registry import register

if TYPE_CHECKING:
    from rewards.models.chat import ChatEncoder
    from rewards.models.runners import Runner


class BradleyTerryOptions(ModelOptions):
    """A sequence classifier and the label that counts."""

    head: str = Field(SCORE, max_length=256, description="a label of the model; `score` where it has only one")


@register
class BradleyTerry:
    """A learned preference score: sigmoid(difference of two scores) is the chance that the first is preferred.

    Takes any AutoModelForSequenceClassification directory as it is. With one label the score is its logit; each of
    several labels is a head.

    Raises ModelError where the directory holds no such model or it has no such label.
    """

    name: ClassVar[str] = "bradley_terry"
    Options: ClassVar[type[BaseModel]] = BradleyTerryOptions
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    head_option: ClassVar[str] = "head"

    @classmethod
    def problems(cls, options: BradleyTerryOptions) -> Iterator[tuple[str, str]]:
        found = list(problems(options.model, options.revision))
        path = local(options.model)
        kinds = check_directory(path).get("architectures") if path is not None and not found else None
        if isinstance(kinds, list) and kinds and not str(kinds[0]).endswith("ForSequenceClassification"):
            found.append(("model", f"this is a {kinds[0]}; expected a sequence classifier (ForSequenceClassification)"))
        yield from found

    def __init__(self, options: BradleyTerryOptions) -> None:
        path, config = locate(options.model, options.revision)
        self._names = label_names(config)
        check_head(options.head, self._names)
        self._head = options.head
        self._encoder, self._runner = load_classifier(path, config, options)

    def score(self, batch: RewardBatch) -> list[float]:
        return self.score_heads(batch)[self._head]

    def score_heads(self, batch: RewardBatch) -> dict[str, list[float]]:
        if not len(batch):
            return {name: [] for name in self._names}
        logits_BK = self._runner(self._encoder.completions(batch))
        return {name: column.tolist() for name, column in zip(self._names, logits_BK.unbind(dim=1), strict=True)}


def label_names(config: dict[str, Any]) -> list[str]:
    """The labels in order; one alone is the score."""
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own default
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    return [SCORE] if len(names) == 1 else names


def load_classifier(path: Path, config: dict[str, Any], options: ModelOptions) -> tuple[ChatEncoder, Runner]:
    """What reads text and what scores it. Raises ModelError."""
    from transformers import AutoModelForSequenceClassification

    from rewards.models.chat import ChatEncoder
    from rewards.models.runners import Classifier, TransformersRunner, VllmRunner, load_module, pick_device

    encoder = ChatEncoder.load(path, config, options.max_length, options.overflow)
    if options.runner == "vllm":
        return encoder, VllmRunner(path, options, max_length=encoder.max_length, task="classify", pooling="last")
    module = Classifier(load_module(AutoModelForSequenceClassification, path, options))
    return encoder, TransformersRunner(module, options.batch_size, pick_device(options.device))
