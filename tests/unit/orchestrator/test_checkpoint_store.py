"""Checkpoints behind which a store stands: what is registered is there, whole; what is not whole is not read."""

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from orchestrator import driver
from orchestrator.launch.launchers import NO_RESOURCES
from orchestrator.state.store import Checkpoint
from orchestrator.storage import checkpoint_store, checkpoints, remote
from orchestrator.storage.checkpoint_store import CheckpointStore, Remote, StoreAway, find_checkpoint
from orchestrator.storage.checkpoints import (
    MANIFEST,
    CheckpointError,
    PolicyAlone,
    Unreadable,
    directory_name,
    export_policy,
    verify,
    write_json,
)
from orchestrator.storage.recovery import register_found
from orchestrator.storage.remote import RemoteError
from services.settings import checkpoint_store as from_environment
from tests.loop_fakes import Killed, Run, make_spec, start
from tests.unit.orchestrator.test_driver import CLAIM, NO_PARTS, FakeStore, journal_of

JOB = ("local", "job-1")


class Doubtful(LocalFileSystem):
    """A filesystem whose calls are noted, and fail where the test says so."""

    cachable = False  # a new one each time

    def __init__(self) -> None:
        super().__init__(auto_mkdir=True)
        self.calls: list[tuple[str, str]] = []
        self.trouble: Callable[[str, str], BaseException | None] = lambda _name, _path: None

    def _asked(self, name: str, path: str) -> None:
        self.calls.append((name, path))
        if (error := self.trouble(name, path)) is not None:
            raise error

    def put_file(self, path1: str, path2: str, callback: Any = None, **options: Any) -> None:
        self._asked("put", path2)
        super().put_file(path1, path2, callback, **options)

    def get_file(self, path1: str, path2: str, callback: Any = None, **options: Any) -> None:
        self._asked("get", path1)
        super().get_file(path1, path2, callback, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        self._asked("ls", path)
        return super().ls(path, detail, **options)

    def pipe_file(self, path: str, value: bytes, mode: Any = "overwrite", **options: Any) -> None:
        self._asked("pipe", path)
        super().pipe_file(path, value, mode, **options)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self._asked("mv", path2)
        super().mv(path1, path2, **options)

    def rm_file(self, path: str) -> None:
        self._asked("rm_file", path)
        super().rm_file(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._asked("rm", path)
        super().rm(path, recursive, maxdepth)


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)


@pytest.fixture
def doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubtful:
    made = Doubtful()
    monkeypatch.setattr(checkpoint_store, "open_filesystem", lambda _: (made, str(tmp_path / "store")))
    return made


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/store"
        return
    name = f"memory://{secrets.token_hex(8)}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def fill(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "model.safetensors").write_text(text * 3)
        (directory / "learner.safetensors").write_text(text)
        write_json(directory / "state.json", {"text": text})

    return write


def text_of(directory: Path) -> str:
    return (directory / "learner.safetensors").read_text()


def stored(tmp_path: Path) -> list[str]:
    folder = tmp_path / "store" / "/".join(JOB)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def whole(tmp_path: Path) -> list[str]:
    """Of the store's checkpoints, those that a reader would trust."""
    folder = tmp_path / "store" / "/".join(JOB)
    return [name for name in stored(tmp_path) if (folder / name / MANIFEST).exists() and verify(folder / name)]


def other_machine(store: CheckpointStore, root: Path, url: str) -> CheckpointStore:
    made = CheckpointStore(root, Remote(url, *JOB))
    made.registered = dict(store.registered)
    return made


# ------------------------------------------------------------------- write and read


def test_what_one_machine_writes_another_reads(tmp_path: Path, url: str) -> None:
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    path, manifest = store.write(step=10, fence=3, fill=fill("a"))
    assert not store.restore(10)  # it is here
    other = other_machine(store, tmp_path / "two", url)
    assert other.restore(10)
    found = tmp_path / "two" / directory_name(10)
    assert verify(found) == manifest == verify(path)
    assert text_of(found) == "a"
    assert [path.name for path in found.parent.iterdir()] == [directory_name(10)]
    assert not other.restore(10)
    shutil.rmtree(found)
    assert text_of(other.directory(10)) == "a"
    assert other.floor() == 3
    strange = CheckpointStore(tmp_path / "three", Remote(url, "other", JOB[1]))
    assert strange.floor() == 0


def test_the_manifest_comes_last_and_goes_first(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    store.write(step=10, fence=3, fill=fill("a"))
    names = [Path(path).name for call, path in doubtful.calls if call == "put"]
    assert names == ["learner.safetensors", "model.safetensors", "state.json", MANIFEST]
    doubtful.calls.clear()
    store.keep_only([], fence=3)
    assert [call for call, _ in doubtful.calls if call.startswith("rm")] == ["rm_file", "rm"]
    assert doubtful.calls[-2][1].endswith(MANIFEST)
    assert stored(tmp_path) == []


def test_killed_at_every_call_of_a_copy(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    store.write(step=5, fence=3, fill=fill("old"))
    for at in range(5):
        count = iter(range(100))
        doubtful.trouble = lambda name, _, at=at, count=count: (  # type: ignore[misc]
            Killed() if name != "ls" and next(count) == at else None
        )
        with pytest.raises(Killed):
            store.write(step=10, fence=3, fill=fill("new"))
        assert whole(tmp_path) == ["000005-3"], at
        doubtful.trouble = lambda *_: None
        other = CheckpointStore(tmp_path / f"machine {at}", Remote("x://", *JOB))
        other.registered = {10: "0" * 64, 5: store.registered[5]}
        with pytest.raises(CheckpointError, match="not in the checkpoint store as it was registered"):
            other.directory(10)
        assert text_of(other.directory(5)) == "old"
    store.write(step=10, fence=4, fill=fill("new"))
    store.keep_only([10], fence=4)
    assert whole(tmp_path) == stored(tmp_path) == ["000010-4"]  # what the kills left is gone too


def test_of_a_policy_alone_the_store_keeps_no_more(tmp_path: Path, url: str) -> None:
    """By its own manifest, whoever has the job; the digest that was registered finds it as before."""
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    digests = {step: store.write(step=step, fence=3, fill=fill(str(step)))[1].digest for step in (10, 20)}
    other = other_machine(store, tmp_path / "two", url)
    other.keep_policies([10], fence=4)
    found = Remote(url, *JOB).manifest(10, 3)
    assert found is not None
    assert found.digest == digests[10]
    assert sorted(found.files) == ["policy/model.safetensors"]
    with pytest.raises(PolicyAlone, match="of step 10 the policy alone is kept"):
        other.restore(10)
    with pytest.raises(CheckpointError, match=r"state\.json of step 10"):
        Remote(url, *JOB).read(10, digests[10], "state.json")
    path = other.directory(10)
    assert verify(path).digest == digests[10]
    assert sorted(file.name for file in path.rglob("*") if file.is_file()) == [MANIFEST, "model.safetensors"]
    assert other.restore(20)


def test_killed_at_every_call_while_the_store_drops_what_is_no_policy(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    digest = store.write(step=10, fence=3, fill=fill("a"))[1].digest
    for at in range(6):
        count = iter(range(100))
        doubtful.trouble = lambda name, _, at=at, count=count: (  # type: ignore[misc]
            Killed() if name != "ls" and next(count) == at else None
        )
        with contextlib.suppress(Killed):
            other_machine(store, tmp_path / "two", "x://").keep_policies([10], fence=3)
        doubtful.trouble = lambda *_: None
        found = other_machine(store, tmp_path / f"machine {at}", "x://").directory(10)
        assert verify(found).digest == digest
    doubtful.trouble = lambda name, _: PermissionError("denied") if name == "rm_file" else None
    store.keep_policies([10], fence=3)  # a store that does not answer is asked again
    doubtful.trouble = lambda *_: None
    store.keep_policies([10], fence=3)
    folder = tmp_path / "store" / "/".join(JOB) / "000010-3"
    assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [MANIFEST, "model.safetensors"]


@pytest.mark.usefixtures("doubtful")
def test_a_copy_that_is_cut_short_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    monkeypatch.setattr(LocalFileSystem, "put_file", lambda _self, _from, to, *_a: (
        Path(to).parent.mkdir(parents=True, exist_ok=True), Path(to).write_text("")))  # fmt: skip
    with pytest.raises(CheckpointError, match="0 bytes arrived of 1"):
        store.write(step=10, fence=3, fill=fill("a"))
    assert whole(tmp_path) == []


@pytest.mark.parametrize("name", ["learner.safetensors", "policy/model.safetensors", "state.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_copy_is_refused_and_leaves_nothing(tmp_path: Path, name: str, damage: str) -> None:
    url = f"file://{tmp_path}/store"
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    store.write(step=10, fence=3, fill=fill("abc"))
    file = tmp_path / "store" / "/".join(JOB) / "000010-3" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if damage == "remove":
        file.unlink()
    other = other_machine(store, tmp_path / "two", url)
    with pytest.raises(CheckpointError):
        other.restore(10)
    assert list((tmp_path / "two").iterdir()) == []


def test_a_step_that_two_holders_wrote_is_the_registered_one(tmp_path: Path, url: str) -> None:
    first = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    second = CheckpointStore(tmp_path / "two", Remote(url, *JOB))
    second.write(step=10, fence=4, fill=fill("second"))
    first.write(step=10, fence=3, fill=fill("first"))  # it does not know that its lease is lost
    assert text_of(other_machine(second, tmp_path / "a", url).directory(10)) == "second"
    assert text_of(other_machine(first, tmp_path / "b", url).directory(10)) == "first"
    first.keep_only([], fence=3)  # the older holder takes nothing of the newer's away
    assert text_of(other_machine(second, tmp_path / "c", url).directory(10)) == "second"
    first.write(step=10, fence=3, fill=fill("first"))
    second.keep_only([10], fence=4)  # and the newer drops what the older left
    assert Remote(url, *JOB).steps() == [(10, 4)]


def test_a_removal_that_fails_costs_only_space(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    for step in (1, 2):
        store.write(step=step, fence=1, fill=fill("a"))
    doubtful.trouble = lambda name, _: PermissionError("denied") if name.startswith("rm") else None
    store.keep_only([2], fence=1)
    assert whole(tmp_path) == ["000001-1", "000002-1"]
    doubtful.trouble = lambda *_: None
    store.keep_only([2], fence=1)
    assert whole(tmp_path) == ["000002-1"]


def test_half_a_copy_does_not_cost_the_whole_one(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    store.write(step=1, fence=1, fill=fill("a"))
    again = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    doubtful.trouble = lambda name, path: OSError("full") if name == "put" and MANIFEST in path else None
    with pytest.raises(CheckpointError):
        again.write(step=1, fence=2, fill=fill("b"))
    doubtful.trouble = lambda *_: None
    again.keep_only([1], fence=2)
    assert whole(tmp_path) == ["000001-1"]
    again.write(step=1, fence=2, fill=fill("b"))
    again.keep_only([1], fence=2)
    assert whole(tmp_path) == stored(tmp_path) == ["000001-2"]


@pytest.mark.parametrize("error", [FileNotFoundError("no such bucket"), PermissionError("denied")])
def test_a_bucket_that_can_not_be_written_is_a_checkpoint_that_failed(
    tmp_path: Path, doubtful: Doubtful, error: OSError
) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    doubtful.trouble = lambda name, _: error if name == "put" else None
    with pytest.raises(CheckpointError, match=str(error)):
        store.write(step=1, fence=1, fill=fill("a"))
    assert [call for call, _ in doubtful.calls].count("put") == 1  # trying again would not help


def test_a_hiccup_is_not_told(tmp_path: Path, doubtful: Doubtful) -> None:
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    failed: set[tuple[str, str]] = set()

    def once(*call: str) -> BaseException | None:
        if call in failed:
            return None
        failed.add(call)  # type: ignore[arg-type]
        return RuntimeError("connection reset")  # no OSError: what an SDK raises

    doubtful.trouble = once
    store.write(step=10, fence=3, fill=fill("a"))
    assert text_of(other_machine(store, tmp_path / "two", "x://").directory(10)) == "a"


# ------------------------------------------------------------------------- the loop


def go_on(run: Run, directory: Path, url: str) -> Run:
    """On a machine that has nothing: as the driver does it with the next lease."""
    journal = run.journal
    journal.die_at = ("", 0)
    store = CheckpointStore(directory, Remote(url, *JOB))
    store.registered = {step: entry["digest"] for step, entry in journal.registered.items()}
    again = start(directory, run.loop.spec, journal=journal, fence=run.loop.fence + 1, store=store)
    step = max(journal.registered)
    assert store.restore(step)
    again.loop.resume(step, sorted(journal.registered))
    return again


@pytest.mark.parametrize("step", [1, 4, 6])
def test_killed_and_moved_to_another_machine_the_figures_are_the_same(tmp_path: Path, url: str, step: int) -> None:
    spec = make_spec(weighting={"name": "gradient"})
    expected = start(tmp_path / "whole", spec)
    assert expected.loop.run() == "succeeded"
    run = start(tmp_path / "one", spec, store=CheckpointStore(tmp_path / "one", Remote(url, *JOB)))
    run.journal.die_at = ("before commit", step)
    with pytest.raises(Killed):
        run.loop.run()
    run = go_on(run, tmp_path / "two", url)
    assert run.loop.run() == "succeeded"
    assert run.figures() == expected.figures()
    assert run.journal.fronts[-1] == expected.journal.fronts[-1]  # with the test figures of fetched checkpoints
    assert sorted(Remote(url, *JOB).steps()) == [
        (kept, 1 if kept < step and kept in (0, 2, 3, 4) else 2) for kept in sorted(run.journal.registered)
    ]


def away(*_: str) -> BaseException:
    return OSError("the store is away")


def test_a_store_that_is_away_costs_checkpoints_then_the_job_waits_for_it(tmp_path: Path, doubtful: Doubtful) -> None:
    spec = make_spec(steps=8, checkpoints={"every": 1}, evaluation={"every": 100})
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    run = start(tmp_path / "one", spec, store=store)
    doubtful.trouble = lambda *_: away() if len(run.journal.records) in (2, 3) else None
    assert run.loop.run() == "succeeded"
    failed = run.journal.named("checkpoint.failed")
    assert [event["step"] for event in failed] == [2, 3]
    assert "the store is away" in failed[0]["message"]
    assert max(run.journal.registered) == 8
    assert whole(tmp_path) == [f"{step:06d}-1" for step in sorted(run.journal.registered)]
    run = start(tmp_path / "again", spec, store=CheckpointStore(tmp_path / "again", Remote("x://", *JOB)), fence=2)
    doubtful.trouble = lambda *_: away() if len(run.journal.records) > 2 else None
    with pytest.raises(StoreAway, match="the store is away"):  # which hands the job back: it waits for the store
        run.loop.run()
    assert list(run.journal.records) == [1, 2, 3, 4, 5]
    assert max(run.journal.registered) == 2
    assert "000002-2" in whole(tmp_path)


def test_a_front_checkpoint_that_is_lost_is_named_and_not_tested(tmp_path: Path) -> None:
    values = {0: (0.2, 0.5), 2: (0.5, 0.4), 4: (0.4, 0.6), 6: (0.6, 0.1)}
    store = CheckpointStore(tmp_path / "one", Remote(f"file://{tmp_path}/store", *JOB))
    run = start(tmp_path / "one", make_spec(), profile=lambda version: values.get(version, (0.0, 0.0)), store=store)
    commit = run.journal.commit

    def losing(record: Any) -> None:
        commit(record)
        if record["step"] == 6:
            shutil.rmtree(tmp_path / "one" / directory_name(4))
            shutil.rmtree(tmp_path / "store" / "/".join(JOB) / "000004-1")

    run.journal.commit = losing  # type: ignore[method-assign]
    assert run.loop.run() == "succeeded"
    assert [event["step"] for event in run.journal.named("checkpoint.damaged")] == [4]
    assert {p["step"] for p in run.journal.fronts[-1]["points"] if p["test"]} == {0, 2, 6}


@pytest.mark.parametrize("trouble", ["no route", "No space left"])
def test_a_checkpoint_that_can_not_be_fetched_while_the_front_is_tested_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The store is away, or this disk is full."""
    values = {0: (0.2, 0.5), 2: (0.5, 0.4), 4: (0.4, 0.6), 6: (0.6, 0.1)}
    made = Doubtful()
    monkeypatch.setattr(checkpoint_store, "open_filesystem", lambda _: (made, str(tmp_path / "store")))
    store = CheckpointStore(tmp_path / "one", Remote("x://", *JOB))
    run = start(tmp_path / "one", make_spec(), profile=lambda version: values.get(version, (0.0, 0.0)), store=store)
    commit, pauses, put_in_place = run.journal.commit, [], checkpoints.put_in_place

    def full(hidden: Path, final: Path) -> None:
        if final.name == directory_name(4):
            raise OSError(errno.ENOSPC, "No space left")
        put_in_place(hidden, final)

    def losing(record: Any) -> None:
        commit(record)
        if record["step"] == 6:
            shutil.rmtree(tmp_path / "one" / directory_name(4))
            if trouble == "no route":
                made.trouble = lambda name, _: OSError(trouble) if name in ("get", "ls") else None
            else:
                monkeypatch.setattr(checkpoints, "put_in_place", full)

    run.journal.commit = losing  # type: ignore[method-assign]
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    with pytest.raises(Unreadable, match=trouble):  # the driver hands the job back
        run.loop.run()
    assert run.journal.named("checkpoint.damaged") == []
    assert (sum(pauses) > 500) == (trouble == "no route")
    made.trouble = lambda _name, _path: None
    monkeypatch.setattr(checkpoints, "put_in_place", put_in_place)
    again = go_on(run, tmp_path / "two", "x://")
    assert again.loop.run() == "succeeded"
    assert {p["step"] for p in run.journal.fronts[-1]["points"] if p["test"]} == {0, 2, 4, 6}


# ----------------------------------------------------------------------- the driver


def raises(error: BaseException) -> Any:
    raise error


def registered(fake: FakeStore, store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        path, manifest = store.write(step=step, fence=1, fill=fill(str(step)))
        fake.registered.append(
            Checkpoint(step=step, path=str(path), digest=manifest.digest, metrics={}, on_front=False)
        )


def test_a_damaged_copy_is_named_and_passed_over(tmp_path: Path) -> None:
    url, fake = f"file://{tmp_path}/store", FakeStore()
    registered(fake, CheckpointStore(tmp_path / "one", Remote(url, *JOB)), 10, 20)
    (tmp_path / "store" / "/".join(JOB) / "000020-1" / "state.json").write_text("x")
    other = CheckpointStore(tmp_path / "two", Remote(url, *JOB))
    assert driver.usable_checkpoint(fake, journal_of(fake), other) == 10  # type: ignore[arg-type]
    assert fake.did == [("rewind", 10)]
    assert [(type, data["step"]) for type, _, data in fake.events_written] == [
        ("checkpoint.damaged", 20),
        ("checkpoint.fetched", 10),
    ]
    assert text_of(tmp_path / "two" / directory_name(10)) == "10"


def test_a_store_of_another_installation_hands_the_job_back(tmp_path: Path) -> None:
    fake = FakeStore()
    registered(fake, CheckpointStore(tmp_path / "one", Remote(f"file://{tmp_path}/store", *JOB)), 10)
    other = CheckpointStore(tmp_path / "two", Remote(f"file://{tmp_path}/wrong", *JOB))
    with pytest.raises(Unreadable, match="nor in EQUIPOISE_CHECKPOINT_STORE"):
        driver.usable_checkpoint(fake, journal_of(fake), other)  # type: ignore[arg-type]
    assert fake.events_written == fake.did == []


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_this_disk_does_not_do_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A directory that can't be read is fetched, a fetch that this disk does not take tells nothing of the copy."""
    url, fake = f"file://{tmp_path}/store", FakeStore()
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    registered(fake, store, 10, 20)
    if where == "here":
        verify_ = checkpoints.verify
        unreadable = Unreadable("can't read it")
        monkeypatch.setattr(checkpoints, "verify", lambda path, **options: (
            verify_(path, **options) if path.name.startswith(".") else raises(unreadable)))  # fmt: skip
        assert driver.usable_checkpoint(fake, journal_of(fake), store) == 20  # type: ignore[arg-type]
        shutil.rmtree(tmp_path / "store" / "/".join(JOB) / "000020-1")
    else:
        shutil.rmtree(tmp_path / "one" / directory_name(20))
        monkeypatch.setattr(checkpoints, "put_in_place", lambda *_: raises(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(Unreadable, match="can't read it" if where == "here" else "No space left; free space"):
        driver.usable_checkpoint(fake, journal_of(fake), store)  # type: ignore[arg-type]
    assert [type for type, _, _ in fake.events_written if type == "checkpoint.damaged"] == []


def test_a_damaged_directory_is_fetched_again(tmp_path: Path) -> None:
    url, fake = f"file://{tmp_path}/store", FakeStore()
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    registered(fake, store, 10, 20)
    (tmp_path / "one" / directory_name(20) / "state.json").write_text("x")
    assert driver.usable_checkpoint(fake, journal_of(fake), store) == 20  # type: ignore[arg-type]
    assert verify(tmp_path / "one" / directory_name(20)).digest == fake.registered[1].digest


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    made = FakeStore()
    monkeypatch.setattr(driver, "connect", lambda _: None)
    monkeypatch.setattr(driver, "JobStore", lambda *_, **__: made)
    monkeypatch.setenv(checkpoint_store.STORE_VARIABLE, "x://")
    monkeypatch.setattr(driver, "parts_of", lambda *_, **__: contextlib.nullcontext(NO_PARTS))
    monkeypatch.setattr("orchestrator.loop.Loop", lambda *_, **__: None)
    return made


def drive(tmp_path: Path) -> int:
    return driver.drive(JOB[1], "redis://", tmp_path / "state", owner=JOB[0], ray_address=None)


def test_a_store_that_is_away_at_the_claim_leaves_the_job_in_the_queue(
    tmp_path: Path, fake: FakeStore, doubtful: Doubtful
) -> None:
    doubtful.trouble = away
    assert drive(tmp_path) == 0
    assert fake.claimed == []


def test_a_store_that_is_away_at_the_start_hands_the_job_back(
    tmp_path: Path, fake: FakeStore, doubtful: Doubtful
) -> None:
    """Not an older checkpoint, which would lose steps, and not a failure: the newest one is whole."""
    registered(fake, CheckpointStore(tmp_path / "one", Remote("x://", *JOB)), 10, 20)
    doubtful.trouble = lambda name, _: away() if name == "get" else None
    assert drive(tmp_path) == NO_RESOURCES  # for the worker to try others first
    ((kind, reason),) = fake.ends()
    assert kind == "release"
    assert "the store is away" in reason
    assert fake.events_written == []


@pytest.mark.usefixtures("doubtful")
def test_the_fence_is_above_what_the_store_has_seen(tmp_path: Path, fake: FakeStore) -> None:
    CheckpointStore(tmp_path / "one", Remote("x://", *JOB)).write(step=3, fence=9, fill=fill("a"))
    drive(tmp_path)
    assert fake.claimed[0]["floor_fence"] == 9


@pytest.mark.parametrize("disk", ["behind", "damaged", "empty"])
def test_after_a_loss_of_redis_the_store_tells_where_the_job_was(tmp_path: Path, disk: str) -> None:
    """The disk of the machine that has it next is of an earlier holder. What was undone or is cut short is not used."""
    url, fake = f"file://{tmp_path}/store", FakeStore()
    here, there = (CheckpointStore(tmp_path / name, Remote(url, *JOB)) for name in ("one", "two"))
    here.write(step=10, fence=3, fill=fill("early"))
    here.write(step=25, fence=3, fill=fill("undone"))
    for step in (20, 30):
        there.write(step=step, fence=4, fill=fill(str(step)))
    there.write(step=40, fence=4, fill=fill("cut short"))
    (tmp_path / "store" / "/".join(JOB) / "000040-4" / MANIFEST).unlink()
    if disk == "empty":
        shutil.rmtree(tmp_path / "one")
    elif disk == "damaged":
        shutil.copytree(tmp_path / "two" / directory_name(30), tmp_path / "one" / directory_name(30))
        (tmp_path / "one" / directory_name(30) / "state.json").write_text("x")
    again = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    fake.step, fake.fence = 0, 0
    claim = driver.claim_job(fake, JOB[1], again)  # type: ignore[arg-type]
    assert (fake.claimed[0]["floor_fence"], fake.claimed[0]["floor_step"]) == (4, 30)
    claim = dataclasses.replace(claim, step=30)
    register_found(fake, journal_of(fake), claim, again)  # type: ignore[arg-type]
    put = [options for name, *options in fake.did if name == "register_checkpoint"]
    assert [step for step, _, _ in put] == [10, 20, 30]
    fake.registered = [Checkpoint(step=s, path=p, digest=d, metrics={}, on_front=False) for s, p, d in put]
    assert driver.usable_checkpoint(fake, journal_of(fake), again) == 30  # type: ignore[arg-type]
    assert text_of(tmp_path / "one" / directory_name(30)) == "30"


def test_what_a_claim_found_and_this_machine_lacks_is_waited_for(tmp_path: Path) -> None:
    fake = FakeStore()
    with pytest.raises(Unreadable, match="no checkpoint up to step 30 is in"):
        register_found(fake, journal_of(fake), dataclasses.replace(CLAIM, step=30), CheckpointStore(tmp_path))  # type: ignore[arg-type]


# --------------------------------------------------------------------------- readers


def test_a_directory_of_a_holder_that_lost_the_job_is_not_read(tmp_path: Path, url: str) -> None:
    """It has the step, and even a manifest, but of steps that were undone."""
    stale, good = (CheckpointStore(tmp_path / name, Remote(url, *JOB)) for name in ("stale", "good"))
    left, _ = stale.write(step=3, fence=1, fill=fill("stale"))
    _, manifest = good.write(step=3, fence=2, fill=fill("good"))
    found = Checkpoint(step=3, path=str(left), digest=manifest.digest, metrics={}, on_front=True)
    read = find_checkpoint(found, url, owner=JOB[0], job_id=JOB[1], state_dir=tmp_path / "api")
    assert (read / "policy" / "model.safetensors").read_text() == "good" * 3
    stale.registered = {3: manifest.digest}
    assert verify(stale.directory(3)).digest == manifest.digest


def test_a_policy_is_exported_from_the_store_alone(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_store, "_FETCHED", 2)
    store = CheckpointStore(tmp_path / "one", Remote(url, *JOB))
    found = {}
    for step in (1, 2, 3):
        path, manifest = store.write(step=step, fence=1, fill=fill(str(step)))
        found[step] = Checkpoint(step=step, path=str(path), digest=manifest.digest, metrics={}, on_front=True)

    def find(step: int) -> Path:
        return find_checkpoint(found[step], url, owner=JOB[0], job_id=JOB[1], state_dir=tmp_path / "api")

    assert find(1) == tmp_path / "one" / directory_name(1)  # it is here
    shutil.rmtree(tmp_path / "one")
    kept = tmp_path / "api" / "jobs" / JOB[1] / "fetched"
    for step in (1, 2, 1, 3):
        directory = find(step)
        assert (directory / "policy" / "model.safetensors").read_text() == str(step) * 3
        assert not (directory / "learner.safetensors").exists()  # several times the policy, for nothing
        os.utime(directory, (step + 10, step + 10)) if step < 3 else None
        export_policy(directory, tmp_path / f"export {secrets.token_hex(4)}")
    assert sorted(path.name[:6] for path in kept.iterdir()) == ["000002", "000003"]
    with pytest.raises(CheckpointError, match="not in the checkpoint store"):
        find_checkpoint(
            Checkpoint(step=1, path="/gone", digest="0" * 64, metrics={}, on_front=True),
            url, owner="other", job_id=JOB[1], state_dir=tmp_path / "api",
        )  # fmt: skip


# -------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nothing://x", "Protocol not known: nothing"),
        ("s3://bucket/x", "s3:// needs a package that is not installed: Install s3fs to access S3"),
        ("/a/path", "expected one plain URL"),
        ("simplecache::file:///x", "expected one plain URL"),
        ("s3://key:secret@bucket/x", "must not hold credentials"),
        ("file:///a/../b", "must not have empty parts"),
    ],
)
def test_a_store_that_can_not_be_is_told_at_the_start(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^EQUIPOISE_CHECKPOINT_STORE: ") as caught:
        from_environment({"EQUIPOISE_CHECKPOINT_STORE": url})
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_from_the_environment(tmp_path: Path) -> None:
    assert from_environment({}) is None
    assert from_environment({"EQUIPOISE_CHECKPOINT_STORE": f"file://{tmp_path}"}) == f"file://{tmp_path}"
    with pytest.raises(RemoteError):
        Remote("nothing://x", *JOB)


def test_without_a_store_fsspec_is_not_imported() -> None:
    code = "import sys, orchestrator.storage.checkpoint_store, services.settings; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
