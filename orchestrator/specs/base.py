"""What every branch of the spec shares."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


# Nothing that moves a cursor, breaks a line or turns the direction of writing where the name is shown.
Title = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+$"),
]
_MAX_METADATA = 512  # characters of a key, and of a value


def _short_keys(metadata: dict[str, str]) -> dict[str, str]:
    if any(len(key) > _MAX_METADATA for key in metadata):
        raise ValueError(f"a key has more than {_MAX_METADATA} characters")
    return metadata


Metadata = Annotated[
    dict[str, Annotated[str, Field(max_length=_MAX_METADATA)]], Field(max_length=32), AfterValidator(_short_keys)
]


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
