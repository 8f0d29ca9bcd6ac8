"""A reward model's training as a job: its document, its ledger and checkpoints, and where a killed one goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checks.access import Access
from orchestrator.checks.preflight import preflight
from orchestrator.journal import Wishes
from orchestrator.reward_training import RewardTraining
from orchestrator.spec import JobSpec, SpecError, load_spec, parse_job, parse_spec
from orchestrator.specs.reward_job import RewardJobSpec
from orchestrator.steering import initial_steering
from orchestrator.storage.checkpoint_store import CheckpointStore
from orchestrator.storage.checkpoints import CheckpointError, export_policy
from tests.loop_fakes import Killed, MemoryJournal, World
from tests.reward_trainer import STEPS, FakeTrainer, reward_document

PROJECT = Path(__file__).parents[3]


def spec_of(document: dict[str, Any]) -> RewardJobSpec:
    spec = parse_job(document)
    assert isinstance(spec, RewardJobSpec)
    return spec


class Job:
    """A job's directory and journal, which outlive its holders."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        self.spec = spec_of(reward_document(tmp_path, **changes))
        self.root = tmp_path / "job" / "checkpoints"
        self.root.mkdir(parents=True)
        self.journal = MemoryJournal(self.spec, World())  # type: ignore[arg-type]  # it only asks for its steering
        self.totals: list[int] = []
        self.fence = 0

    def holder(self, trainer: FakeTrainer | None = None) -> RewardTraining:
        """What the driver does with a lease."""
        self.fence += 1
        self.journal.die_at = ("", 0)
        store = CheckpointStore(self.root)
        store.registered = {step: entry["digest"] for step, entry in self.journal.registered.items()}
        training = RewardTraining(
            self.spec, self.journal, store, fence=self.fence, set_total=self.totals.append,
            trainer=trainer or FakeTrainer(),
        )  # fmt: skip
        step = max(self.journal.registered, default=None)
        self.journal.records = {at: record for at, record in self.journal.records.items() if at <= (step or 0)}
        training.resume(step, sorted(self.journal.registered))
        return training

    def model(self) -> dict[str, Any]:
        (path,) = (self.root / f"step-{STEPS:06d}" / "policy").glob("model.safetensors")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def raises(error: BaseException) -> None:
    raise error


WHOLE = {"step": STEPS, "weight": sum(step**2 for step in range(1, STEPS + 1))}


def test_a_training_from_the_first_update_to_the_finished_model(tmp_path: Path) -> None:
    job = Job(tmp_path)
    trainer = FakeTrainer()
    assert job.holder(trainer).run() == "succeeded"
    assert list(job.journal.records) == list(range(1, STEPS + 1))
    first = job.journal.records[1]
    assert first["timings_s"] == {"step": 0.01}
    assert (first["loss"], first["phase"], first["pair_loss"]) == (1.0, "heads", None)
    assert not {"total_steps", "duration_s"} & first.keys()
    assert job.totals == [STEPS]
    assert job.model() == WHOLE
    assert list(job.journal.registered) == [STEPS]
    kept = job.journal.registered[STEPS]
    assert kept["metrics"]["pairwise_accuracy"] == 0.75
    assert kept["on_front"] is False
    assert sorted(path.name for path in job.root.glob("step-*")) == [f"step-{STEPS:06d}"]
    (told,) = job.journal.named("reward_model.evaluated")
    assert told["heads"]["kind"]["r2"] == 0.9
    assert "how it judges" in (job.root.parent / "report.html").read_text()
    assert (job.root.parent / "eval.json").exists()
    (settings,) = trainer.settings
    assert settings.train == (tmp_path / "train.jsonl",)
    assert settings.device == "cpu"
    assert (export_policy(job.root / f"step-{STEPS:06d}", tmp_path / "out") / "config.json").exists()


@pytest.mark.parametrize("where", ["after commit", "before register", "after register", "before removal"])
@pytest.mark.parametrize("step", [3, 5, 7, STEPS])
def test_a_killed_one_ends_with_the_same_model(tmp_path: Path, where: str, step: int) -> None:
    job = Job(tmp_path)
    killed = job.holder()
    job.journal.die_at = (where, step)
    try:
        killed.run()
    except Killed:
        assert job.holder().run() == "succeeded"
    assert job.model() == WHOLE
    assert list(job.journal.records) == list(range(1, STEPS + 1))
    assert list(job.journal.registered) == [STEPS]
    assert job.journal.registered[STEPS]["metrics"]["ece"] == 0.1
    assert len(job.journal.named("reward_model.evaluated")) == 1
    assert (job.root.parent / "report.html").exists()


def test_a_pause_keeps_what_was_trained(tmp_path: Path) -> None:
    job = Job(tmp_path)
    trainer = FakeTrainer()
    wish = [Wishes()]
    job.journal.wish = lambda: wish[0]
    trainer.after = lambda step: wish.__setitem__(0, Wishes(pause=step == 5))
    assert job.holder(trainer).run() == "paused"
    assert list(job.journal.registered) == [3, 5]  # the one before, too: either may be found damaged
    wish[0] = Wishes()
    with pytest.raises(CheckpointError):  # there is no model yet
        export_policy(job.root / "step-000005", tmp_path / "out")
    again = job.holder()
    assert again.step == 5
    assert again.run() == "succeeded"
    assert job.model() == WHOLE


@pytest.mark.parametrize("end", ["killed", "paused"])
def test_a_model_that_is_there_is_never_trained_again_nor_written_again(tmp_path: Path, end: str) -> None:
    """Its evaluation may run out of memory, or be stopped: who goes on has only that to do."""
    job, trainer, wish = Job(tmp_path), FakeTrainer(), [Wishes()]
    job.journal.wish = lambda: wish[0]
    if end == "killed":
        trainer.judging = lambda: raises(Killed())
        with pytest.raises(Killed):
            job.holder(trainer).run()
    else:
        trainer.after = lambda step: wish.__setitem__(0, Wishes(pause=step == STEPS))
        assert job.holder(trainer).run() == "paused"
    assert list(job.journal.registered) == [6, STEPS]
    digest = job.journal.registered[STEPS]["digest"]
    assert (export_policy(job.root / f"step-{STEPS:06d}", tmp_path / "out") / "config.json").exists()
    assert job.journal.named("reward_model.evaluated") == []
    wish[0] = Wishes()
    again = FakeTrainer()
    again.after = lambda step: pytest.fail(f"update {step} is made again")
    assert job.holder(again).run() == "succeeded"
    assert job.model() == WHOLE
    assert {step: entry["digest"] for step, entry in job.journal.registered.items()} == {STEPS: digest}
    assert job.journal.registered[STEPS]["metrics"]["ece"] == 0.1
    assert len(job.journal.named("reward_model.evaluated")) == 1


@pytest.mark.parametrize(("wish", "outcome"), [(Wishes(cancel=True), "cancelled"), (Wishes(stop=True), "stopped")])
def test_a_wish_is_heard_before_and_between_updates(tmp_path: Path, wish: Wishes, outcome: str) -> None:
    job = Job(tmp_path)
    trainer, now = FakeTrainer(), [wish]
    job.journal.wish = lambda: now[0]
    assert job.holder(trainer).run() == outcome
    assert trainer.settings == []
    now[0] = Wishes()
    trainer.after = lambda step: now.__setitem__(0, wish if step == 4 else Wishes())
    assert job.holder(trainer).run() == outcome
    assert list(job.journal.records) == [1, 2, 3, 4]


def test_a_full_disk_costs_an_event_until_the_model_is_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    holder = job.holder()

    def full(**_: Any) -> Any:
        raise CheckpointError("no space")

    monkeypatch.setattr(holder.checkpoints, "write", full)
    with pytest.raises(CheckpointError, match="no space"):
        holder.run()
    assert [event["message"] for event in job.journal.named("checkpoint.failed")] == ["no space"] * 3
    assert list(job.journal.records) == list(range(1, STEPS + 1))


def test_what_the_trainer_raises_is_the_jobs_reason(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with pytest.raises(ValueError, match=r"train.jsonl: line 3"):
        job.holder(FakeTrainer(fails=ValueError("train.jsonl: line 3: no prompt"))).run()


def test_a_model_without_held_out_rows_has_no_report(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.holder(FakeTrainer(evaluates=False)).run() == "succeeded"
    assert job.journal.named("reward_model.evaluated") == []
    assert not (job.root.parent / "report.html").exists()


# ------------------------------------------------------------------------------------------ documents


def test_the_kind_of_a_document_decides_how_it_is_read(tmp_path: Path) -> None:
    document = reward_document(tmp_path)
    spec = spec_of(document)
    assert parse_job(json.loads(spec.to_json())) == spec
    assert initial_steering(spec).weights == {}
    with pytest.raises(SpecError, match="kind: expected alignment or reward_model, did you mean 'reward_model'"):
        parse_job({**document, "kind": "reward_modle"})
    with pytest.raises(SpecError, match="kind"):
        parse_spec(document)
    quickstart = load_spec(PROJECT / "deploy" / "jobs" / "quickstart.yaml")
    assert isinstance(quickstart, JobSpec)
    assert quickstart.kind == "alignment"
    assert isinstance(load_spec(PROJECT / "deploy" / "jobs" / "reward_model.yaml"), RewardJobSpec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": []}, "training.heads: regression needs at least one attribute"),
        ({"heds": []}, "training.heds: unknown field, did you mean 'heads'?"),
        ({"lr": -1}, "training.lr: "),
        ({"heads": [{"name": "a", "range": [1, 0]}]}, "training.heads.0"),
    ],
)
def test_a_document_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_job(reward_document(tmp_path, **changes))
    assert str(error.value).startswith(message)


def test_files_that_are_not_there_are_named_at_submission(tmp_path: Path) -> None:
    document = reward_document(tmp_path)
    assert preflight(spec_of(document)) == []
    shutil.rmtree(tmp_path / "backbone")
    changed = reward_document(tmp_path, validation=[str(tmp_path / "no.jsonl")], model=str(tmp_path / "none"))
    assert preflight(spec_of(changed)) == [
        ("training.validation.0", "no such file"),
        ("training.model", "no such directory"),
    ]


def test_a_stranger_names_no_path_of_the_server(tmp_path: Path) -> None:
    spec = spec_of(reward_document(tmp_path, validation=["dataset:ds-0123456789ab", "https://example.org/a.jsonl"]))
    closed = Access(owner="them", state_dir=tmp_path, roots=())
    assert [field for field, _ in preflight(spec, closed)] == [
        "training.train.0",
        "training.validation.0",
        "training.validation.1",
        "training.model",
    ]
    assert all(str(tmp_path) not in message for _, message in preflight(spec, closed))
    own = spec_of(reward_document(tmp_path))
    assert preflight(own, Access(owner="them", state_dir=tmp_path, roots=(tmp_path,))) == []
    hub = spec_of(reward_document(tmp_path, model="org/model"))
    assert [field for field, _ in preflight(hub, closed)] == ["training.train.0"]
