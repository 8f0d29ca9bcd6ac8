"""Checkpoints on disk: whole or not there, proved by a manifest of sha256 sums.

    step-000010/
      policy/               what is exported and served: a plain Hugging Face directory, or where an adapter learns
                            (policy.lora) that alone, as PEFT loads it
      adapter/              the adapter, where policy/ has it merged
      learner.safetensors   float32 weights of what learns, optimiser, schedule, random states
      learner/              the same in parts, in its stead, where the learner has several ranks
      state.json            weighting, steering position, archive, prompt position, watch, policy version
      manifest.json         step, fence, and the sum of every other file; written last

A directory is written under another name, flushed, and renamed: a kill leaves a hidden directory that nobody loads.
One that is kept for its policy alone has policy/ and adapter/ left; its manifest names the others under `gone`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.failpoints import reach
from policies.disk import flush, sha256_of

MANIFEST = "manifest.json"
STATE = "state.json"
STATE_FORMAT = 1  # one higher whenever a version that reads this one could not go on from the next; 0: it has none
NEWEST = 2  # checkpoints of a job that are kept whole
_POLICY = ("policy/", "adapter/")
log = logging.getLogger(__name__)
Fill = Callable[[Path], Callable[[], None] | None]
"""Writes a checkpoint's files into a directory; returns what waits for those that are still being written, if any."""


class CheckpointError(RuntimeError):
    """A checkpoint that can't be trusted or written; the message says which file and what to do."""


class Unreadable(CheckpointError):
    """What holds a checkpoint does not give it now: it is neither lost nor damaged."""


class LaterFormat(Unreadable):
    """A later version wrote it in a way that this one does not know."""


class DiskFull(Unreadable):
    """The disk has no room for another checkpoint: those that it has are whole."""


class PolicyAlone(CheckpointError):
    """A whole checkpoint that no training can go on from: its learner's state was dropped."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    fence: int
    files: dict[str, str]  # relative path -> sha256, of those that are to be there
    digest: str  # of the manifest itself, as it was sealed
    gone: frozenset[str] = frozenset()  # files that were dropped since


def directory_name(step: int) -> str:
    return f"step-{step:06d}"


def write_checkpoint(root: Path, *, step: int, fence: int, fill: Fill) -> tuple[Path, Manifest]:
    """Make root/step-N whole: `fill_hidden`, then `make_whole`. Raises CheckpointError as they do."""
    return make_whole(root, step=step, fence=fence, written=fill_hidden(root, step=step, fence=fence, fill=fill))


def fill_hidden(root: Path, *, step: int, fence: int, fill: Fill) -> Callable[[], None]:
    """What must be done before the next step: `fill` writes the files into the directory that it is given.

    Returns what waits for those that are still being written. Raises CheckpointError where the disk does not take them
    (full, read-only): nothing half done is left.
    """
    hidden = _hidden(root, step, fence)
    with _disk(root, step, fence):
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        reach("checkpoint_begun")
        return fill(hidden) or (lambda: None)


def make_whole(root: Path, *, step: int, fence: int, written: Callable[[], None]) -> tuple[Path, Manifest]:
    """Sums, flushes and renames what `fill_hidden` wrote, beside other steps if need be.

    Raises CheckpointError as that does; an older checkpoint stays as it was.
    """
    final, hidden = root / directory_name(step), _hidden(root, step, fence)
    with _disk(root, step, fence):
        written()
        reach("checkpoint_filled")
        manifest = _seal(hidden, step=step, fence=fence)
        reach("checkpoint_sealed")
        put_in_place(hidden, final)
    reach("checkpoint_placed")
    return final, manifest


def _hidden(root: Path, step: int, fence: int) -> Path:
    return root / f".{directory_name(step)}-{fence}"


@contextlib.contextmanager
def _disk(root: Path, step: int, fence: int) -> Iterator[None]:
    """An OSError as CheckpointError, with nothing half done left."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(_hidden(root, step, fence), ignore_errors=True)
        where, reason = root / directory_name(step), error.strerror or str(error)
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else CheckpointError
        raise kind(f"can't write checkpoint {where}: {reason}; free space or fix the directory") from error


def verify(directory: Path, *, under: str = "") -> Manifest:
    """The manifest, once the sum of every file whose name begins with `under` has been compared.

    CheckpointError where one is missing or has another sum, Unreadable where the disk does not give it.
    """
    try:
        manifest = parse_manifest(read_file(directory / MANIFEST))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise CheckpointError(f"{directory} is no whole checkpoint: {MANIFEST} is missing or damaged") from None
    for name, expected in manifest.files.items():
        if not name.startswith(under):
            continue
        try:
            found = sha256_of(directory / name)
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{directory / name} is missing; take another checkpoint") from None
        except OSError as error:
            raise _unreadable(directory / name, error) from error
        if found != expected:
            raise CheckpointError(f"{directory / name} does not match its sha256; take another checkpoint")
    return manifest


def parse_manifest(text: bytes) -> Manifest:
    """Raises ValueError for what is none."""
    try:
        document = json.loads(text)
        step, fence, files = int(document["step"]), int(document["fence"]), dict(document["files"].items())
        gone = frozenset(document.get("gone", ()))
        if not gone <= files.keys():
            raise ValueError("not a manifest: it never had what is gone")
        return Manifest(
            step=step,
            fence=fence,
            files={name: found for name, found in files.items() if name not in gone},
            digest=hashlib.sha256(_sealed_text(step, fence, files) if gone else text).hexdigest(),
            gone=gone,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error}") from error


def _sealed_text(step: int, fence: int, files: Mapping[str, str]) -> bytes:
    return json.dumps({"step": step, "fence": fence, "files": files}, indent=1).encode()


def policy_alone(text: bytes) -> tuple[bytes, list[str]]:
    """A manifest of the policy alone, and the files that it does without. ValueError as `parse_manifest`.

    It keeps their sums, from which anybody gets the digest that was registered.
    """
    parse_manifest(text)
    document = json.loads(text)
    gone = [name for name in document["files"] if not name.startswith(_POLICY)]
    return json.dumps({**document, "gone": gone}, indent=1).encode(), gone


def read_file(path: Path) -> bytes:
    """Raises FileNotFoundError or NotADirectoryError where it is not there, and Unreadable."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def newest_manifest(root: Path) -> tuple[int, int]:
    """(fence, step) of the newest manifest on disk, 0 and 0 without one: the floor for a fence after a Redis loss."""
    return max(manifests(root), default=(0, 0))


def manifests(root: Path) -> Iterator[tuple[int, int]]:
    """(fence, step) of all that are on disk, whole or not. Raises Unreadable."""
    for file in root.glob(f"step-*/{MANIFEST}"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            document = json.loads(read_file(file))
            yield int(document["fence"]), int(document["step"])


def check_room(root: Path) -> None:
    """Raises DiskFull where another checkpoint as large as the largest here has no room: steps would be for nothing."""
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in root.glob("step-*")]
    needed, free = max(sizes, default=0), shutil.disk_usage(root).free
    if free < needed:
        needed_gib, free_gib = needed / 2**30, free / 2**30
        raise DiskFull(f"a checkpoint takes {needed_gib:.1f} GiB, and {root} has room for {free_gib:.1f}; free space")


def keep_only(root: Path, steps: Collection[int]) -> None:
    """Remove every other checkpoint, also one that a kill kept from being registered."""
    names = {directory_name(step) for step in steps}
    for directory in root.glob("step-*"):
        if re.fullmatch(r"step-\d+", directory.name) and directory.name not in names:
            remove(directory)


def remove(directory: Path) -> None:
    """Forget a checkpoint that nobody needs; hidden first, so that a kill leaves no half of it in sight.

    One that the disk does not let go of costs space, not the run.
    """
    hidden = directory.with_name(f".{directory.name}-removed")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(OSError):
        directory.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def keep_policy(directory: Path) -> None:
    """Drop all of a checkpoint but its policy; it is the one that was registered still.

    The manifest says so first, in one rename: after a kill the files are there and nobody reads them, until the next
    call. What the disk refuses costs space, not the run.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):  # elsewhere, or damaged
        try:
            text = read_file(directory / MANIFEST)
            changed, gone = policy_alone(text)
            if changed != text:
                hidden = directory / f".{MANIFEST}"
                hidden.write_bytes(changed)
                flush(hidden)
                hidden.rename(directory / MANIFEST)
                flush(directory)
            for name in gone:
                (directory / name).unlink(missing_ok=True)
            for folder in {(directory / name).parent for name in gone} - {directory}:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except (OSError, Unreadable) as error:
            log.warning("%s keeps more than its policy: %s", directory, error)


def collect(root: Path) -> None:
    """Put back what a kill left half replaced, drop what it left half written. Only the lease's holder may call it."""
    for replaced in root.glob(".step-*-replaced"):
        final = root / replaced.name.removeprefix(".").removesuffix("-replaced")
        if not final.exists():
            replaced.rename(final)
    for hidden in root.glob(".step-*"):
        shutil.rmtree(hidden, ignore_errors=True)


def export_policy(directory: Path, target: Path, *, beside: Mapping[str, bytes] | None = None) -> Path:
    """Copy a checkpoint's policy, verified, to a directory that plain transformers and vLLM (or PEFT) load.

    `beside`: files that come to it. Raises CheckpointError where the checkpoint is damaged or the target exists.
    """
    verify(directory, under="policy/")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; name a new directory")
    hidden = target.with_name(f".{target.name}-exporting")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.copytree(directory / "policy", hidden)
        for name, content in (beside or {}).items():
            (hidden / name).write_bytes(content)
        if target.exists():
            target.rmdir()
        hidden.rename(target)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise CheckpointError(f"can't export to {target}: {error.strerror or error}") from error
    return target


def parse_state(text: str | bytes) -> dict[str, Any]:
    """What STATE holds. Raises LaterFormat."""
    state: dict[str, Any] = json.loads(text)
    if (found := state.get("format", 0)) > STATE_FORMAT:
        raise LaterFormat(
            f"its newest checkpoint is of format {found}, and this version reads up to {STATE_FORMAT}: it waits for "
            "the version that wrote it, or a later one"
        )
    return state


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")  # with an indent it takes 4 times as long


def put_in_place(hidden: Path, final: Path) -> None:
    """Rename a sealed directory into sight. An OSError leaves the place as it was; a kill, `collect` puts right."""
    replaced = final.with_name(f".{final.name}-replaced")
    if final.exists():  # a step that was run again after a crash
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        hidden.rename(final)
        flush(final.parent)
    except OSError:
        if final.exists():
            final.rename(hidden)
        if replaced.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _seal(directory: Path, *, step: int, fence: int) -> Manifest:
    files = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        files[file.relative_to(directory).as_posix()] = sha256_of(file)
        flush(file)
    text = _sealed_text(step, fence, files)
    path = directory / MANIFEST
    path.write_bytes(text)
    flush(path)
    for folder in {directory, *(path for path in directory.rglob("*") if path.is_dir())}:
        flush(folder)
    return Manifest(step=step, fence=fence, files=files, digest=hashlib.sha256(text).hexdigest())


def _unreadable(path: Path, error: OSError) -> Unreadable:
    reason = error.strerror or str(error)
    return Unreadable(f"can't read {path}: {reason}; mend its disk, or remove its directory to do without it")
