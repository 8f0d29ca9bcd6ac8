"""A Redis that was emptied, or put back from an older copy: T25 of the reliability table."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


def copy(directory: Path) -> None:
    """Of a Redis that runs."""
    shutil.copytree(directory / "redis", directory / "copy", ignore=shutil.ignore_patterns("*.sock", "*.lock"))


def put_back(directory: Path) -> None:
    """The copy in the place of a Redis that does not run."""
    for path in (directory / "redis").rglob("*.aof*"):
        path.unlink()
    shutil.copytree(directory / "copy", directory / "redis", dirs_exist_ok=True)


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
        copy(tmp_path)
        garage.start("j", failpoints="after_commit=kill@5").wait()
        assert store.job("j").fence == 2
        assert newest_manifest(tmp_path / "jobs" / "j" / "checkpoints") == (2, 6)
    put_back(tmp_path)
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


@pytest.mark.parametrize(
    ("place", "gap"),
    [
        ("before_commit=stop@8", "step 8 does not fit: the ledger expects step 5"),
        ("checkpoint_registered=stop@3", "step 6 does not fit: the ledger expects step 3"),  # of 0, 3 and 6
    ],
)
def test_a_driver_that_lives_through_an_older_copy_hands_its_job_back(
    forks: Forks, tmp_path: Path, place: str, gap: str
) -> None:
    """The copy is younger than its claim and older than its last commit: its lease is good, and its steps are not."""
    with ExitStack() as ends:
        with running(tmp_path) as (server, store):
            garage = ends.enter_context(Garage(forks, server.url, tmp_path))
            submit(store, SPEC, "j")
            driver = garage.start("j", failpoints=f"after_commit=stop@4,{place}")
            driver.wait_until_stopped()
            copy(tmp_path)
            driver.send(signal.SIGCONT)
            while store.job("j").step < 6:  # it stood still, and may seem to for another moment
                assert driver.poll() is None, driver.tail()
            driver.wait_until_stopped()
        put_back(tmp_path)
        server, store = ends.enter_context(running(tmp_path))
        assert (server.url, store.job("j").fence, store.job("j").step) == (garage.redis_url, 1, 4)
        driver.send(signal.SIGCONT)
        assert driver.wait() == 0, driver.tail()
        job = store.job("j")
        assert (job.status, job.fence) == (JobStatus.QUEUED, 1)
        assert job.reason == f"{gap}, as where Redis was put back from an older copy"
        heir = garage.start("j")
        assert heir.wait() == 0, heir.tail()
        assert store.job("j").status is JobStatus.SUCCEEDED
        assert [record["step"] for record in store.steps("j")] == [1, 2, 3, 4, 7, 8, 9]
        assert wrong_steps(store, "j", tmp_path) == []
