"""What an evaluation found, as JSON and as one HTML page that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Figures of a reward model on held-out rows; None where the rows cannot tell."""

    rows: int
    """Rows of every kind."""
    pairwise_accuracy: float | None
    """Share of (chosen, rejected) in which the chosen one scores higher, a tie counting half."""
    best_of_4_accuracy: float | None
    """Share of rows with three rejected completions in which all three are below the chosen one."""
    ece: float | None
    """Expected calibration error of sigmoid(score of chosen - score of rejected)."""
    heads: dict[str, dict[str, float | None]]
    """By head: r2, mae, spearman, rows."""
    correlations: dict[str, dict[str, float | None]]
    """Between the heads' predictions: Pearson, by head and head."""
    domains: dict[str, dict[str, float | None]]
    """By domain of the rows: rows, pairwise_accuracy, best_of_4_accuracy, ece, and r2 of each head as `r2 NAME`."""
    reliability: list[dict[str, float]]
    """Bins of predicted preference: predicted, observed, rows. What the ECE is computed from."""

    def to_dict(self) -> dict[str, Any]:
        """As eval.json has it."""
        raise NotImplementedError

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Writes eval.json and eval.html there, and returns their paths."""
        raise NotImplementedError
