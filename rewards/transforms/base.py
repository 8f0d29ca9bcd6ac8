"""What every transform is: one objective's raw rewards in, what the estimator sees of them out.

P prompts, G rollouts of each, N reference completions of each. NaN is "not measured" and stays NaN.

A monotone transform of a reward with two values changes nothing under an estimator that standardises each objective
in its group: transforms act on continuous rewards, or where rewards are combined before they are standardised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformContext:
    """What a transform may look at beside the rewards."""

    prompt_index: tuple[int, ...]  # P, of the train split
    completion_tokens_PG: Tensor
    references_PN: Tensor | None = None  # the same objective's gated rewards of the initial policy's completions


class Transform:
    """Non-decreasing in the reward, for one call and one length of completion."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What costs extra: "references" (scored completions of the initial policy for each prompt of the batch)."""

    def __call__(self, values_PG: Tensor, context: TransformContext) -> Tensor:
        """values_PG, float64. Called once for each batch that is learned from, in order."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; loading it continues identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


def references(context: TransformContext) -> Tensor:
    """references_PN in double precision, for transforms that need them."""
    assert context.references_PN is not None, "a transform that needs references is called with them"
    return context.references_PN.double()
