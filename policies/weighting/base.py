"""What every weighting strategy is: statistics of a step in, weights on the simplex out, state explicit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from policies.types import StepStats, UpdateOutcome, Weights

OnPreference = Literal["repeats", "multiplies", "restarts", "unknown"]


class Weighting:
    """Chooses the objectives' weights at each step; the person's steering comes after it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What costs extra: "gramian" (inner products of the objectives' gradients), "influence" (their row sums, which
    cheaper measurements give too), "archive" (held-out evaluations), "credit" (what the update did), "targets"."""

    follows_preference: ClassVar[bool] = True
    """An objective with preference 0 never gets weight from it."""

    on_preference: ClassVar[OnPreference] = "unknown"
    """What a choice does with the preference, so that a preview can tell what it would be under another one.

    It repeats it, multiplies it by factors that do not depend on it, or restarts from it when it changes.
    """

    def update(self, stats: StepStats) -> Weights:
        """The choice for this step's update. Called once a step, in order.

        A rule that adds up what its own weights bring has nothing to add while `stats.decides` is False: it follows the
        preference, so that what it is handed back goes on from where the person steered.
        """
        raise NotImplementedError  # abstract: each subclass has its own

    def observe(self, outcome: UpdateOutcome) -> None:
        """What the update did; called after it where the strategy needs "credit"."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; loading it continues identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state
