"""One job's training of a reward model: the trainer's updates in the job's ledger, its state among the checkpoints.

JOB/training/          the trainer's own directory: a copy of the newest registered checkpoint when a holder starts
JOB/checkpoints/step-N/trainer/    what the trainer goes on from
JOB/checkpoints/step-N/policy/     the finished model, at the last step: what is exported and served
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.journal import Journal
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.storage.checkpoint_store import CheckpointStore, StoreAway
from orchestrator.storage.checkpoints import CheckpointError
from orchestrator.storage.remote import LONG_PAUSES_S, is_url
from orchestrator.storage.remote_data import fetch
from rewards import training
from rewards.training import TrainResult, TrainSettings

FOLDER = "training"
MODEL = "policy"  # as that of an aligned model, so that it is exported and fetched in the same way
STATE = "trainer"
EVALUATION = {"eval.json": "eval.json", "eval.html": "report.html"}  # of the trainer, and beside the job
TRAINED, TRAINERS_STATE = "model", "checkpoint"  # what the trainer calls them
NEWEST = 2  # checkpoints that are kept until the end, in case the newest is found damaged
MAX_CHECKPOINT_FAILURES = 3

Trainer = Callable[..., TrainResult]


class RewardTraining:
    """`run`, once; after `resume` it goes on from a checkpoint. `trainer` is `rewards.training.train`."""

    def __init__(
        self,
        spec: RewardJobSpec,
        journal: Journal,
        checkpoints: CheckpointStore,
        *,
        fence: int,
        set_total: Callable[[int], None],
        trainer: Trainer | None = None,
    ) -> None:
        self.spec = spec
        self.journal = journal
        self.checkpoints = checkpoints
        self.fence = fence
        self.job = checkpoints.root.parent
        self.directory = self.job / FOLDER
        self.step = 0
        self.total: int | None = None
        self._set_total = set_total
        self._train = trainer or training.train
        self._kept: set[int] = set()
        self._failures = 0

    def resume(self, step: int | None, known: list[int]) -> None:
        """The trainer's directory as the checkpoint of that step has it, or empty."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o700, parents=True)
        if step is not None:
            found = self.checkpoints.directory(step)
            if (found / MODEL).is_dir():
                shutil.copytree(found / MODEL, self.directory / TRAINED)
            else:
                shutil.copytree(found / STATE, self.directory / TRAINERS_STATE)
            self.step = step
            self._kept = {other for other in known if other <= step}

    def run(self) -> str:
        """succeeded, paused, cancelled or stopped."""
        if asked := self.asked():
            return asked
        self.journal.progress(stage="reading the data and loading the model", eta_s=None)
        result = self._train(
            self.settings(),
            directory=self.directory,
            on_step=self.on_step,
            should_stop=self.asked,
            on_saved=self.on_saved,
        )
        if result.stopped is not None:
            return result.stopped
        self.conclude(result)
        return "cancelled" if self.journal.wishes().cancel else "succeeded"

    def asked(self) -> str | None:
        """How the training is to end, where a person or the machine wants it to."""
        wishes = self.journal.wishes()
        return "cancelled" if wishes.cancel else "paused" if wishes.pause else "stopped" if wishes.stop else None

    def settings(self) -> TrainSettings:
        """Files that a URL names are fetched. ValueError where cuda is asked for and there is none."""
        wanted, data = self.spec.training, self.job / "data"
        files = {
            split: tuple(
                str(fetch(name, data, pauses_s=LONG_PAUSES_S)) if is_url(name) else str(Path(name).expanduser())
                for name in getattr(wanted, split)
            )
            for split in ("train", "validation")
        }
        return TrainSettings.from_spec(wanted.model_copy(update=files), device=self.device())

    def device(self) -> str:
        import torch

        if self.spec.resources.threads is not None:
            torch.set_num_threads(self.spec.resources.threads)
        if self.spec.resources.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("resources.device: cuda is asked for, but no CUDA device is visible; use cpu or auto")
        cuda = self.spec.resources.device != "cpu" and torch.cuda.is_available()
        return "cuda" if cuda else "cpu"

    def on_step(self, figures: dict[str, Any]) -> None:
        """After each update."""
        step, total = figures["step"], figures["total_steps"]
        if total != self.total:
            self._set_total(total)
            self.total = total
        seconds = float(figures["duration_s"])
        left_out = ("total_steps", "duration_s")
        record = {name: value for name, value in figures.items() if name not in left_out}
        self.journal.commit(record | {"timings_s": {"step": seconds}})
        self.step = step
        self.journal.progress(stage=f"training the {figures['phase']}", eta_s=seconds * (total - step))

    def on_saved(self) -> None:
        """A checkpoint of the trainer's state; a full disk costs an event. Of the model, which is the result: not."""
        if (self.directory / TRAINED).is_dir():
            while not self.register(self._copy_model):
                pass
            if self.spec.training.validation:
                self.journal.progress(stage="evaluating the model", eta_s=None)
        else:
            self.register(self._copy_state)

    def _copy_state(self, directory: Path) -> None:
        shutil.copytree(self.directory / TRAINERS_STATE, directory / STATE)

    def _copy_model(self, directory: Path) -> None:
        shutil.copytree(self.directory / TRAINED, directory / MODEL)

    def conclude(self, result: TrainResult) -> None:
        """The evaluation, told; a holder that comes after a kill does both again. Of checkpoints, the model alone."""
        summary = _summary(result)
        if summary:
            told = {"step": self.step, **summary}
            self.journal.event("reward_model.evaluated", once=f"evaluated {self.step}", **told)
        for name, kept in EVALUATION.items():
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, self.job / kept)
        self.retain(summary, newest=1)

    def register(self, fill: Callable[[Path], None]) -> bool:
        """Whether it was written. Raises CheckpointError, or StoreAway, when it fails for the third time in a row."""
        try:
            path, manifest = self.checkpoints.write(step=self.step, fence=self.fence, fill=fill)
        except CheckpointError as error:
            self._failures += 1
            self.journal.event("checkpoint.failed", level="error", step=self.step, message=str(error))
            if self._failures < MAX_CHECKPOINT_FAILURES:
                return False
            if isinstance(error.__cause__, StoreAway):
                raise error.__cause__ from None
            raise
        self._failures = 0
        self._kept.add(self.step)
        self.journal.checkpoint(path, manifest)
        self.retain({})
        return True

    def retain(self, metrics: dict[str, Any], *, newest: int = NEWEST) -> None:
        """Only the newest checkpoints are of use. `metrics`: of the last one."""
        kept = sorted(self._kept)[-newest:]
        dropped = sorted(self._kept.difference(kept))
        self._kept = set(kept)
        self.journal.checkpoints({self.step: {"on_front": False, "metrics": metrics}}, dropped)
        self.checkpoints.keep_only(self._kept, fence=self.fence)


def _summary(result: TrainResult) -> dict[str, Any]:
    """Of an evaluation, what fits in a line."""
    if result.evaluation is None:
        return {}
    found = dataclasses.asdict(result.evaluation)
    names = ("rows", "pairwise_accuracy", "best_of_4_accuracy", "ece", "heads")
    return {name: found[name] for name in names}
