"""The person's preference, as it is: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from policies.types import StepStats, Weights


class Fixed:
    """w = preference."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def update(self, stats: StepStats) -> Weights:
        return Weights(weights_K=stats.preference_K)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state
