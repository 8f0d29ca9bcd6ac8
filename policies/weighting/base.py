"""What every weighting strategy is: statistics of a step in, weights on the simplex out, state explicit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from policies.types import StepStats, Weights


class Weighting(Protocol):
    """Chooses the objectives' weights at each step; the person's steering comes after it."""

    needs: ClassVar[frozenset[str]]  # what costs extra: "gramian", "archive"

    def update(self, stats: StepStats) -> Weights:
        """The choice for this step's update. Called once a step, in order."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; loading it continues identically."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
