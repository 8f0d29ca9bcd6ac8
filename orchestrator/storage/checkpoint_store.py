"""A job's checkpoints: on this machine's disk, and behind it, where the operator names a store, as copies there.

    STORE/OWNER/JOB/000010-3/       step and fence: two holders of a job never write to the same place
        policy/...  learner.safetensors  state.json
        manifest.json               last: an object store renames nothing, so the manifest is the commit
    STORE/OWNER/JOB/references-DIGEST.jsonl      what checkpoints rely on: by its content, so that nobody replaces it

A checkpoint is registered once the store has it. A machine that lacks one fetches it, checked against the digest that
was registered. The store is EQUIPOISE_CHECKPOINT_STORE, any URL that fsspec opens; a spec can't name one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.state.records import Checkpoint
from orchestrator.storage import checkpoints
from orchestrator.storage.checkpoints import (
    MANIFEST,
    CheckpointError,
    Fill,
    Manifest,
    PolicyAlone,
    Unreadable,
    directory_name,
    parse_manifest,
    read_file,
)
from orchestrator.storage.remote import LONG_PAUSES_S, PAUSES_S, RemoteAway, open_filesystem, patiently

STORE_VARIABLE = "EQUIPOISE_CHECKPOINT_STORE"
_NAME = re.compile(r"(\d{6,})-(\d+)")
_POLICY = "policy/"
_FETCHED = 8  # more than may be copied from at once
log = logging.getLogger(__name__)


class StoreAway(Unreadable):
    """The checkpoint store does not answer."""


class Remote:
    """One job's copies in the store. A call is tried again after each of its pauses, and then raises StoreAway."""

    def __init__(self, url: str, owner: str, job_id: str) -> None:
        self._fs, base = open_filesystem(url)
        self._base = f"{base}/{owner}/{job_id}"
        self._pauses_s: Sequence[float] = PAUSES_S

    def within(self, pauses_s: Sequence[float]) -> Remote:
        """The same with another patience."""
        other = copy.copy(self)
        other._pauses_s = pauses_s
        return other

    def put(self, directory: Path, manifest: Manifest) -> None:
        """Copy a sealed directory. A kill or an error leaves one without a manifest, which nobody reads."""
        place = self._place(manifest.step, manifest.fence)
        self._drop_manifest(place)  # of an earlier try whose answer was lost
        for name in manifest.files:
            self._put_file(directory / name, f"{place}/{name}")
        self._put_file(directory / MANIFEST, f"{place}/{MANIFEST}")

    def get(self, step: int, digest: str, target: Path, *, under: str = "") -> None:
        """Fill `target` with the files below `under` of the checkpoint that was registered.

        CheckpointError where the store has no whole one: what is in `target` is then not to be used.
        """
        manifest = self._find(step, digest)
        for name in (*(name for name in manifest.files if name.startswith(under)), MANIFEST):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._get_file(f"{self._place(step, manifest.fence)}/{name}", target / name)
            except FileNotFoundError:
                raise CheckpointError(f"{name} of step {step} is missing in the checkpoint store") from None
        checkpoints.verify(target, under=under)

    def read(self, step: int, digest: str, name: str) -> bytes:
        """One file of the checkpoint with that digest, as its manifest has it. CheckpointError as `get`."""
        manifest = self._find(step, digest)
        file = f"{self._place(step, manifest.fence)}/{name}"
        try:
            return _checked(self._cat(f"read {name} of step {step}", file), name, manifest)
        except FileNotFoundError:
            raise CheckpointError(f"{name} of step {step} is missing in the checkpoint store") from None

    def manifest(self, step: int, fence: int) -> Manifest | None:
        """Of a copy that is whole."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            file = f"{self._place(step, fence)}/{MANIFEST}"
            return parse_manifest(self._cat(f"read the manifest of step {step}", file))
        return None

    def steps(self) -> list[tuple[int, int]]:
        """(step, fence) of every directory, sorted; also of those that are not whole."""

        def ask() -> list[Any]:
            self._fs.invalidate_cache()  # others write there too
            try:
                return list(self._fs.ls(self._base, detail=False))
            except FileNotFoundError:
                return []

        names = [Path(str(path)).name for path in self._try("list the checkpoints", ask)]
        return sorted((int(match[1]), int(match[2])) for name in names if (match := _NAME.fullmatch(name)))

    def keep_only(self, steps: Collection[int], fence: int, *, written: Collection[int]) -> None:
        """Drop what a holder up to `fence` wrote and nobody needs: other steps, and earlier copies of those `written`.

        What can't be dropped costs space until the next checkpoint, where it is tried again.
        """
        try:
            for step, its in self.steps():
                if its <= fence and (step not in steps or (step in written and its < fence)):
                    place = self._place(step, its)
                    self._drop_manifest(place)  # first: half a checkpoint must not look whole
                    with contextlib.suppress(FileNotFoundError):
                        self._try("remove a checkpoint", functools.partial(self._fs.rm, place, recursive=True))
        except StoreAway as error:
            log.warning("%s", error)

    def keep_policies(self, steps: Collection[int], fence: int) -> bool:
        """Of these steps, as holders up to `fence` wrote them, keep the policy alone. False if the store is away."""
        try:
            for step, its in self.steps():
                if step in steps and its <= fence:
                    self._keep_policy(self._place(step, its))
        except StoreAway as error:
            log.warning("%s", error)
            return False
        return True

    def _keep_policy(self, place: str) -> None:
        """The manifest comes in one move: what a kill leaves is whole."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # of one that is not whole
            text = self._cat("read a manifest", f"{place}/{MANIFEST}")
            changed, gone = checkpoints.policy_alone(text)
            if changed != text:
                hidden = f"{place}/.{MANIFEST}"
                self._try("write a manifest", functools.partial(self._fs.pipe_file, hidden, changed))
                self._try("replace a manifest", functools.partial(self._fs.mv, hidden, f"{place}/{MANIFEST}"))
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    self._try("remove a learner's state", functools.partial(self._fs.rm_file, f"{place}/{name}"))

    def put_beside(self, path: Path, name: str) -> None:
        """Copy a file that checkpoints rely on."""
        self._put_file(path, f"{self._base}/{name}")

    def get_beside(self, path: Path, name: str) -> None:
        """Fetch such a file; whether it is the right one is for its reader to tell."""
        hidden = path.with_name(f".{path.name}-fetching")
        for stored in (name, path.name):  # the latter of a version that called it so
            with contextlib.suppress(FileNotFoundError):
                self._get_file(f"{self._base}/{stored}", hidden)
                hidden.rename(path)
                return

    def _place(self, step: int, fence: int) -> str:
        return f"{self._base}/{step:06d}-{fence}"

    def _find(self, step: int, digest: str) -> Manifest:
        for fence in [its for found, its in self.steps() if found == step]:
            if (manifest := self.manifest(step, fence)) is not None and manifest.digest == digest:
                return manifest
        raise CheckpointError(f"step {step} is not in the checkpoint store as it was registered")

    def _put_file(self, source: Path, target: str) -> None:
        def put() -> None:
            self._fs.put_file(str(source), target)
            self._fs.invalidate_cache()
            if (size := self._fs.info(target)["size"]) != source.stat().st_size:
                raise OSError(f"{size} bytes arrived of {source.stat().st_size}")

        what = f"copy {source.name} to the checkpoint store"
        try:
            self._try(what, put)
        except FileNotFoundError as error:  # not the file, but a bucket
            raise StoreAway(f"can't {what}: {error}") from error

    def _get_file(self, source: str, target: Path) -> None:
        self._try(f"fetch {target.name} from the checkpoint store", lambda: self._fs.get_file(source, str(target)))

    def _cat(self, what: str, file: str) -> bytes:
        content: bytes = self._try(what, functools.partial(self._fs.cat_file, file))
        return content

    def _drop_manifest(self, place: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._try("remove a manifest", lambda: self._fs.rm_file(f"{place}/{MANIFEST}"))

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return patiently(call, what, self._pauses_s)
        except (RemoteAway, PermissionError) as error:
            raise StoreAway(str(error) if isinstance(error, RemoteAway) else f"can't {what}: {error}") from error


class CheckpointStore:
    """What the driver and the loop know of a job's checkpoints. Without a `remote`, the directory `root` is all."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root = root
        self.registered: dict[int, str] = {}  # step -> digest
        self._remote = remote
        self._beside: set[str] = set()  # files that the store has
        self._written: set[int] = set()  # steps that are in the store as this process wrote them
        self._policies: set[int] = set()  # of which the store has the policy alone

    def floor(self) -> int:
        """The highest fence that wrote: the next one is above it, whatever became of Redis. May raise StoreAway."""
        fence, _ = checkpoints.newest_manifest(self.root)
        return max([fence] + [its for _, its in (self._remote.steps() if self._remote else [])])

    def newest(self, after: tuple[int, int] = (0, 0)) -> Manifest | None:
        """The newest whole checkpoint, here or in the store, that was written after this (fence, step); if any.

        Raises Unreadable.
        """
        here, there = self._written_by()
        for fence, step in sorted(here | there, reverse=True):
            if (fence, step) <= after:
                break
            if (found := self._whole(fence, step, here=(fence, step) in here)) is not None:
                return found
        return None

    def found(self, *, above: int, upto: int) -> list[Manifest]:
        """The whole checkpoints of these steps, here or in the store, by step. Raises Unreadable.

        None that a newer holder undid: it wrote that step again, or one before it.
        """
        here, there = self._written_by()
        of_step: dict[int, Manifest] = {}
        for fence, step in sorted(here | there):
            if above < step <= upto and (found := self._whole(fence, step, here=(fence, step) in here)) is not None:
                of_step[step] = found
        kept: list[Manifest] = []
        for _, manifest in sorted(of_step.items()):
            if not kept or manifest.fence >= kept[-1].fence:
                kept.append(manifest)
        return kept

    def read(self, step: int, digest: str, name: str) -> bytes:
        """One file of the checkpoint with that digest, without fetching the others. CheckpointError as `restore`."""
        here = self.root / directory_name(step)
        if self._remote is not None and not _is_registered(here, digest):
            return self._remote.read(step, digest, name)
        try:
            manifest = parse_manifest(read_file(here / MANIFEST))
            return _checked(read_file(here / name), name, manifest)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise CheckpointError(f"{here / name} is missing; take another checkpoint") from None

    def write(
        self, *, step: int, fence: int, fill: Fill, beside: Mapping[str, Path] | None = None
    ) -> tuple[Path, Manifest]:
        """A checkpoint, whole here and in the store, with the files `beside` that it relies on. CheckpointError.

        These are by the names that the store has for them.
        """
        return self.begin(step=step, fence=fence, fill=fill, beside=beside)()

    def begin(
        self, *, step: int, fence: int, fill: Fill, beside: Mapping[str, Path] | None = None
    ) -> Callable[[], tuple[Path, Manifest]]:
        """The files of `write`, and what makes them durable: to be called once, by any thread, before the next `begin`.

        Both raise CheckpointError.
        """
        written = checkpoints.fill_hidden(self.root, step=step, fence=fence, fill=fill)

        def finish() -> tuple[Path, Manifest]:
            path, manifest = checkpoints.make_whole(self.root, step=step, fence=fence, written=written)
            try:
                self._copy(path, manifest, beside or {})
            except StoreAway as error:  # the run goes on without this one; only a start has to wait for the store
                raise CheckpointError(str(error)) from error
            self.registered[step] = manifest.digest
            return path, manifest

        return finish

    def check_there(self) -> None:
        """Raises Unreadable where nothing at all is left of what is registered: so much is not lost, but elsewhere."""
        if not self.registered or any(os.path.lexists(self.root / directory_name(step)) for step in self.registered):
            return
        where = str(self.root)
        if self._remote is not None:
            if not self.registered.keys().isdisjoint(step for step, _ in self._remote.within(LONG_PAUSES_S).steps()):
                return
            where += f", nor in {STORE_VARIABLE}"
        raise Unreadable(f"none of the job's checkpoints is in {where}: see that its volume is mounted on this machine")

    def restore(self, step: int) -> bool:
        """See that a registered checkpoint is here as it was registered; True where it had to be fetched.

        CheckpointError where it is nowhere whole, Unreadable where that can't be told yet, PolicyAlone.
        """
        was_fetched = self._restore(step)
        manifest = parse_manifest(read_file(self.root / directory_name(step) / MANIFEST))
        if manifest.gone:
            raise PolicyAlone(f"of step {step} the policy alone is kept")
        return was_fetched

    def _restore(self, step: int) -> bool:
        try:
            if checkpoints.verify(self.root / directory_name(step)).digest != self.registered[step]:
                raise CheckpointError(f"step {step} is not the checkpoint that was registered")
            return False
        except CheckpointError as here:
            if self._remote is None:
                raise
            try:
                self._fetch(step, LONG_PAUSES_S)
            except Unreadable:
                raise
            except CheckpointError as there:
                kind = Unreadable if isinstance(here, Unreadable) else CheckpointError
                raise kind(f"{here}; {there}") from None
            return True

    def directory(self, step: int, *, pauses_s: Sequence[float] = PAUSES_S) -> Path:
        """Where a registered checkpoint is, fetched if this machine lacks it. CheckpointError as `restore`."""
        path = self.root / directory_name(step)
        if self._remote is not None and not _is_registered(path, self.registered[step]):
            self._fetch(step, pauses_s)
        return path

    def fetch_beside(self, path: Path, name: str) -> None:
        """Replace a file that checkpoints rely on by the store's of that name, where it has one."""
        if self._remote is not None:
            self._remote.within(LONG_PAUSES_S).get_beside(path, name)

    def keep_only(self, steps: Collection[int], *, fence: int) -> None:
        """Remove every other checkpoint, here and in the store."""
        checkpoints.keep_only(self.root, steps)
        if self._remote is not None:
            self._remote.within(()).keep_only(steps, fence, written=self._written)

    def keep_policies(self, steps: Collection[int], *, fence: int) -> None:
        """Of these, which no restart will take, keep the policy alone, here and in the store."""
        for step in steps:
            checkpoints.keep_policy(self.root / directory_name(step))
        left = set(steps) - self._policies
        if self._remote is not None and left and self._remote.within(()).keep_policies(left, fence):
            self._policies |= left

    def _written_by(self) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """(fence, step) of what is here, and of what is in the store; not all of it is whole."""
        there = set() if self._remote is None else {(fence, step) for step, fence in self._remote.steps()}
        return set(checkpoints.manifests(self.root)), there

    def _whole(self, fence: int, step: int, *, here: bool) -> Manifest | None:
        unreadable = None
        if here:
            try:
                return checkpoints.verify(self.root / directory_name(step))
            except Unreadable as error:
                unreadable = error
            except CheckpointError:
                pass
        found = None if self._remote is None else self._remote.manifest(step, fence)
        if found is None and unreadable is not None:
            raise unreadable
        return found

    def _copy(self, path: Path, manifest: Manifest, beside: Mapping[str, Path]) -> None:
        if self._remote is None:
            return
        for name, file in beside.items():
            if name not in self._beside:
                self._remote.put_beside(file, name)
                self._beside.add(name)
        self._remote.put(path, manifest)
        self._written.add(manifest.step)

    def _fetch(self, step: int, pauses_s: Sequence[float]) -> None:
        assert self._remote is not None
        remote, digest = self._remote.within(pauses_s), self.registered[step]
        _put_whole(self.root / directory_name(step), lambda hidden: remote.get(step, digest, hidden))


def open_store(root: Path, owner: str, job_id: str) -> CheckpointStore:
    """As the operator configured it. Raises RemoteError."""
    url = os.environ.get(STORE_VARIABLE)
    return CheckpointStore(root, Remote(url, owner, job_id) if url else None)


def find_checkpoint(found: Checkpoint, url: str | None, *, owner: str, job_id: str, state_dir: Path) -> Path:
    """A directory with a checkpoint's policy, to read: the trainer's own where this machine has it, else a copy.

    Only the policy is copied. The last few copies are kept, in JOB/fetched. CheckpointError.
    """
    own = Path(found.path)
    if url is None or _is_registered(own, found.digest):
        return own
    target = state_dir / "jobs" / job_id / "fetched" / f"{found.step:06d}-{found.digest[:16]}"
    if target.is_dir():
        target.touch()
        return target
    remote = Remote(url, owner, job_id)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _put_whole(target, lambda hidden: remote.get(found.step, found.digest, hidden, under=_POLICY))
    with contextlib.suppress(FileNotFoundError):  # another process drops them as well
        kept = sorted(state_dir.glob("jobs/*/fetched/*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-_FETCHED]:
            checkpoints.remove(old)
    return target


def _checked(content: bytes, name: str, manifest: Manifest) -> bytes:
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise CheckpointError(f"{name} of step {manifest.step} does not match its sha256; take another checkpoint")
    return content


def _is_registered(path: Path, digest: str) -> bool:
    """Whether the directory is what was registered: one of the same step may be of a holder that lost the job."""
    try:
        return parse_manifest((path / MANIFEST).read_bytes()).digest == digest
    except (OSError, ValueError):
        return False


def _put_whole(target: Path, fill: Callable[[Path], None]) -> None:
    """`target` as `fill` makes it, or as it was. CheckpointError, Unreadable where it is this disk that fails."""
    hidden = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        hidden.mkdir(parents=True)
        fill(hidden)
        checkpoints.put_in_place(hidden, target)
    except OSError as error:
        raise Unreadable(f"can't fetch {target}: {error.strerror or error}; free space") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
