"""Training and evaluation of reward models: files in, a directory out. Plain functions without Ray.

Importing this imports no torch; calling does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.training.report import EvalReport
from rewards.training.settings import TrainResult, TrainSettings

__all__ = ["EvalReport", "TrainResult", "TrainSettings", "evaluate", "train"]


def train(
    settings: TrainSettings,
    *,
    directory: Path,
    on_step: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], str | None],
    on_saved: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Trains a reward model; the finished one is `directory`/model, its evaluation eval.json and eval.html beside it.

    `directory`/checkpoint holds what it takes to go on: called again with the same settings after a kill or a stop, it
    ends with the same weights as without. `on_step` hears after each update: phase (`heads` or `gating`), step,
    total_steps, epoch, loss, rating_loss and pair_loss (None where absent), pair_accuracy, lr, grad_norm, rows,
    duration_s. `should_stop` is asked after each update but the last, where it writes a checkpoint and returns, and in
    the evaluation. `on_saved` hears of each checkpoint, and at the end of the model, before that is evaluated.

    Raises ValueError for a mistake in data (file and line), settings, model or checkpoint; FloatingPointError where
    the loss is not finite.
    """
    from rewards.training import job

    return job.train(settings, directory=directory, on_step=on_step, should_stop=should_stop, on_saved=on_saved)


def evaluate(
    model_dir: Path,
    data: Path | Sequence[Path],
    *,
    on_progress: Callable[[int, int], None],
    head: str | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    device: str = "cpu",
) -> EvalReport:
    """Figures of the reward model in a directory on rows of ratings, pairs, or one chosen and three rejected.

    `rejected` of a pair may be a list; rows with exactly three count for best-of-4. `head` is what pairs are judged by:
    by default the gate's score, else the head that pairs trained, else the mean of the heads. `on_progress` hears
    completions scored and completions in all. Raises ValueError as `train` does.
    """
    from rewards.training import evaluation

    return evaluation.evaluate(
        model_dir, data, on_progress=on_progress, head=head, batch_size=batch_size, max_length=max_length, device=device
    )
