"""Where a Redis is, when that is told by a file: `file:///run/secrets/redis-url`, so that its password may change.

The file holds a Redis URL. Its user and password are read anew for each connection; connections that stand go on as
Redis lets them. The address is that of the first reading.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from redis.connection import parse_url
from redis.credentials import CredentialProvider

from orchestrator import logs


def file_url(path: Path) -> str:
    """How a file is named where a Redis URL is expected."""
    return f"file://{quote(str(path.absolute()))}"


def resolve(url: str) -> tuple[str, CredentialProvider | None]:
    """A URL for the client, and where it gets its password from; None: it is in the URL, or there is none.

    Raises ValueError naming the file that can't be read.
    """
    if not url.startswith("file:"):
        return url, None
    path = Path(unquote(urlsplit(url).path))
    try:
        text = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise ValueError(f"{path}: {reason}; expected a file that holds a Redis URL") from None
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"{path}: expected a Redis URL, such as redis://user:password@host:6379/0")
    address = text.replace(f"//{parts.netloc}", "//" + parts.netloc.rpartition("@")[2], 1)
    return address, _FileCredentials(path) if parts.password else None


class _FileCredentials(CredentialProvider):
    """User and password as the file has them now; as they were while it is away, which a replacement may be briefly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read_credentials()

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        with contextlib.suppress(OSError, ValueError):
            self._known = self._read_credentials()
        return self._known

    def _read_credentials(self) -> tuple[str] | tuple[str, str]:
        url = _read(self._path)
        logs.hide_password(url)
        found = parse_url(url)  # type: ignore[no-untyped-call]  # redis gives it no types
        if not found.get("password"):
            raise ValueError("no password")
        password = str(found["password"])
        return (str(found["username"]), password) if found.get("username") else (password,)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
