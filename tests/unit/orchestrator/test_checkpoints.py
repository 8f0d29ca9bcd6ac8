"""A checkpoint is whole or not there: killed at every call, on a full disk, with every byte flipped."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage import checkpoints
from orchestrator.storage.checkpoints import (
    MANIFEST,
    CheckpointError,
    DiskFull,
    collect,
    export_policy,
    keep_only,
    keep_policy,
    newest_manifest,
    remove,
    verify,
    write_checkpoint,
    write_json,
)
from tests.fault_figures import tell


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can't tell whether fsync did anything; that it is called, and when, the tests can."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Killed(BaseException):
    """A kill: nothing after it runs that a dying process would not run."""


def fill(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "model.safetensors").write_text(text * 3)
        (directory / "learner.safetensors").write_text(text)
        write_json(directory / "state.json", {"text": text})

    return write


def write(root: Path, step: int, text: str, *, fence: int = 1) -> tuple[Path, checkpoints.Manifest]:
    return write_checkpoint(root, step=step, fence=fence, fill=fill(text))


def text_of(root: Path, step: int) -> str:
    directory = root / f"step-{step:06d}"
    assert verify(directory).step == step
    return (directory / "learner.safetensors").read_text()


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, after: bool) -> Iterator[None]:
    """Everything that touches the disk counts; the call number `at` raises, before or after its effect.

    From a kill on nothing has any effect; after an error the disk works again.
    """
    count, dead = itertools.count(), False

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal dead
            if dead:
                raise Killed
            if next(count) != at:
                return real(*args, **options)
            if after:
                real(*args, **options)
            dead = isinstance(error, Killed)
            raise error

        return call

    for owner, name in (
        (os, "fsync"),
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (Path, "write_bytes"),
        *([(shutil, "rmtree")] if isinstance(error, Killed) else []),  # which swallows the disk's errors by itself
    ):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    yield


BOUNDARIES = 40  # more than a write has; the tests see to it


def every_boundary(
    root: Path, attempt: Callable[[], Any], error: Callable[[], BaseException], *, after: bool
) -> Iterator[bool]:
    """Runs `attempt` once for each call that it makes to the disk, failing there; True where it failed."""
    clean = root.with_name("clean")
    shutil.copytree(root, clean)
    for at in range(BOUNDARIES):
        shutil.rmtree(root)
        shutil.copytree(clean, root)
        failed = False
        with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.contextmanager(failing)(monkeypatch, at, error(), after=after))
            try:
                attempt()
            except (Killed, CheckpointError):
                failed = True
        yield failed
        if not failed:
            return
    pytest.fail("more boundaries than the test tries")


# ---------------------------------------------------------------------- simple


def test_write_and_verify(tmp_path: Path) -> None:
    directory, manifest = write(tmp_path / "new" / "root", 3, "a", fence=7)
    assert directory == tmp_path / "new" / "root" / "step-000003"
    assert verify(directory) == manifest
    assert (manifest.step, manifest.fence) == (3, 7)
    assert sorted(manifest.files) == ["learner.safetensors", "policy/model.safetensors", "state.json"]
    assert hidden(directory.parent) == []


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    digests = {write(tmp_path / str(i), 3, "a")[1].digest for i in range(2)}
    assert len(digests) == 1
    assert write(tmp_path / "other", 3, "b")[1].digest not in digests


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 3, "old", fence=1)
    write(tmp_path, 3, "new", fence=2)
    assert text_of(tmp_path, 3) == "new"
    assert visible(tmp_path) == ["step-000003"]
    assert hidden(tmp_path) == []


def test_everything_is_flushed_before_it_is_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    rename, flush = Path.rename, checkpoints.flush

    def renamed(path: Path, target: Path) -> Path:
        flushed.append("RENAME")
        return rename(path, target)

    monkeypatch.setattr(checkpoints, "flush", lambda path: (flushed.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path, 3, "a")
    before, after = flushed[: flushed.index("RENAME")], flushed[flushed.index("RENAME") + 1 :]
    assert set(before) == {
        "learner.safetensors",
        "model.safetensors",
        "state.json",
        MANIFEST,
        "policy",
        ".step-000003-1",
    }
    assert before.index("model.safetensors") < before.index(MANIFEST) < before.index("policy")
    assert after == [tmp_path.name]


# ------------------------------------------------------------------------ kills


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [10, 20], ids=["next", "same"])
def test_killed_at_every_boundary(tmp_path: Path, step: int, after: bool) -> None:
    root = tmp_path / "checkpoints"
    write(root, 10, "old", fence=1)
    if step == 20:
        write(root, 20, "older", fence=1)
    kills = 0
    for killed in every_boundary(root, lambda: write(root, step, "new", fence=2), Killed, after=after):
        kills += killed
        for name in visible(root):  # whatever is in sight is whole
            verify(root / name)
        collect(root)
        assert hidden(root) == []
        assert "step-000010" in visible(root)
        assert text_of(root, 10) in ("old", "new") if step == 10 else text_of(root, 10) == "old"
        if step == 20:
            assert text_of(root, 20) in ("older", "new")
        if not killed:
            assert text_of(root, step) == "new"
        write(root, step, "again", fence=3)  # and the next write works
        assert text_of(root, step) == "again"
    assert kills > 10


def test_killed_while_removing(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    write(root, 10, "old")
    write(root, 20, "new")
    for after in (False, True):
        for _ in every_boundary(root, lambda: remove(root / "step-000010"), Killed, after=after):
            for name in visible(root):
                verify(root / name)
            collect(root)
            assert hidden(root) == []
            assert text_of(root, 20) == "new"
        shutil.rmtree(root.with_name("clean"))
        write(root, 10, "old")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Killed, partial(OSError, errno.ENOSPC, "full")], ids=["killed", "full"])
def test_a_policy_alone_is_the_checkpoint_that_was_registered(tmp_path: Path, error: Any, after: bool) -> None:
    """Cut short at each of its calls to the disk, the checkpoint is whole, and the next call ends the work."""
    root = tmp_path / "checkpoints"
    directory, manifest = write(root, 10, "a", fence=7)
    for at in range(6):  # a file, its flush, the rename, the directory's flush, and one more than these
        shutil.rmtree(root)
        write(root, 10, "a", fence=7)
        with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.contextmanager(failing)(monkeypatch, at, error(), after=after))
            with contextlib.suppress(Killed):
                keep_policy(directory)
        assert verify(directory).digest == manifest.digest
        keep_policy(directory)
        found = verify(directory)
        assert (found.digest, found.step, found.fence) == (manifest.digest, 10, 7)
        assert sorted(found.files) == ["policy/model.safetensors"]
        assert sorted(found.gone) == ["learner.safetensors", "state.json"]
        assert visible(directory) == [MANIFEST, "policy"]


def test_of_several_ranks_the_parts_go_too(tmp_path: Path) -> None:
    def parts(directory: Path) -> None:
        for name in ("policy", "adapter", "learner"):
            (directory / name).mkdir()
            (directory / name / "file").write_text(name)

    directory, manifest = write_checkpoint(tmp_path, step=3, fence=1, fill=parts)
    keep_policy(directory)
    assert visible(directory) == ["adapter", MANIFEST, "policy"]
    assert verify(directory).digest == manifest.digest
    assert export_policy(directory, tmp_path / "exported").is_dir()
    keep_policy(tmp_path / "absent")


def test_a_manifest_whose_dropped_files_are_changed_has_another_digest(tmp_path: Path) -> None:
    directory, manifest = write(tmp_path, 3, "a")
    keep_policy(directory)
    document = json.loads((directory / MANIFEST).read_text())
    document["files"]["learner.safetensors"] = "0" * 64
    (directory / MANIFEST).write_text(json.dumps(document))
    assert verify(directory).digest != manifest.digest
    document["gone"] = ["what never was"]
    (directory / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        verify(directory)


def test_keep_only_takes_nothing_that_is_no_checkpoint(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, "a")
    (tmp_path / "step-000010-my-copy").mkdir()
    keep_only(tmp_path, {20, 40})
    assert visible(tmp_path) == ["step-000010-my-copy", "step-000020"]
    assert hidden(tmp_path) == []
    keep_only(tmp_path / "absent", {20})


def test_collect_leaves_what_is_whole(tmp_path: Path) -> None:
    write(tmp_path, 10, "a")
    (tmp_path / ".step-000020-1" / "policy").mkdir(parents=True)
    (tmp_path / ".step-000005-removed").mkdir()
    collect(tmp_path)
    assert visible(tmp_path) == ["step-000010"]
    assert hidden(tmp_path) == []
    collect(tmp_path / "absent")


# ------------------------------------------------------------------------- disk


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=["full", "broken", "read-only"])
@pytest.mark.parametrize("step", [10, 20], ids=["same", "next"])
def test_a_disk_that_fails_at_every_boundary(tmp_path: Path, step: int, code: int) -> None:
    """T18: the last good one is never touched before the next is whole."""
    root = tmp_path / "checkpoints"
    write(root, 10, "old", fence=1)
    errors = 0
    error = partial(OSError, code, os.strerror(code))
    for failed in every_boundary(root, lambda: write(root, step, "new", fence=2), error, after=False):
        errors += failed
        assert hidden(root) == []
        if failed:  # as if nothing had been tried
            assert visible(root) == ["step-000010"]
            assert text_of(root, 10) == "old"
    assert errors > 10
    tell("T18", errors_at_each_disk_fault=errors, fewest_valid_checkpoints=1)


@pytest.mark.parametrize("where", ["fill", "fsync"])
def test_the_error_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def broken(*_: Any) -> None:
        raise full()

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DiskFull) as caught:
        write_checkpoint(tmp_path, step=3, fence=1, fill=broken if where == "fill" else fill("a"))
    assert str(caught.value) == (
        f"can't write checkpoint {tmp_path}/step-000003: No space left on device; free space or fix the directory"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't write checkpoint"):
        write(tmp_path / "file" / "root", 1, "a")


def test_a_removal_that_fails_costs_only_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, "a")
    (tmp_path / ".step-000010-removed" / "left").mkdir(parents=True)  # of a removal that was killed
    remove(tmp_path / "step-000010")
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path / "step-000010")  # gone already
    write(tmp_path, 10, "a")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(full()))
    remove(tmp_path / "step-000010")
    assert text_of(tmp_path, 10) == "a"


# ----------------------------------------------------------------------- damage


def test_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    directory, manifest = write(tmp_path, 3, "abc")
    for name in manifest.files:
        file = directory / name
        content = file.read_bytes()
        for place in range(len(content)):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CheckpointError) as caught:
                verify(directory)
            assert str(caught.value) == f"{file} does not match its sha256; take another checkpoint"
        file.write_bytes(content)
    assert verify(directory) == manifest
    tell("T19", flipped=sum((directory / name).stat().st_size for name in manifest.files), wrong_loads=0)


@pytest.mark.parametrize("bit", [1, 32, 128])
def test_a_flipped_byte_of_the_manifest_is_refused_or_gives_another_digest(tmp_path: Path, bit: int) -> None:
    directory, manifest = write(tmp_path, 3, "a")
    file = directory / MANIFEST
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with contextlib.suppress(CheckpointError):
            assert verify(directory).digest != manifest.digest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"step": 1, "fence": 1}', '{"step": 1, "fence": 1, "files": []}', "\udcff"]
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    directory, _ = write(tmp_path, 3, "a")
    (directory / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing or damaged"):
        verify(directory)


def test_a_large_state_is_written_soon(tmp_path: Path) -> None:
    """An indent makes CPython take its slow encoder: 7 s for this one."""
    before = time.process_time()
    write_json(tmp_path / "state.json", {str(i): [i / 7, i] for i in range(300_000)})
    assert time.process_time() - before < 3


def test_missing_files(tmp_path: Path) -> None:
    directory, _ = write(tmp_path, 3, "a")
    (directory / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        verify(directory)
    (directory / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        verify(directory)
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        verify(tmp_path / "absent")


# ------------------------------------------------------------------------ floor


def test_the_newest_manifest_is_the_floor(tmp_path: Path) -> None:
    assert newest_manifest(tmp_path / "absent") == (0, 0)
    write(tmp_path, 30, "a", fence=2)
    write(tmp_path, 10, "a", fence=3)
    write(tmp_path, 20, "a", fence=3)
    assert newest_manifest(tmp_path) == (3, 20)
    for i, text in enumerate(["{", "[]", "{}", '{"fence": null, "step": 1}', '{"fence": "x", "step": 1}']):
        (tmp_path / f"step-00009{i}").mkdir()
        (tmp_path / f"step-00009{i}" / MANIFEST).write_text(text)
    assert newest_manifest(tmp_path) == (3, 20)


# ----------------------------------------------------------------------- export


def test_an_export_is_an_equal_copy(tmp_path: Path) -> None:
    directory, _ = write(tmp_path / "checkpoints", 3, "a")
    target = export_policy(directory, tmp_path / "new" / "policy")
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    assert (target / "model.safetensors").read_bytes() == (directory / "policy" / "model.safetensors").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["policy"]


def test_an_empty_directory_may_be_the_target(tmp_path: Path) -> None:
    directory, _ = write(tmp_path / "checkpoints", 3, "a")
    (tmp_path / "target").mkdir()
    assert (export_policy(directory, tmp_path / "target") / "model.safetensors").is_file()


def test_an_existing_target_is_refused_and_kept(tmp_path: Path) -> None:
    directory, _ = write(tmp_path / "checkpoints", 3, "a")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="exists already; name a new directory"):
            export_policy(directory, target)
    assert (tmp_path / "folder" / "file").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    directory, _ = write(tmp_path / "checkpoints", 3, "a")
    (directory / "policy" / "model.safetensors").write_text("damaged")
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        export_policy(directory, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_export_to_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = write(tmp_path / "checkpoints", 3, "a")

    def broken(_: Path, target: Path) -> None:
        target.mkdir()
        raise full()

    monkeypatch.setattr(shutil, "copytree", broken)
    with pytest.raises(CheckpointError, match=r"can't export to .*: No space left on device"):
        export_policy(directory, tmp_path / "out" / "target")
    assert list((tmp_path / "out").iterdir()) == []


def test_json_of_a_checkpoint_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 0.1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
