"""Prompts that a spec names by URL: fetched once for a job, into files that are named by what they hold.

    JOB/data/0123456789abcdef-SHA256.jsonl      the first part is of the URL

So a job that goes on reads the bytes that it began with, whatever the URL gives by then. A dataset of the hub may be
named without a path, `hf://datasets/ORG/NAME` or `...:SPLIT`: which files that meant is kept beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from orchestrator.rollouts.prompts import DatasetError
from orchestrator.storage.remote import PAUSES_S, RemoteError, open_filesystem, parts_of, patiently
from policies.disk import sha256_of

_FORMATS = (".jsonl", ".csv", ".parquet")
_CHUNK_BYTES = 1 << 20
_MOST_LISTED = 20  # files that an error names


class TooLarge(Exception):
    """The file has more bytes than were asked for."""


def fetch(url: str, folder: Path, *, most_bytes: int | None = None, pauses_s: Sequence[float] = PAUSES_S) -> Path:
    """The file of a URL, below `folder`. DatasetError where it can't be had, RemoteAway where nobody answers.

    TooLarge above `most_bytes`: nothing is kept then.
    """
    try:
        suffix = PurePosixPath(*parts_of(url)[2]).suffix
        if suffix not in _FORMATS:
            raise DatasetError(f"{url}: expected a .jsonl, .csv or .parquet file")
        key = hashlib.sha256(url.encode()).hexdigest()[:16]
        for kept in folder.glob(f"{key}-*{suffix}"):
            if kept.name == f"{key}-{sha256_of(kept)}{suffix}":
                return kept
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = folder / f".{key}-{secrets.token_hex(4)}"
        try:
            patiently(
                lambda: _download(url, hidden, most_bytes), f"fetch {url}", pauses_s, final=(TooLarge, RemoteError)
            )
            target = folder / f"{key}-{sha256_of(hidden)}{suffix}"
            hidden.rename(target)
        finally:
            hidden.unlink(missing_ok=True)
    except RemoteError as error:
        raise DatasetError(f"{url}: {error}") from None
    except FileNotFoundError:
        raise DatasetError(f"{url}: no such file") from None
    except PermissionError:
        raise DatasetError(f"{url}: the server's credentials do not open it") from None
    return target


def files_of(url: str, split: str, folder: Path, *, pauses_s: Sequence[float] = PAUSES_S) -> list[str]:
    """The URLs of a split's files: of the hub's dataset that is named without a path, else the URL itself.

    Its files are those that the hub's conventions call after the split (data/train-00000-of-00002.parquet, train.jsonl,
    train/x.csv), of the first format that has any. DatasetError and RemoteAway as `fetch`.
    """
    try:
        scheme, host, segments = parts_of(url)
    except RemoteError as error:
        raise DatasetError(f"{url}: {error}") from None
    if (scheme, host, len(segments)) != ("hf", "datasets", 2) or PurePosixPath(segments[1]).suffix in _FORMATS:
        return [url]
    repository, _, named = url.removesuffix("/").partition(f"{segments[0]}/")[2].partition(":")
    split, repository = named or split, f"hf://datasets/{segments[0]}/{repository}"
    kept = folder / f"{hashlib.sha256(f'{repository}:{split}'.encode()).hexdigest()[:16]}.files"
    if kept.exists():
        return list(json.loads(kept.read_text(encoding="utf-8")))
    found = _called(_listed(url, repository, pauses_s), split, url)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = kept.with_name(f".{kept.name}-{secrets.token_hex(4)}")
    hidden.write_text(json.dumps([f"{repository}/{file}" for file in found]), encoding="utf-8")
    hidden.rename(kept)
    return [f"{repository}/{file}" for file in found]


def _listed(url: str, repository: str, pauses_s: Sequence[float]) -> list[str]:
    """The files that prompts may be in, as paths in the repository."""
    try:
        filesystem, path = open_filesystem(repository)
        found = patiently(lambda: filesystem.find(path), f"list {url}", pauses_s, final=(RemoteError,))
    except RemoteError as error:
        raise DatasetError(f"{url}: {error}") from None
    except FileNotFoundError:
        raise DatasetError(f"{url}: the hub knows no such dataset, or keeps it private; set HF_TOKEN") from None
    except PermissionError:
        raise DatasetError(f"{url}: the server's credentials do not open it") from None
    return sorted(file.removeprefix(f"{path}/") for file in found if PurePosixPath(file).suffix in _FORMATS)


def _called(listed: Sequence[str], split: str, url: str) -> list[str]:
    """Of one format, and in one folder: those of several would be other configurations of the same prompts."""
    name = re.compile(rf"(?:^|/)(?:{re.escape(split)}(?:-\d+-of-\d+)?\.\w+|{re.escape(split)}/[^/]+)$")
    for suffix in (".parquet", ".jsonl", ".csv"):
        found = [file for file in listed if file.endswith(suffix) and name.search(file)]
        if len(folders := sorted({file.rpartition("/")[0] or "its top" for file in found})) > 1:
            shown = ", ".join(folders[:_MOST_LISTED])
            raise DatasetError(f"{url}: files of '{split}' are in several folders ({shown}); name the files")
        if found:
            return found
    there = ", ".join(listed[:_MOST_LISTED]) or "none"
    raise DatasetError(
        f"{url}: no Parquet, JSONL or CSV file is called after the split '{split}'; name a split (ORG/NAME:SPLIT) or a "
        f"file; there are {there}"
    )


def _download(url: str, target: Path, most_bytes: int | None) -> None:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    taken = 0
    with filesystem.open(path, "rb") as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            taken += len(chunk)
            if most_bytes is not None and taken > most_bytes:
                raise TooLarge
            file.write(chunk)
