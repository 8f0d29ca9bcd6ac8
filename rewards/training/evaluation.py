"""Figures of a reward model on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.base import HeadedReward
from rewards.models.bradley_terry import BradleyTerry, BradleyTerryOptions, label_names
from rewards.models.directory import check_directory
from rewards.models.heads import FILE, SCORE, HeadsConfig, check_head
from rewards.models.regression import Regression, RegressionOptions
from rewards.training.batches import reward_batch
from rewards.training.correlation import pearson, spearman
from rewards.training.data import PairRow, RatingRow, read_rows
from rewards.training.report import EvalReport
from rewards.training.spec import PREFERENCE

BINS = 10
REJECTED = 3  # of RewardBench 2: one chosen completion against three
POINTS = 400  # of each head in the plot
Vector = NDArray[np.float64]
Table = dict[str, dict[str, float | None]]


def evaluate(
    model: Path,
    data: Path | Sequence[Path],
    *,
    on_progress: Callable[[int, int], None],
    head: str | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    device: str = "cpu",
) -> EvalReport:
    """See rewards.training.evaluate."""
    rows = read_rows([data] if isinstance(data, Path) else data)
    reward = load_reward(model, batch_size=batch_size, max_length=max_length, device=device)
    texts: list[tuple[RatingRow | PairRow, str]] = [(row, row.completion) for row in rows.ratings]
    texts += [(row, text) for row in rows.pairs for text in (row.chosen, *row.rejected)]
    predictions = _predict(reward, texts, batch_size, on_progress)
    known = list(predictions)
    if head is not None:
        check_head(head, known)
    rated = {name: values[: len(rows.ratings)] for name, values in predictions.items()}
    judged = _Judged.of(rows.pairs, predictions[head or _pair_head(model, known)][len(rows.ratings) :])
    heads = [name for name in known if any(name in row.ratings for row in rows.ratings)]
    return EvalReport(
        rows=len(rows),
        pairwise_accuracy=judged.accuracy(),
        best_of_4_accuracy=judged.best_of_4(),
        ece=judged.ece(),
        heads={name: _head_figures(rows.ratings, name, rated[name]) for name in heads},
        correlations=_correlations(predictions),
        domains=_domains(rows.ratings, rated, heads, judged),
        reliability=judged.reliability(),
        points={name: _points(rows.ratings, name, rated[name]) for name in heads},
    )


def load_reward(model: Path, *, batch_size: int, max_length: int | None, device: str) -> HeadedReward:
    """The reward that reads the directory: a regression model or a standard sequence classifier. Raises ModelError."""
    config = check_directory(model)
    arguments: dict[str, Any] = {"model": str(model), "batch_size": batch_size, "max_length": max_length}
    arguments["device"] = device.partition(":")[0]
    if (model / FILE).is_file():
        return Regression(RegressionOptions(**arguments))
    return BradleyTerry(BradleyTerryOptions(head=label_names(config)[0], **arguments))


def _pair_head(model: Path, known: Sequence[str]) -> str:
    """Which score says what is preferred: the gate's, else that of a head that pairs trained, else the mean."""
    if not (model / FILE).is_file():
        return known[0]
    config = HeadsConfig.read(model)
    return PREFERENCE if config.gating is None and PREFERENCE in config.names else SCORE


def _predict(
    reward: HeadedReward,
    texts: Sequence[tuple[RatingRow | PairRow, str]],
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, Vector]:
    columns: dict[str, list[Any]] = {}
    piece = 16 * batch_size  # long enough to sort by length, short enough to tell how far it is
    for start in range(0, len(texts), piece):
        for name, scores in reward.score_heads(reward_batch(texts[start : start + piece])).items():
            columns.setdefault(name, []).extend(scores)
        on_progress(min(start + piece, len(texts)), len(texts))
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


@dataclass(frozen=True)
class _Judged:
    """By row of pairs: its domain, and how far the chosen completion is above each rejected one."""

    domains: list[str | None]
    margins: list[Vector]

    @classmethod
    def of(cls, rows: Sequence[PairRow], scores: Vector) -> _Judged:
        margins: list[Vector] = []
        position = 0
        for row in rows:
            end = position + 1 + len(row.rejected)
            margins.append(scores[position] - scores[position + 1 : end])
            position = end
        return cls([row.domain for row in rows], margins)

    def within(self, domain: str) -> _Judged:
        chosen = [i for i, name in enumerate(self.domains) if name == domain]
        return _Judged([domain] * len(chosen), [self.margins[i] for i in chosen])

    def accuracy(self) -> float | None:
        return _mean((np.sign(margin) + 1) / 2 for margins in self.margins for margin in margins)

    def best_of_4(self) -> float | None:
        return _mean(float((margins > 0).all()) for margins in self.margins if len(margins) == REJECTED)

    def reliability(self) -> list[dict[str, float]]:
        """By bin of confidence, from 0.5 up: what is said to be preferred, how surely, and how often it is."""
        if not self.margins:
            return []
        margins_N = np.concatenate(self.margins)
        sure_N = 1 / (1 + np.exp(-np.abs(margins_N)))
        right_N = (np.sign(margins_N) + 1) / 2
        bin_N = np.minimum((BINS * (2 * sure_N - 1)).astype(int), BINS - 1)
        return [
            {
                "predicted": float(sure_N[inside].mean()),
                "observed": float(right_N[inside].mean()),
                "rows": int(inside.sum()),
            }
            for inside in (bin_N == i for i in range(BINS))
            if inside.any()
        ]

    def ece(self) -> float | None:
        """Mean gap between predicted and observed, weighted by rows."""
        bins = self.reliability()
        total = sum(part["rows"] for part in bins)
        return sum(part["rows"] * abs(part["predicted"] - part["observed"]) for part in bins) / total if bins else None


def _head_figures(rows: Sequence[RatingRow], name: str, predicted_N: Vector) -> dict[str, float | None]:
    """r2 against the mean of these ratings; None where they are all the same."""
    rated, guessed = _rated(rows, name, predicted_N)
    if not len(rated):
        return {"r2": None, "mae": None, "spearman": None, "rows": 0}
    spread = float(np.square(rated - rated.mean()).sum())
    return {
        "r2": 1 - float(np.square(rated - guessed).sum()) / spread if spread > 0 else None,
        "mae": float(np.abs(rated - guessed).mean()),
        "spearman": spearman(rated, guessed),
        "rows": len(rated),
    }


def _points(rows: Sequence[RatingRow], name: str, predicted_N: Vector) -> list[tuple[float, float]]:
    """(rated, predicted) of evenly spaced rows, for the plot."""
    rated, guessed = _rated(rows, name, predicted_N)
    step = -(-len(rated) // POINTS) or 1
    return [(float(a), float(b)) for a, b in zip(rated[::step], guessed[::step], strict=True)]


def _rated(rows: Sequence[RatingRow], name: str, predicted_N: Vector) -> tuple[Vector, Vector]:
    known = [i for i, row in enumerate(rows) if name in row.ratings]
    return np.array([rows[i].ratings[name] for i in known], dtype=np.float64), predicted_N[known]


def _correlations(predictions: Mapping[str, Vector]) -> Table:
    return {a: {b: pearson(left, right) for b, right in predictions.items()} for a, left in predictions.items()}


def _domains(ratings: Sequence[RatingRow], rated: Mapping[str, Vector], heads: Sequence[str], judged: _Judged) -> Table:
    names = sorted({row.domain for row in ratings if row.domain} | {name for name in judged.domains if name})
    table: Table = {}
    for name in names:
        inside = [i for i, row in enumerate(ratings) if row.domain == name]
        pairs = judged.within(name)
        table[name] = {
            "rows": len(inside) + len(pairs.margins),
            "pairwise_accuracy": pairs.accuracy(),
            "best_of_4_accuracy": pairs.best_of_4(),
            "ece": pairs.ece(),
        }
        rows = [ratings[i] for i in inside]
        table[name] |= {f"r2 {head}": _head_figures(rows, head, rated[head][inside])["r2"] for head in heads}
    return table


def _mean(values: Iterable[float]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None
