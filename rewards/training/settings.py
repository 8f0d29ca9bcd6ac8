"""What the trainer takes and gives: plain values, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError

from rewards.training.spec import RewardModelSpec

if TYPE_CHECKING:
    from rewards.training.report import EvalReport


@dataclass(frozen=True, kw_only=True)
class Head:
    """An attribute and the range of its ratings."""

    name: str
    range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class GatingSettings:
    """See GatingSpec."""

    hidden_sizes: tuple[int, ...] = (64,)
    steps: int = 500
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """See RewardModelSpec, whose fields these are, and `device`, which is the machine's matter."""

    model: str
    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    revision: str | None = None
    objective: Literal["regression", "bradley_terry", "combined"] = "regression"
    heads: tuple[Head, ...] = ()
    pooling: Literal["last", "mean"] = "last"
    gating: GatingSettings | None = None
    verbosity_head: str | None = None
    pair_loss: Literal["plain", "scaled", "margin"] = "plain"
    pair_weight: float = 1.0
    freeze_backbone: bool = False
    max_length: int = 2048
    overflow: Literal["error", "truncate_left"] = "truncate_left"
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 32
    microbatch_size: int | None = None
    lr: float = 1e-5
    head_lr: float | None = None
    weight_decay: float = 0.0
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    checkpoint_every: int = 200
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"

    @classmethod
    def from_spec(cls, spec: RewardModelSpec, *, device: str = "cpu") -> Self:
        """`train` and `validation` of the spec must be paths of this machine by now."""
        values: dict[str, Any] = {name: getattr(spec, name) for name in type(spec).model_fields}
        values["train"] = tuple(Path(path) for path in spec.train)
        values["validation"] = tuple(Path(path) for path in spec.validation)
        values["heads"] = tuple(Head(**head.model_dump()) for head in spec.heads)
        values["gating"] = GatingSettings(**spec.gating.model_dump()) if spec.gating else None
        return cls(**values, device=device)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, device: str = "cpu") -> Self:
        """Validated by RewardModelSpec. ValueError names each bad field and never repeats a value."""
        try:
            return cls.from_spec(RewardModelSpec.model_validate(dict(document)), device=device)
        except ValidationError as error:
            problems = (_explain(problem) for problem in error.errors(include_input=False))
            raise ValueError("; ".join(problems)) from None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a training ended."""

    model: Path | None
    """The finished model's directory; None where it was stopped before that was there."""
    step: int
    """Updates made so far, those before a resume included."""
    total_steps: int
    stopped: str | None = None
    """What `should_stop` said; the next call with the same directory goes on from there."""
    evaluation: EvalReport | None = None
    """On the validation files, where there are any."""


def _explain(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        nearest = get_close_matches(field, RewardModelSpec.model_fields, n=1)
        message = f"unknown field{f', did you mean {nearest[0]!r}?' if nearest else ''}"
    return f"{field}: {message}" if field else message
