"""Uploaded prompts: STATE/datasets/OWNER/ID/, the file as it came and a manifest. A spec names one as `dataset:ID`.

The id follows from the content, so the same upload gives the same dataset, and a directory is put in place whole by a
rename: there are no half datasets, and no locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.rollouts.prompts import DatasetError
from orchestrator.rollouts.split_files import matching
from orchestrator.specs.data import REFERENCE, Columns
from orchestrator.state.keys import is_name
from policies.disk import flush

FORMATS = ("jsonl", "csv", "parquet")
_ID = re.compile(r"ds-[0-9a-f]{12}")
_MANIFEST = "manifest.json"
_STALE_S = 24 * 3600


class DatasetNotFound(DatasetError):
    """This owner has no such dataset."""


class DatasetDamaged(DatasetNotFound):
    """What is there under its id can't be read."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What its manifest says."""

    id: str
    name: str
    format: str
    rows: int
    bytes: int
    sha256: str
    columns: Columns
    created_at: float
    path: Path

    def document(self) -> dict[str, Any]:
        """Without the path, which is the server's."""
        return {
            "id": self.id,
            "name": self.name,
            "format": self.format,
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "columns": self.columns.model_dump(),
            "created_at": self.created_at,
        }


class Draft:
    """A file that is being received. `discard` takes away what was not kept."""

    def __init__(self, folder: Path, format: str) -> None:
        self.format = format
        self.directory = folder / f".upload-{secrets.token_hex(8)}"
        self.directory.mkdir(mode=0o700)
        self.path = self.directory / f"data.{format}"
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._sum = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self.bytes += len(data)

    def close(self) -> None:
        """On disk for good."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full: what the buffer still holds is lost anyway
            self._file.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Datasets:
    """Of one owner. Holds no state: any number of processes may share the directory."""

    def __init__(self, state_dir: Path, owner: str) -> None:
        if not is_name(owner):
            raise ValueError("owner: 1 to 255 letters, digits, _ or - are allowed")
        self.owner = owner
        self._folder = state_dir / "datasets" / owner

    def draft(self, format: str) -> Draft:
        """A place for an upload of one of FORMATS. Drafts that a crash left behind go."""
        assert format in FORMATS
        self._folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.parent.mkdir(mode=0o700, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob(".*-*"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)
        return Draft(self._folder, format)

    def twin(self, draft: Draft, columns: Columns) -> Dataset | None:
        """The dataset that this content already is."""
        try:
            return self.get(_identify(draft, columns))
        except DatasetNotFound:
            return None

    def keep(self, draft: Draft, *, name: str, columns: Columns, rows: int) -> tuple[Dataset, bool]:
        """The draft as a dataset, and whether it is new. The draft must be closed and its rows checked."""
        kept = Dataset(
            id=_identify(draft, columns),
            name=name,
            format=draft.format,
            rows=rows,
            bytes=draft.bytes,
            sha256=draft.sha256,
            columns=columns,
            created_at=time.time(),
            path=draft.path,
        )
        manifest = draft.directory / _MANIFEST
        with os.fdopen(os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(kept.document(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        flush(draft.directory)
        try:
            self._put(draft, kept.id)
        except OSError:
            if (twin := self.twin(draft, columns)) is not None:  # another upload of it came first
                return twin, False
            raise
        flush(self._folder)
        return self.get(kept.id), True

    def _put(self, draft: Draft, dataset_id: str) -> None:
        """In place, where one that is damaged may be in the way."""
        with contextlib.suppress(DatasetNotFound):
            try:
                self.get(dataset_id)
            except DatasetDamaged:
                self.delete(dataset_id)
        draft.directory.rename(self._folder / dataset_id)

    def get(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFound."""
        return _read(self._folder, dataset_id)

    def all(self) -> list[Dataset]:
        """Newest first."""
        found = []
        for directory in self._folder.glob("ds-*"):
            with contextlib.suppress(DatasetNotFound):
                found.append(self.get(directory.name))
        return sorted(found, key=lambda dataset: (-dataset.created_at, dataset.id))

    def delete(self, dataset_id: str) -> None:
        """Jobs that have yet to begin can't start any more; others have it (`hold`). Raises DatasetNotFound."""
        if not _ID.fullmatch(dataset_id):
            raise DatasetNotFound("no such dataset")
        gone = self._folder / f".deleted-{secrets.token_hex(8)}"
        try:
            (self._folder / dataset_id).rename(gone)
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFound(f"no dataset {dataset_id}") from None
        flush(self._folder)
        shutil.rmtree(gone, ignore_errors=True)


def is_reference(name: str) -> bool:
    return name.startswith(REFERENCE)


def resolve(reference: str, owner: str, state_dir: Path) -> Path:
    """The file of `dataset:ID`. DatasetError where this owner has none such."""
    return find(reference, owner, state_dir).path


def find(reference: str, owner: str, state_dir: Path) -> Dataset:
    """The same with its columns."""
    try:
        found = Datasets(state_dir, owner).get(reference.removeprefix(REFERENCE))
    except DatasetDamaged as error:
        raise DatasetError(f"{reference}: {error}") from None
    except DatasetNotFound:
        problem = "no such dataset; `equipoise datasets list` shows those that are kept"
        raise DatasetError(f"{reference[:64]}: {problem}") from None
    base = (state_dir / "datasets" / owner).resolve()
    if not found.path.is_file() or not found.path.resolve().is_relative_to(base):
        raise DatasetError(f"{reference}: its file is gone; upload it again")
    return found


def hold(reference: str, owner: str, state_dir: Path, folder: Path) -> Dataset:
    """The same as a job has it: linked into its `folder` at its first start, so that it outlives a deletion.

    Raises DatasetError.
    """
    dataset_id = reference.removeprefix(REFERENCE)
    with contextlib.suppress(DatasetNotFound):
        held = _read(folder, dataset_id)
        if held.path.is_file():
            return held
    found = find(reference, owner, state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{found.id}"
    for left in (draft, folder / found.id):  # of a start that was cut short
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(mode=0o700)
    for file in (found.path, found.path.with_name(_MANIFEST)):
        _link(file, draft / file.name)
    flush(draft)
    draft.rename(folder / found.id)
    flush(folder)
    return _read(folder, found.id)


def locate(
    name: str, columns: Columns, owner: str, state_dir: Path, folder: Path | None = None
) -> tuple[list[Path], Columns]:
    """The files that a split names, and their columns: a dataset's are those that it was checked with.

    `folder` is a job's own, in which datasets are held.
    """
    if not is_reference(name):
        return matching(name), columns
    found = find(name, owner, state_dir) if folder is None else hold(name, owner, state_dir, folder)
    return [found.path], found.columns


def _link(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file)
    except OSError:  # a file system without links, or another one
        shutil.copyfile(file, to)
        flush(to)


def _read(folder: Path, dataset_id: str) -> Dataset:
    """By its manifest, of which a later version may have written more. Raises DatasetNotFound."""
    if not _ID.fullmatch(dataset_id):
        raise DatasetNotFound("no such dataset")
    directory = folder / dataset_id
    try:
        document = json.loads((directory / _MANIFEST).read_bytes())
        known = {each.name: document[each.name] for each in fields(Dataset) if each.name not in ("columns", "path")}
        columns = {name: value for name, value in document["columns"].items() if name in Columns.model_fields}
        return Dataset(**known, columns=Columns.model_validate(columns), path=directory / f"data.{document['format']}")
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetNotFound(f"no dataset {dataset_id}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise DatasetDamaged(f"the manifest of dataset {dataset_id} is damaged; upload the file again") from None


def _identify(draft: Draft, columns: Columns) -> str:
    facts: list[Any] = [draft.format, columns.prompt, columns.answer, draft.sha256]
    if columns.domain is not None or columns.details:  # without them, an id is what it was before there were any
        facts += [columns.domain, columns.details]
    return f"ds-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
