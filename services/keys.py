"""API keys: made here, given to people once, and otherwise known by their SHA-256.

The installation's own is `eqp_<secret>`, kept in STATE/api.json, an admin of the installation's owner.
Every other one is `eqp_<id>_<secret>`: by its id it is found in Redis.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_PREFIX = "eqp_"  # so that a leaked key is recognised by whoever scans for one
_STORED = re.compile(r"eqp_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


def new_key() -> str:
    """A key of 256 random bits: too many to guess, so a plain SHA-256 of it is enough."""
    return _PREFIX + secrets.token_urlsafe(32)


def new_stored_key() -> tuple[str, str]:
    """An id, and a key of 256 random bits that names it."""
    key_id = secrets.token_hex(8)
    return key_id, f"{_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def key_id_in(key: str) -> str | None:
    """The id that a key names; None if it isn't of that form."""
    match = _STORED.fullmatch(key)
    return match.group(1) if match else None


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
