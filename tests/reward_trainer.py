"""A stand-in for `rewards.training.train` that keeps its contract: updates, saved states, a finished directory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.training import EvalReport, TrainResult, TrainSettings

STEPS = 9


def reward_document(directory: Path, **changes: Any) -> dict[str, Any]:
    """A job document whose files are there."""
    data, model = directory / "train.jsonl", directory / "backbone"
    data.write_text('{"prompt": "p", "completion": "c", "ratings": {"kind": 1.0}}\n')
    model.mkdir(exist_ok=True)
    training = {"model": str(model), "train": [str(data)], "heads": [{"name": "kind"}], "checkpoint_every": 3}
    return {"kind": "reward_model", "name": "rated", "training": training | changes}


class FakeTrainer:
    """The weight of the model is a sum over its updates, so one that is lost or made twice shows."""

    def __init__(self, steps: int = STEPS, *, evaluates: bool = True, fails: Exception | None = None) -> None:
        self.steps, self.evaluates, self.fails = steps, evaluates, fails
        self.settings: list[TrainSettings] = []
        self.after: Callable[[int], None] = lambda _: None
        self.judging: Callable[[], None] = lambda: None

    def __call__(
        self,
        settings: TrainSettings,
        *,
        directory: Path,
        on_step: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], str | None],
        on_saved: Callable[[], None] = lambda: None,
    ) -> TrainResult:
        self.settings.append(settings)
        if self.fails is not None:
            raise self.fails
        model = directory / "model"
        state = directory / "checkpoint" / "checkpoint.safetensors"
        known = json.loads(state.read_text()) if state.exists() else {"step": 0, "weight": 0}

        def save() -> None:
            state.parent.mkdir(exist_ok=True)
            scratch = state.with_name(f".{state.name}")
            scratch.write_text(json.dumps(known))
            scratch.replace(state)

        while not model.exists() and known["step"] < self.steps:
            known["step"] += 1
            known["weight"] += known["step"] ** 2
            on_step(self.figures(known))
            self.after(known["step"])
            if known["step"] == self.steps:
                save()
                break
            reason = should_stop()
            if reason or known["step"] % settings.checkpoint_every == 0:
                save()
                on_saved()
            if reason:
                return TrainResult(model=None, step=known["step"], total_steps=self.steps, stopped=reason)
        if not model.exists():
            model.mkdir()
            (model / "config.json").write_text("{}")
            (model / "model.safetensors").write_text(json.dumps(known))
            shutil.rmtree(state.parent)
            on_saved()
        report = None
        if self.evaluates:
            self.judging()
            if reason := should_stop():
                return TrainResult(model=model, step=self.steps, total_steps=self.steps, stopped=reason)
            report = self.report()
            (directory / "eval.json").write_text("{}")
            (directory / "eval.html").write_text("<p>how it judges</p>")
        return TrainResult(model=model, step=self.steps, total_steps=self.steps, evaluation=report)

    def figures(self, known: dict[str, Any]) -> dict[str, Any]:
        return {
            "phase": "heads", "step": known["step"], "total_steps": self.steps, "epoch": 0, "loss": 1 / known["step"],
            "rating_loss": 1 / known["step"], "pair_loss": None, "pair_accuracy": None, "lr": 1e-3, "grad_norm": 1.0,
            "rows": 4, "duration_s": 0.01,
        }  # fmt: skip

    @staticmethod
    def report() -> EvalReport:
        fields: dict[str, Any] = {name: {} for name in EvalReport.__dataclass_fields__}
        heads = {"kind": {"r2": 0.9, "mae": 0.1, "spearman": 0.95, "rows": 4.0}}
        figures = {"pairwise_accuracy": 0.75, "best_of_4_accuracy": None, "ece": 0.1}
        return EvalReport(**fields | {"rows": 4, "heads": heads, "reliability": []} | figures)
