"""The installation's own key, by its SHA-256: as its server was given it, or as STATE/api.json has it now."""

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
        self._state_dir = settings.state_dir if settings.follow_key_file else None
        self._mark = None if self._state_dir is None else mark(credentials_path(self._state_dir))
        self._next_look = 0.0

    @property
    def may_change(self) -> bool:
        return self._state_dir is not None

    @property
    def sha256(self) -> str:
        if self._state_dir is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._look(self._state_dir)
        return self._sha256

    def _look(self, state_dir: Path) -> None:
        now = mark(credentials_path(state_dir))
        if now is None or now == self._mark:
            return
        self._mark = now
        try:
            credentials = read_credentials(state_dir)
        except (OSError, ValueError) as error:
            log.warning("the server's key stays as it was: %s", error)
            return
        if credentials is not None and digest(credentials.key) != self._sha256:
            self._sha256 = digest(credentials.key)
            log.warning("the server's own key is another one now, as %s has it", credentials_path(state_dir))
