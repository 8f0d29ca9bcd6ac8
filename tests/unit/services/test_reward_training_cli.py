"""`equipoise rewards train | eval`: what is asked of whom, and what a person reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rewards import training
from rewards.training import EvalReport
from services.cli import app
from tests.reward_trainer import FakeTrainer, reward_document

RUNNER = CliRunner()


class WritingReport(EvalReport):
    """Until the real one is imported with torch, a report that writes what it is."""

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "pairwise_accuracy": 0.75, "best_of_4_accuracy": None, "ece": 0.1,
                "heads": self.heads, "domains": {"maths [red]": {"rows": 4}}}  # fmt: skip

    def write(self, directory: Path) -> tuple[Path, Path]:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("eval.json", "eval.html"):
            (directory / name).write_text("{}")
        return directory / "eval.json", directory / "eval.html"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    trainer = FakeTrainer()
    fields = vars(FakeTrainer.report())
    monkeypatch.setattr(FakeTrainer, "report", staticmethod(lambda: WritingReport(**fields)))
    monkeypatch.setattr(training, "train", trainer)
    return trainer


def spec_file(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "rm.yaml"
    path.write_text(yaml.safe_dump(reward_document(tmp_path) | changes))
    return path


def test_a_reward_model_is_trained_here(tmp_path: Path, trainer: FakeTrainer) -> None:
    target = tmp_path / "out"
    target.mkdir()
    done = RUNNER.invoke(app, ["rewards", "train", str(spec_file(tmp_path)), "--local", str(target)])
    assert done.exit_code == 0, done.output
    assert str(target / "model") in done.output.replace("\n", "")
    assert "0.750" in done.output
    assert (target / "model" / "model.safetensors").exists()
    assert trainer.settings[0].device == "cpu"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"kind": "alignment"}, "unknown field"), ({"training": {"model": "m"}}, "training.train: Field required")],
)
def test_another_document_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    done = RUNNER.invoke(app, ["rewards", "train", str(spec_file(tmp_path, **changes))])
    assert done.exit_code == 2
    assert said in done.output


def test_what_the_trainer_refuses_is_said_in_a_line(tmp_path: Path, trainer: FakeTrainer) -> None:
    trainer.fails = ValueError("train.jsonl: line 7: no rating of a head")
    done = RUNNER.invoke(app, ["rewards", "train", str(spec_file(tmp_path)), "--local", str(tmp_path)])
    assert (done.exit_code, done.output) == (2, "equipoise: train.jsonl: line 7: no rating of a head\n")


def test_an_evaluation_is_a_table_and_a_page(
    tmp_path: Path, trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def evaluate(model: Path, data: list[Path], *, on_progress: Callable[[int, int], None], **more: Any) -> EvalReport:
        asked.append((model, data, more))
        on_progress(1, 4)
        return trainer.report()

    monkeypatch.setattr(training, "evaluate", evaluate)
    words = ["rewards", "eval", "model", "a.jsonl", "b.jsonl", "--output", str(tmp_path / "found"), "--head", "kind"]
    done = RUNNER.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert asked == [
        (Path("model"), [Path("a.jsonl"), Path("b.jsonl")], {"head": "kind", "batch_size": 16, "device": "cpu"})
    ]
    assert "maths [red]" in done.output  # a name of the data is no markup
    assert (tmp_path / "found" / "eval.html").exists()
    printed = RUNNER.invoke(app, [*words, "--json"])
    assert json.loads(printed.stdout)["heads"]["kind"]["r2"] == 0.9
