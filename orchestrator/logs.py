"""Log lines of every process: text for people or JSON for machines, none of them forged and none with a secret.

What a caller sent may stand in a message, so control characters (CR, ANSI escapes) are written out, and a further line
of a message is indented: a line that begins with a time is one of ours. Keys, secrets and passwords are masked in the
finished line, tracebacks included.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import TextIO
from urllib.parse import unquote, urlsplit

FORMAT_VARIABLE = "EQUIPOISE_LOG_FORMAT"
FORMATS = ("text", "json")
MASK = "***"
_FILE_BYTES = 16 << 20  # of a file, and of the one before it
_SHORTEST_SECRET = 6  # shorter ones would mask ordinary words
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRETS = (
    (re.compile(r"\b(eqp_|whsec_)[A-Za-z0-9_-]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer|authorization\W+basic)(\s+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1\2{MASK}"),
    (re.compile(r"(://)[^\s/@:]*:[^\s/]*@"), rf"\1{MASK}@"),
    (re.compile(r"""(?i)(["']?\b(?:password|secret|api_key|authorization)["']?\s*[:=]\s*["'])[^"']+"""), rf"\1{MASK}"),
)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_known_secrets: set[str] = set()


def setup(
    format: str | None = None, *, level: int = logging.WARNING, job_id: str | None = None, stream: TextIO | None = None
) -> None:
    """Of this whole process; `format` is EQUIPOISE_LOG_FORMAT if absent, else text. ValueError for another word."""
    chosen = format or os.environ.get(FORMAT_VARIABLE) or "text"
    if chosen not in FORMATS:
        raise ValueError(f"{FORMAT_VARIABLE}: expected {' or '.join(FORMATS)}")
    hide_environment(os.environ)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(job_id) if chosen == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def write_also(path: Path) -> None:
    """The same lines into a file, the newest 32 MiB at most, for when what reads this process's output is gone.

    What the file refuses is told once, and costs nothing else.
    """
    root = logging.getLogger()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        root.warning("%s: %s; this log is not kept there", path, error.strerror)
        return
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def report_crashes() -> None:
    """An exception that nobody caught ends the process as ever, but is written like every other line."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logging.getLogger("equipoise").critical("%s", error or kind.__name__, exc_info=(kind, error, trace))

    sys.excepthook = tell


def hide(*secrets: str | None) -> None:
    """Never to be written from now on, whatever they look like."""
    _known_secrets.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST_SECRET)


def hide_environment(environment: Mapping[str, str]) -> None:
    """The API key, and the password in the Redis URL."""
    hide(environment.get("EQUIPOISE_API_KEY"))  # of secrets in files, whoever reads them
    hide_password(environment.get("EQUIPOISE_REDIS_URL", ""))


def hide_password(url: str) -> None:
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        hide(password, unquote(password))


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """Every line that is logged inside says for which request."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def request_id() -> str | None:
    """Of the request that is being answered here."""
    return _request_id.get()


def masked(text: str) -> str:
    for secret in sorted(_known_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def escaped(text: str) -> str:
    """Control characters written out; tabs and line feeds stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00+0100 WARNING name: message`; what follows a line feed is indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        return escaped(masked(super().format(record))).rstrip("\n").replace("\n", "\n    ")


class JsonLines(logging.Formatter):
    """One object a line: at (UTC), level, logger, message, and request_id, job_id and exception where there are any."""

    def __init__(self, job_id: str | None = None) -> None:
        super().__init__()
        self._job_id = job_id

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            "request_id": _request_id.get(),
            "job_id": getattr(record, "job_id", None) or self._job_id,
            "exception": masked(self.formatException(record.exc_info)) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None})
