"""A learned reward for each step of a completion, made into one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rewards.base import RewardBatch
from rewards.models.directory import ModelError, local, locate, problems
from rewards.models.heads import FILE, HeadsConfig
from rewards.models.options import LoadOptions
from rewards.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from rewards.models.chat import Chat, ChatEncoder

Form = Literal["regression", "token_classification", "next_token"]
AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType(
    {
        "min": min,
        "mean": lambda steps: sum(steps) / len(steps),
        "last": lambda steps: steps[-1],
        "product": math.prod,
    }
)


class ProcessOptions(LoadOptions):
    """A process reward model, how steps are found, and how their scores become one."""

    separator: str = Field("\n\n", min_length=1, max_length=64, description="text between the steps of a completion")
    step_token: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="token that follows each step in the model's input, at which it is read; the separator when absent",
    )
    aggregate: Literal["min", "mean", "last", "product"] = Field("min", description="from step scores to one score")
    label: str | None = Field(
        None, max_length=256, description="label of a token classifier that means a good step; the last when absent"
    )
    good_token: str | None = Field(
        None, max_length=64, description="of a language model: the token that it says after a good step"
    )
    bad_token: str | None = Field(None, max_length=64, description="the one that it says after a bad step")

    @model_validator(mode="after")
    def _both_tokens(self) -> Self:
        if (self.good_token is None) != (self.bad_token is None):
            raise ValueError("good_token and bad_token go together")
        return self


@register
class Process:
    """Scores of a completion's steps by a learned model, as their least, mean, last or product.

    Three kinds of model, told by their directory, each read at the token that ends a step:

        token classifier   probability of the good label; a single label's probability is its sigmoid
        language model     probability of `good_token` against `bad_token` as the next one
        regression model   the rating of its only head, on the data's scale

    A completion without a separator is one step. What it writes of the step token itself is taken out, as it could
    make up steps with it. Steps that are cut by max_length do not count.

    Raises ModelError where the directory holds no such model, or the separator is no token of its own.
    """

    name: ClassVar[str] = "process"
    Options: ClassVar[type[BaseModel]] = ProcessOptions
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    @classmethod
    def problems(cls, options: ProcessOptions) -> Iterator[tuple[str, str]]:
        return problems(options.model, options.revision)

    @classmethod
    def range_of(cls, options: ProcessOptions) -> tuple[float, float]:
        """Probabilities, unless it is a regression model."""
        path = local(options.model)
        with contextlib.suppress(ModelError, OSError):
            if path is not None and (path / FILE).is_file():
                heads = HeadsConfig.read(path)
                return heads.range_of(heads.names[0])
        return 0.0, 1.0

    def __init__(self, options: ProcessOptions) -> None:
        from rewards.models.chat import ChatEncoder

        path, config = locate(options.model, options.revision)
        self._options = options
        self._encoder = ChatEncoder.load(path, config, options.max_length, options.overflow)
        self._marker = options.step_token or options.separator
        self._token = single_token(self._encoder, "step_token" if options.step_token else "separator", self._marker)
        self._read = _reader(path, config, options, self._encoder)

    def score(self, batch: RewardBatch) -> list[float]:
        return [AGGREGATES[self._options.aggregate](steps) for steps in self.score_steps(batch)]

    def score_steps(self, batch: RewardBatch) -> list[list[float]]:
        """The scores of each completion's steps, in order."""
        from rewards.models.chat import by_length

        located = [
            self._locate(row, *pair) for row, pair in enumerate(zip(batch.messages, batch.completions, strict=True))
        ]
        rows, places = [tokens for tokens, _ in located], [positions for _, positions in located]
        scores: dict[int, list[float]] = {}
        for index in by_length(rows, self._options.batch_size):
            scores_BT = self._read([rows[i] for i in index])
            scores |= {i: scores_T[places[i]].tolist() for i, scores_T in zip(index, scores_BT, strict=True)}
        return [scores[i] for i in range(len(rows))]

    def _locate(self, row: int, chat: Chat, completion: str) -> tuple[list[int], list[int]]:
        """The row's tokens, and where its steps end."""
        separator, marker = self._options.separator, self._marker
        completion = self._encoder.clean(completion)
        if marker != separator:
            completion = completion.replace(marker, "")
        steps = [step for step in completion.split(separator) if step.strip()] or [""]
        tokens = self._encoder.encode(chat, "".join(step + marker for step in steps))
        ends = [i for i, token in enumerate(tokens) if token == self._token]
        # what prompt and template hold of the same token: before the first step and behind the last
        before = _shared_start(self._encoder.encode(chat, None), tokens)
        behind = self._encoder.encode(chat, "")[before:].count(self._token)
        ends = [i for i in ends if i >= before]
        if len(ends) != len(steps) + behind:
            raise ModelError(
                f"row {row} has {len(steps)} steps, but the model's tokenizer merges or drops separators; "
                "set step_token to a token of the model that stands alone"
            )
        kept = self._encoder.fit(tokens, row)
        cut = len(tokens) - len(kept)
        first = cut + self._encoder.beginning(tokens) if cut else 0
        places = [i - cut for i in ends[: len(steps)] if i >= first]
        if not places:
            raise ModelError(f"row {row}: max_length leaves no step of the completion")
        return kept, places


def single_token(encoder: ChatEncoder, option: str, text: str) -> int:
    """The one token that `text` is. Raises ModelError, which names the option."""
    tokens = encoder.tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) != 1 or tokens[0] == encoder.tokenizer.unk_token_id:
        raise ModelError(f"{option}: expected the text of a single token of the model")
    return int(tokens[0])


def _shared_start(left: Sequence[int], right: Sequence[int]) -> int:
    different = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(different, min(len(left), len(right)))


def _reader(
    path: Path, config: dict[str, Any], options: ProcessOptions, encoder: ChatEncoder
) -> Callable[[list[list[int]]], Tensor]:
    """A function from rows of tokens to a score at every token, [B, T]."""
    import torch

    from rewards.models.runners import PAD, pad, pick_device

    per_token = _per_token(path, config, options, encoder)
    device = pick_device(options.device)

    @torch.no_grad()
    def read(rows: list[list[int]]) -> Tensor:
        ids_BT, mask_BT = pad(rows, PAD)
        return per_token(ids_BT.to(device), mask_BT.to(device)).float().cpu()

    return read


def _per_token(
    path: Path, config: dict[str, Any], options: ProcessOptions, encoder: ChatEncoder
) -> Callable[[Tensor, Tensor], Tensor]:
    import transformers

    from rewards.models.runners import load_module

    form = _form(path, config)
    if form == "regression":
        return _regression(path, options)
    if form == "token_classification":
        model = load_module(transformers.AutoModelForTokenClassification, path, options)
        names = [model.config.id2label[i] for i in sorted(model.config.id2label)]
        if options.label is not None and options.label not in names:
            raise ModelError(f"label: the model has {', '.join(names)}")
        good = names.index(options.label) if options.label is not None else len(names) - 1

        def classify(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
            logits_BTL: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT).logits.float()
            return logits_BTL[..., 0].sigmoid() if len(names) == 1 else logits_BTL.softmax(dim=-1)[..., good]

        return classify
    if options.good_token is None or options.bad_token is None:
        raise ModelError(
            "good_token: the model is a language model; name the tokens it says after a good and a bad step"
        )
    tokens = [
        single_token(encoder, "good_token", options.good_token),
        single_token(encoder, "bad_token", options.bad_token),
    ]
    model = load_module(transformers.AutoModelForCausalLM, path, options)

    def predict(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        return logits_BTV[..., tokens].float().softmax(dim=-1)[..., 0]

    return predict


def _regression(path: Path, options: ProcessOptions) -> Callable[[Tensor, Tensor], Tensor]:
    from transformers import AutoModel

    from rewards.models.readout import Readout
    from rewards.models.runners import load_module

    config = HeadsConfig.read(path)
    if len(config.heads) != 1:
        raise ModelError(f"{path} has {len(config.heads)} heads; a process reward reads a model with one")
    low, high = config.heads[0].range or (-math.inf, math.inf)
    if options.aggregate == "product" and not 0 <= low < high <= 1:
        raise ModelError("aggregate: a product needs step scores between 0 and 1, and this head's range is another")
    backbone = load_module(AutoModel, path, options)
    readout = Readout.load(path, config).to(backbone.device)

    def rate(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTH = backbone(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        return readout.ratings(hidden_BTH)[..., 0]

    return rate


def _form(path: Path, config: dict[str, Any]) -> Form:
    if (path / FILE).is_file():
        return "regression"
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForTokenClassification"):
        return "token_classification"
    if architecture.endswith("ForCausalLM"):
        return "next_token"
    raise ModelError(f"{path} is no process reward model: expected a token classifier, a language model or {FILE}")
