"""A Redis that was emptied, or put back from an older copy: T25 of the reliability table."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.state.embedded_redis import EmbeddedRedis
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.checkpoints import newest_manifest
from orchestrator.storage.recovery import DOCUMENT, Finding, recover
from services import cli
from tests.fault_figures import tell
from tests.toy_driver import Forks, Garage
from tests.toy_jobs import events_of, replay, submit, toy_spec, weights

SPEC = toy_spec()


@contextmanager
def running(directory: Path) -> Iterator[tuple[EmbeddedRedis, JobStore]]:
    with EmbeddedRedis(directory / "redis") as server, connect(server.url, timeout_s=5) as client:
        yield server, JobStore(client)


def wrong_steps(store: JobStore, job_id: str, directory: Path) -> list[int]:
    """Of those that the ledger still has."""
    expected = replay(SPEC, store.steering(job_id).log, directory)
    return [record["step"] for record in store.steps(job_id) if record["digest"] != expected[record["step"]]]


def test_jobs_come_back_from_their_directories(forks: Forks, tmp_path: Path) -> None:
    with running(tmp_path) as (server, store), Garage(forks, server.url, tmp_path) as garage:
        ends = {
            "trained": "after_commit=kill@5",  # its checkpoint is at 3
            "begun": "checkpoint_begun=kill",  # none yet
            "steered": "after_commit=kill@8",  # at 6
            "done": "",
            "unknown": "after_commit=kill@2",
        }
        for job_id in ends:
            submit(store, SPEC, job_id)
        store.steer("steered", change=weights(0.9), if_match=1, by="me")
        drivers = {job_id: garage.start(job_id, failpoints=failpoints) for job_id, failpoints in ends.items()}
        for driver in drivers.values():
            driver.wait()
        kept = store.steering("steered").current
        (tmp_path / "jobs" / "unknown" / DOCUMENT).unlink()
        store.calls.command("FLUSHALL")

        planned = {found.job_id: found.finding for found in recover(store, tmp_path, dry=True)}
        assert store.jobs().items == ()
        result = CliRunner().invoke(cli.app, ["--state-dir", str(tmp_path), "recover", "--redis", server.url])
        assert result.exit_code == 0, result.output
        assert "3 of 5 recovered, 1 lost" in result.output
        found = {found.job_id: found for found in recover(store, tmp_path)}
        assert planned == {
            "trained": Finding.RECOVERED, "begun": Finding.RECOVERED, "steered": Finding.RECOVERED,
            "done": Finding.FINISHED, "unknown": Finding.LOST,
        }  # fmt: skip
        assert {each.finding for each in found.values()} == {Finding.KNOWN, Finding.FINISHED, Finding.LOST}
        assert "unknown" in result.output  # reported, not forgotten
        assert store.steering("steered").current == kept

        for job_id, step in (("trained", 3), ("begun", 0), ("steered", 6)):
            assert store.job(job_id).status is JobStatus.PAUSED
            store.resume(job_id)
            heir = garage.start(job_id)
            assert heir.wait() == 0, heir.tail()
            assert store.job(job_id).status is JobStatus.SUCCEEDED
            assert [record["step"] for record in store.steps(job_id)] == list(range(step + 1, SPEC.steps + 1))
            if step:
                assert store.steps(job_id)[0]["fence"] == 2  # above the manifest's
        for job_id in ("trained", "begun"):
            assert wrong_steps(store, job_id, tmp_path) == []
        tell("T25", recovered=3, directories=5, finished=1, reported_lost=1)


@pytest.mark.parametrize(("mutant", "deaths"), [(None, 0), (None, 2), ("no_floor", 0)])
def test_an_older_copy_of_redis_gives_out_no_fence_twice(
    forks: Forks, tmp_path: Path, mutant: str | None, deaths: int
) -> None:
    """However many heirs die before they could register what they found."""
    mutants = [mutant] if mutant else []
    with running(tmp_path) as (server, store), Garage(forks, server.url, tmp_path) as garage:
        submit(store, SPEC, "j")
        garage.start("j", failpoints="after_commit=kill@4").wait()
        shutil.copytree(tmp_path / "redis", tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        garage.start("j", failpoints="after_commit=kill@5").wait()
        assert store.job("j").fence == 2
        assert newest_manifest(tmp_path / "jobs" / "j" / "checkpoints") == (2, 6)
    for path in (tmp_path / "redis").rglob("*.aof*"):
        path.unlink()
    shutil.copytree(tmp_path / "copy", tmp_path / "redis", dirs_exist_ok=True)
    with running(tmp_path) as (server, store), Garage(forks, server.url, tmp_path) as garage:
        assert (store.job("j").fence, store.job("j").step, store.job("j").checkpoint_step) == (1, 4, 3)
        for _ in range(deaths):
            garage.start("j", failpoints="after_claim=kill").wait()
        heir = garage.start("j", mutants=mutants)
        assert heir.wait() == 0, heir.tail()
        if mutant is not None:  # the mistake is seen: a fence comes again
            assert store.job("j").fence == 2
            return
        assert (store.job("j").fence, store.job("j").status) == (3 + deaths, JobStatus.SUCCEEDED)
        recovered = [event.data for event in events_of(store, "j") if event.type == "job.recovered"]
        assert recovered == [{"step": 6, "fence": 3 + deaths}]
        assert [record["step"] for record in store.steps("j")] == [1, 2, 3, 4, 7, 8, 9]
        assert wrong_steps(store, "j", tmp_path) == []
        tell("T25", fences_repeated=0)
