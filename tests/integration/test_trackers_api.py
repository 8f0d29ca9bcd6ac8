"""`equipoise follow --tensorboard` on a real API: what it logs of a job that is over, by a key that may only read."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from orchestrator.rollouts.samples import FOLDER, shard
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from services.cli import app as cli
from services.trackers.event_file import summary_steps
from tests.api_support import KEY, SPEC, claim, serving, step_record
from tests.event_protos import events_of

ROLLOUT = (
    '{"step": 2, "fence": 1, "group": 0, "prompt_index": 0, "prompt": "2+3", "completion": "5", "tokens": 1, '
    '"rewards": {"accuracy": 1.0, "conciseness": null}, "signal": {}, "advantage": 0.5}\n'
)


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"trackers-{uuid.uuid4().hex}")
    client.close()


def record(step: int) -> dict[str, Any]:
    evaluation = {"objectives": {"accuracy": 0.7}, "mean_tokens": 3.0, "hypervolume": 0.4} if step == 2 else None
    timings = {"rollout": 0.5, "score": 0.1, "learn": 0.2, "sync": 0.1, "evaluate": 0.0, "step": 1.0}
    return {**step_record(step / 10), "tokens": 12, "timings_s": timings, "evaluation": evaluation, "kl": 0.01}


def test_a_job_that_is_over_is_logged_once(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with serving(store, tmp_path / "state") as server:
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}) as http:
            job_id = str(http.post("/v1/jobs", json=SPEC).json()["id"])
            reading = http.post("/v1/keys", json={"name": "reader", "scopes": ["read"], "owner": store.owner}).json()
        lease = claim(store, job_id)
        for step in (1, 2, 3):
            store.commit(lease, step=step, digest=str(step), record=record(step))
        kept = shard(tmp_path / "state" / "jobs" / job_id / FOLDER, 2)
        kept.parent.mkdir(parents=True)
        kept.write_text(ROLLOUT)
        store.finish(lease, JobStatus.SUCCEEDED)
        monkeypatch.setenv("EQUIPOISE_URL", server.url)
        monkeypatch.setenv("EQUIPOISE_API_KEY", reading["key"])
        for _ in range(2):
            result = CliRunner().invoke(cli, ["follow", job_id, "--tensorboard", str(tmp_path / "runs")])
            assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "runs").glob(f"*/{job_id}/events.*")
    assert [*summary_steps(path)] == [1, 2, 3]
    first, second, _ = ({value.tag: value for value in event.summary.value} for event in events_of(path)[1:])
    assert first["train/accuracy"].simple_value == pytest.approx(0.1)
    assert second["held_out/accuracy"].simple_value == pytest.approx(0.7)
    assert second["weights/conciseness"].simple_value == pytest.approx(0.4)
    assert "| 1 | 2+3 | 5 | 1 |" in second["rollouts"].tensor.string_val[0].decode()
    assert "training/loss" not in first  # no number
    assert SPEC["name"] in first["spec"].tensor.string_val[0].decode()
