"""`reward_heads.json`: what the heads of a regression model mean. Read without torch."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewards.models.directory import ModelError, read_json

FILE = "reward_heads.json"
WEIGHTS = (
    "reward_heads/model.safetensors"  # in a folder of its own: loaders take every *.safetensors beside config.json
)
SCORE = "score"

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class HeadConfig(_Part):
    """One head: rating = offset + scale * output."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")
    range: tuple[Finite, Finite] | None = Field(None, strict=False)
    """Lowest and highest rating; a head without one is left out of the mix."""
    offset: Finite = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    verbosity_share: Finite = 0.0
    """lambda: what is taken off per unit of the verbosity head before the heads are mixed, both scaled to [0, 1]."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.name == SCORE:
            raise ValueError(f"{SCORE!r} is the name of the mix of all heads")
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError("range: expected the lowest rating below the highest")
        return self


class HeadsConfig(_Part):
    """The whole file."""

    format: Literal[1] = 1
    pooling: Literal["last", "mean"] = "last"
    heads: tuple[HeadConfig, ...] = Field(min_length=1, max_length=64, strict=False)
    verbosity_head: str | None = None
    gating: tuple[Annotated[int, Field(ge=1, le=8192)], ...] | None = Field(None, max_length=8, strict=False)
    """Widths of the gating network's hidden layers; None for the plain mean."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise ValueError("heads: a name stands twice")
        if self.verbosity_head is not None and self.verbosity_head not in self.names:
            raise ValueError("verbosity_head: expected the name of a head")
        if self.gating is not None and not any(head.range for head in self.heads):
            raise ValueError("gating: no head has a range, so there is nothing to mix")
        return self

    @property
    def names(self) -> list[str]:
        return [head.name for head in self.heads]

    def range_of(self, head: str) -> tuple[float, float]:
        """Infinite where the file says nothing; the mix scales heads to [0, 1]."""
        ranges = {each.name: each.range for each in self.heads}
        known = (0.0, 1.0) if any(ranges.values()) else None
        return ranges.get(head, known if head == SCORE else None) or (-math.inf, math.inf)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises ModelError, which names the bad field."""
        document = read_json(directory / FILE, "expected a regression reward model, as training writes it")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise ModelError(f"{directory / FILE}: {field}: {problem['msg']}".replace(": :", ":")) from None

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def check_head(head: str, known: list[str]) -> None:
    """Raises ModelError with the nearest name."""
    if head not in known:
        nearest = get_close_matches(head, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ModelError(f"head: the model has no head of that name; {hint}It has {', '.join(known)}")
