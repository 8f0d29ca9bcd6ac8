"""Gates: an objective that counts only where another one reached a threshold (arXiv 2601.05242)."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.base import Scores


class Gates:
    """R_k <- R_k where R_l >= t, else min(0, lowest R_k of the rows that are scored together).

    The published gate gives 0 to what fails. A reward that can be negative would make failing the better choice; so
    what fails gets no more than the worst that was measured. Thresholds look at the raw rewards, so that gates may be
    chained in any order. A gate on an objective that does not apply to a row holds nothing back there.
    """

    def __init__(self, gates: Mapping[str, tuple[str, float]]) -> None:
        """`gates`: objective -> (the other objective, threshold on its raw reward)."""
        self._gates = dict(gates)

    def apply(self, scores: Mapping[str, Scores]) -> dict[str, list[float | None]]:
        """Scores by objective, in the same order. Raises KeyError for a gate on an objective that has no scores."""
        gated = {name: list(values) for name, values in scores.items()}
        for name, (other, threshold) in self._gates.items():
            pairs = zip(scores[name], scores[other], strict=True)
            failed = min([0.0, *(value for value in scores[name] if value is not None)])
            gated[name] = [_gated(value, judge, threshold, failed) for value, judge in pairs]
        return gated


def _gated(value: float | None, judge: float | None, threshold: float, failed: float) -> float | None:
    return value if value is None or judge is None or judge >= threshold else failed
