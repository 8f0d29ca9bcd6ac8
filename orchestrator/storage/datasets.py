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
from dataclasses import dataclass
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
            draft.directory.rename(self._folder / kept.id)
        except OSError:
            if (twin := self.twin(draft, columns)) is not None:  # another upload of it came first
                return twin, False
            raise
        flush(self._folder)
        return self.get(kept.id), True

    def get(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFound."""
        directory = self._folder / dataset_id
        if not _ID.fullmatch(dataset_id):
            raise DatasetNotFound("no such dataset")
        try:
            document = json.loads((directory / _MANIFEST).read_bytes())
            return Dataset(
                **{**document, "columns": Columns.model_validate(document["columns"])},
                path=directory / f"data.{document['format']}",
            )
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetNotFound(f"no dataset {dataset_id}") from None
        except (OSError, ValueError, TypeError, KeyError):
            raise DatasetNotFound(f"the manifest of dataset {dataset_id} is damaged; upload the file again") from None

    def all(self) -> list[Dataset]:
        """Newest first."""
        found = []
        for directory in self._folder.glob("ds-*"):
            with contextlib.suppress(DatasetNotFound):
                found.append(self.get(directory.name))
        return sorted(found, key=lambda dataset: (-dataset.created_at, dataset.id))

    def delete(self, dataset_id: str) -> None:
        """Jobs that name it can't start any more. Raises DatasetNotFound."""
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
    except DatasetNotFound:
        problem = "no such dataset; `equipoise datasets list` shows those that are kept"
        raise DatasetError(f"{reference[:64]}: {problem}") from None
    base = (state_dir / "datasets" / owner).resolve()
    if not found.path.is_file() or not found.path.resolve().is_relative_to(base):
        raise DatasetError(f"{reference}: its file is gone; upload it again")
    return found


def locate(name: str, columns: Columns, owner: str, state_dir: Path) -> tuple[list[Path], Columns]:
    """The files that a split names, and their columns: a dataset's are those that it was checked with."""
    if not is_reference(name):
        return matching(name), columns
    found = find(name, owner, state_dir)
    return [found.path], found.columns


def _identify(draft: Draft, columns: Columns) -> str:
    facts: list[Any] = [draft.format, columns.prompt, columns.answer, draft.sha256]
    if columns.domain is not None or columns.details:  # without them, an id is what it was before there were any
        facts += [columns.domain, columns.details]
    return f"ds-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
