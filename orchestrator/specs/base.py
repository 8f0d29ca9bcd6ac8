"""What every branch of the spec shares."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


# As stored jobs have them; of a new one, `orchestrator.spec.check_new` asks for more.
Title = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
MAX_METADATA = 512  # characters of a key, and of a value
MAX_METADATA_BYTES = 16 << 10  # of a new job's, as JSON in ASCII: lists that filter by it read that of many jobs
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=MAX_METADATA)]], Field(max_length=32)]


class Spec(BaseModel):
    """What every part of the tree shares: frozen, and an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


class RuleSpec(Spec):
    """A published rule by name: the first line of its docstring, its source and its needs are what people choose by.

    The other fields are the constructor's arguments of the class of that name.
    """

    source: ClassVar[str]  # paper, or what else says where the formula is from
    needs: ClassVar[frozenset[str]] = frozenset()  # as policies.weighting.base has them
    cost: ClassVar[str] = "nothing"  # beside a step with fixed weights

    def arguments(self, objectives: tuple[str, ...]) -> dict[str, Any]:
        """Keyword arguments of the rule's class; `objectives` are the job's, in order."""
        del objectives
        return self.model_dump(exclude={"name"})
