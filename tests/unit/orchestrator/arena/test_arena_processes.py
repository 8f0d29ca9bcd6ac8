"""A worker's process: what it answers, how it ends, and what is a full disk rather than a failed rule."""

import errno
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from orchestrator.arena import worker
from orchestrator.arena.conduct import ArenaStopped, RunFailed
from orchestrator.arena.entries import entries
from orchestrator.arena.plan import Planned
from orchestrator.arena.processes import ProcessWorker
from orchestrator.arena.protocol import PRESETS
from orchestrator.arena.tasks import TASKS
from orchestrator.storage.checkpoints import CheckpointError, write_checkpoint
from policies.learner_state import disk_errors

PLANNED = Planned(task=TASKS["sums3"], entry=entries(3)[0], preset=PRESETS["full"], seed=4, steps=40)
SPEC = TASKS["sums3"].spec(entries(3)[0], PRESETS["full"], seed=4, steps=40)
ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    figures = {"seed": asked["spec"]["seed"], "policy": asked["policy_seed"], "task": asked["task"]}
    print(json.dumps({"figures": figures}), flush=True)
"""


def running(directory: Path, script: str) -> ProcessWorker:
    found = ProcessWorker(0, directory, directory, threads=1)
    found._command = [sys.executable, "-c", script]
    return found


def test_it_answers_one_request_after_another_and_ends_with_its_input(tmp_path: Path) -> None:
    hand = running(tmp_path, ECHO)
    expected = {"seed": 4, "policy": 4, "task": "sums3"}
    assert hand.make(PLANNED, SPEC) == hand.make(PLANNED, SPEC) == expected
    process = hand._process
    assert process is not None
    hand.close()
    assert process.returncode == 0
    hand.close()  # again, without effect


def test_a_process_that_dies_fails_the_run_and_the_next_has_another(tmp_path: Path) -> None:
    hand = running(tmp_path, "import os, sys; sys.stdin.readline(); sys.stderr.write('last words'); os._exit(3)")
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"its process ended with code 3; .*worker-0.log has its last words"):
            hand.make(PLANNED, SPEC)
    assert hand.log.read_text() == "last words" * 2


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"failed": "not finite"}, RunFailed, "^not finite$"),
        ({"stop": "disk"}, ArenaStopped, "^disk; what was finished stays, and --resume goes on"),
    ],
)
def test_what_it_says_is_told_apart(tmp_path: Path, answer: Any, error: type[Exception], said: str) -> None:
    hand = running(tmp_path, f"input(); print({json.dumps(answer)!r}, flush=True); input()")
    with pytest.raises(error, match=said):
        hand.make(PLANNED, SPEC)
    hand.close()


def test_a_kill_from_another_thread_ends_the_wait(tmp_path: Path) -> None:
    hand = running(tmp_path, "import time; time.sleep(600)")
    threading.Timer(0.2, hand.kill).start()
    started = time.monotonic()
    with pytest.raises(RunFailed, match="code -9"):
        hand.make(PLANNED, SPEC)
    assert time.monotonic() - started < 60


def test_a_run_that_hangs_fails_and_the_next_has_another_process(tmp_path: Path) -> None:
    hand = running(tmp_path, "import time; time.sleep(600)")
    hand.patience_s, hand.step_patience_s = 0.1, 0.01
    with pytest.raises(RunFailed, match=r"it had not ended after 0\.5 s; .*worker-0\.log"):
        hand.make(PLANNED, SPEC)
    hand._command = [sys.executable, "-c", ECHO]
    hand.step_patience_s = 60.0
    assert hand.make(PLANNED, SPEC)["seed"] == 4
    hand.close()


def test_a_worker_that_can_not_be_started_stops_the_arena(tmp_path: Path) -> None:
    hand = running(tmp_path, "")
    hand._command = [str(tmp_path / "nothing")]
    with pytest.raises(ArenaStopped, match="can't start a worker: No such file"):
        hand.make(PLANNED, SPEC)


class Workshop:
    """Warm parts that are not there."""

    def __init__(self, error: Exception) -> None:
        self.error, self.closed = error, 0

    def parts(self, *_: Any) -> Any:
        raise self.error

    def close(self) -> None:
        self.closed += 1


def no_room(directory: Path) -> None:
    """The first file of a checkpoint is written by safetensors, whose error is its own."""
    with disk_errors():
        raise SafetensorError(f"Error while serializing {directory}: No space left on device (os error {errno.ENOSPC})")


def checkpoint_error(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(directory / "checkpoints", step=1, fence=1, fill=no_room)
    return caught.value


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_stops_and_another_mistake_fails_with_all_processes_ended(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.quickstart.ensure_policy", lambda *_, **__: tmp_path)
    error = checkpoint_error(tmp_path) if full else ValueError("advantages are not finite")
    maker = worker.Maker(tmp_path, tmp_path / "scratch", 1)
    shop = maker.workshop = Workshop(error)  # type: ignore[assignment]  # a stand-in
    request = {"task": "sums3", "policy_seed": 0, "spec": SPEC.model_dump(mode="json")}
    answers = io.StringIO()
    worker.serve(maker, io.StringIO(json.dumps(request) + "\n"), answers)
    answer = json.loads(answers.getvalue())
    if full:
        assert "No space left on device; free space" in answer["stop"]
    else:
        assert answer == {"failed": "advantages are not finite"}
    assert shop.closed == 1
    assert not maker.scratch.exists()


@pytest.mark.parametrize(("model", "trained"), [("quickstart", 1), ("someone/model", 0)])
def test_only_the_quickstart_policy_is_trained_for_a_run(
    tmp_path: Path, model: str, trained: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    used: list[str] = []

    class Known(Workshop):
        def parts(self, spec: Any, model: str) -> Any:
            used.append(model)
            return super().parts(spec, model)

    monkeypatch.setattr("policies.quickstart.ensure_policy", lambda *_, seed, **__: made.append(seed) or tmp_path)
    maker = worker.Maker(tmp_path, tmp_path / "scratch", 1)
    maker.workshop = Known(ValueError("no parts"))  # type: ignore[assignment]
    spec = SPEC.model_dump(mode="json")
    if model != "quickstart":
        spec |= {"policy": {"model": model}, "data": {"type": "files", "train": "a.csv", "validation": "b.csv"}}
    assert maker.make({"task": "a job of one's own", "policy_seed": 3, "spec": spec}) == {"failed": "no parts"}
    assert (made, used) == ([3] * trained, [str(tmp_path) if trained else model])
