"""What a person asks for when a reward model is trained. Read, checked and shown without torch."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCORE = "score"  # what the gating network mixes the heads into
PREFERENCE = "preference"  # the head that pairs train beside the heads of ratings

HeadName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadSpec(_Spec):
    """An attribute that rows are rated by."""

    name: HeadName
    range: tuple[Finite, Finite] = Field((0.0, 1.0), description="lowest and highest rating, on the data's scale")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError("range: expected the lowest rating below the highest")
        return self


class GatingSpec(_Spec):
    """A small network that mixes the heads by the prompt, trained on pairs afterwards (arXiv 2406.12845)."""

    hidden_sizes: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = Field(
        (64,), max_length=8, description="widths of its ReLU layers; the paper has three of 1024"
    )
    steps: int = Field(500, ge=1, le=1_000_000, description="updates")
    batch_size: int = Field(128, ge=1, le=65_536, description="pairs in an update")
    lr: Positive = Field(1e-3, le=1, description="peak learning rate, cosine decay to 0")
    weight_decay: float = Field(0.0, ge=0, le=10, description="decoupled, as AdamW has it")


class RewardModelSpec(_Spec):
    """How a reward model is trained, and on what."""

    model: str = Field(min_length=1, description="backbone: a Hugging Face directory of safetensors, or a hub id")
    revision: str | None = Field(None, description="commit of a hub id, which it needs; ignored for a directory")
    train: tuple[str, ...] = Field(
        min_length=1,
        description="JSONL files of ratings {prompt, completion, ratings} or pairs {prompt, chosen, rejected}",
    )
    validation: tuple[str, ...] = Field((), description="the same, held out; the model is evaluated on them at the end")
    objective: Literal["regression", "bradley_terry", "combined"] = Field(
        "regression",
        description="regression: ratings; bradley_terry: pairs; combined: both, pairs train a head of their own",
    )
    heads: tuple[HeadSpec, ...] = Field((), max_length=64, description="attributes; none for bradley_terry")
    pooling: Literal["last", "mean"] = Field("last", description="which hidden states a completion is judged by")
    gating: GatingSpec | None = Field(None, description="mixes the heads into `score`; needs pairs and two heads")
    verbosity_head: HeadName | None = Field(
        None, description="head whose rank correlation with the others is driven to 0 before they are mixed"
    )
    pair_loss: Literal["plain", "scaled", "margin"] = Field(
        "plain",
        description="what a pair's `margin` does: nothing, multiplies the loss, or must be exceeded (arXiv 2410.01257)",
    )
    pair_weight: Positive = Field(1.0, le=1000, description="of the pairs' loss beside the ratings', combined only")
    freeze_backbone: bool = Field(False, description="train the heads alone")
    max_length: int = Field(2048, ge=8, le=1_048_576, description="tokens of prompt and completion together")
    overflow: Literal["error", "truncate_left"] = Field(
        "truncate_left", description="what happens to a longer row; the start is what is cut"
    )
    epochs: int = Field(1, ge=1, le=10_000, description="passes over the larger kind of row")
    max_steps: int | None = Field(None, ge=1, description="updates at most")
    batch_size: int = Field(32, ge=1, le=65_536, description="rows of each kind in an update")
    microbatch_size: int | None = Field(None, ge=1, description="rows in one forward pass; batch_size when absent")
    lr: Positive = Field(1e-5, le=1, description="peak learning rate")
    head_lr: Positive | None = Field(None, le=1, description="of the heads; lr when absent")
    weight_decay: float = Field(0.0, ge=0, le=10, description="decoupled, as AdamW has it")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the updates over which the rate rises from 0")
    max_grad_norm: Positive = Field(1.0, description="clipping of the gradient's norm")
    checkpoint_every: int = Field(200, ge=1, description="updates between checkpoints")
    seed: int = Field(0, ge=0, lt=2**31, description="of the heads' first weights, the order of rows and dropout")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic; weights stay float32")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [head.name for head in self.heads]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"heads: {twice[0]!r} is named twice")
        if taken := sorted({SCORE, PREFERENCE} & set(names)):
            raise ValueError(f"heads: {taken[0]!r} is a name of the model's own; choose another")
        if self.objective == "bradley_terry":
            if names or self.gating or self.verbosity_head:
                raise ValueError("heads: bradley_terry has one score and neither heads, gating nor verbosity_head")
            if self.pooling != "last":
                raise ValueError(
                    "pooling: bradley_terry saves a standard sequence classifier, which pools the last token"
                )
        elif not names:
            raise ValueError(f"heads: {self.objective} needs at least one attribute, such as {{name: helpfulness}}")
        if self.gating and len(names) < 2:
            raise ValueError("gating: needs at least two heads to mix")
        if self.verbosity_head is not None and self.verbosity_head not in names:
            raise ValueError(f"verbosity_head: expected one of the heads, {', '.join(names)}")
        return self
