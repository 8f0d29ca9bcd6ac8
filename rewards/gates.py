"""Gates: an objective that counts only where another one reached a threshold (arXiv 2601.05242)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Gates:
    """R_k <- R_k * 1[R_l >= t]. Thresholds look at the raw rewards, so that gates may be chained in any order."""

    def __init__(self, gates: Mapping[str, tuple[str, float]]) -> None:
        """`gates`: objective -> (the other objective, threshold on its raw reward)."""
        self._gates = dict(gates)

    def apply(self, scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """Scores by objective, in the same order. Raises KeyError for a gate on an objective that has no scores."""
        gated = {name: list(values) for name, values in scores.items()}
        for name, (other, threshold) in self._gates.items():
            pairs = zip(scores[name], scores[other], strict=True)
            gated[name] = [value if judge >= threshold else 0.0 for value, judge in pairs]
        return gated
