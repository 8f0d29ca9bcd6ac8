"""The seam to fsspec: filesystems by URL, and calls that are tried again.

Credentials come from the operator's environment or fsspec's own configuration, never from a URL: those stand in specs,
events and logs.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between tries
LONG_PAUSES_S = (*PAUSES_S, 15.0, *[30.0] * 18)  # ten minutes: for what nothing can go on without
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class RemoteError(ValueError):
    """A URL that can't be used on this machine; the message says what to change or to install."""


class RemoteAway(RuntimeError):
    """The other side did not do it, however often it was asked."""


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def parts_of(url: str) -> tuple[str, str, tuple[str, ...]]:
    """(scheme, host or bucket, segments of the path) of a URL that means one place and nothing else.

    RemoteError for what could mean another one: chains of filesystems, `..`, queries; and for credentials.
    """
    if "::" in url or "\\" in url or not url.isprintable() or not is_url(url):
        raise RemoteError("expected one plain URL such as s3://bucket/folder")
    split = urlsplit(url)
    if "@" in split.netloc:
        raise RemoteError("a URL must not hold credentials: they belong in the server's environment")
    if split.query or split.fragment or "?" in url or "#" in url:
        raise RemoteError("a URL must not have ? or #")
    segments = tuple(split.path.removeprefix("/").removesuffix("/").split("/"))
    segments = () if segments == ("",) else segments
    for segment in segments:
        plain = unquote(segment)
        if plain in ("", ".", "..") or "/" in plain or "\\" in plain:
            raise RemoteError("a URL's path must not have empty parts, . or ..")
    return split.scheme.lower(), split.netloc, segments


def is_under(url: str, root: str) -> bool:
    """Whether `url` lies below `root`: s3://data-x is not below s3://data. RemoteError as `parts_of`."""
    scheme, host, segments = parts_of(url)
    root_scheme, root_host, root_segments = parts_of(root)
    return (scheme, host) == (root_scheme, root_host) and segments[: len(root_segments)] == root_segments


def open_filesystem(url: str) -> tuple[Any, str]:
    """(fsspec filesystem, path on it). Nothing is connected yet. Raises RemoteError."""
    import fsspec

    scheme = parts_of(url)[0]
    options: dict[str, Any] = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    try:
        if scheme == "hf":  # what the operator opened is read with its token, by jobs too that have it for no model
            from huggingface_hub import get_token

            options["token"] = get_token()
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise RemoteError(f"{scheme}:// needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise RemoteError(f"{url}: {error}") from None
    return filesystem, path.rstrip("/")


def patiently(
    call: Callable[[], T],
    what: str,
    pauses_s: Sequence[float] = PAUSES_S,
    *,
    final: tuple[type[Exception], ...] = (),
) -> T:
    """Try until it works. RemoteAway after the last pause.

    That a file is missing, or that credentials do not do, is an answer and not tried again; nor is what is `final`.
    """
    answers: tuple[type[Exception], ...] = (FileNotFoundError, PermissionError, *final)
    for pause_s in (*pauses_s, None):
        try:
            return call()
        except answers:
            raise
        except Exception as error:  # each filesystem raises what its own SDK has, and few of them OSError
            if pause_s is None:
                raise RemoteAway(f"can't {what}: {str(error) or type(error).__name__}") from error
            log.warning("can't %s: %s; again in %g s", what, error, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")
