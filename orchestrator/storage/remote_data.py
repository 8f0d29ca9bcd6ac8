"""Prompts that a spec names by URL: fetched once for a job, into files that are named by what they hold.

    JOB/data/0123456789abcdef-SHA256.jsonl      the first part is of the URL

So a job that goes on reads the bytes that it began with, whatever the URL gives by then.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from orchestrator.rollouts.prompts import DatasetError
from orchestrator.storage.remote import PAUSES_S, RemoteError, open_filesystem, parts_of, patiently
from policies.disk import sha256_of

_FORMATS = (".jsonl", ".csv", ".parquet")
_CHUNK_BYTES = 1 << 20


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
