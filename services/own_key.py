"""The installation's own key, by its SHA-256: as its server was given it, or as a file has it now.

That is STATE/api.json, or the one that EQUIPOISE_API_KEY_FILE names.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from services.keys import digest
from services.settings import Settings, credentials_path, read_credentials
from services.watched import mark

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class OwnKey:
    """Where `settings` say so, follows the file: another key there is taken, and the one before refused, within 1 s.

    A file that is away or damaged changes nothing. Any thread may ask.
    """

    def __init__(self, settings: Settings) -> None:
        self._sha256 = settings.key_sha256
        self._state_dir = settings.state_dir
        self._key_file = settings.key_file
        self._path = settings.key_file or (credentials_path(settings.state_dir) if settings.follow_key_file else None)
        self._mark = None if self._path is None else mark(self._path)
        self._next_look = 0.0

    @property
    def may_change(self) -> bool:
        return self._path is not None

    @property
    def sha256(self) -> str:
        if self._path is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._look(self._path)
        return self._sha256

    def _look(self, path: Path) -> None:
        now = mark(path)
        if now is None or now == self._mark:
            return
        self._mark = now
        try:
            key = self._read()
        except (OSError, ValueError) as error:
            log.warning("the server's key stays as it was: %s", error)
            return
        if key and digest(key) != self._sha256:
            self._sha256 = digest(key)
            log.warning("the server's own key is another one now, as %s has it", path)

    def _read(self) -> str | None:
        if self._key_file is not None:
            return self._key_file.read_text(encoding="utf-8").strip()
        credentials = read_credentials(self._state_dir)
        return None if credentials is None else credentials.key
