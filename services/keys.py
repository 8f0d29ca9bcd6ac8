"""The API key: made here, given to people once, and otherwise known by its SHA-256."""

from __future__ import annotations

import hashlib
import secrets

_PREFIX = "eqp_"  # so that a leaked key is recognised by whoever scans for one


def new_key() -> str:
    """A key of 256 random bits: too many to guess, so a plain SHA-256 of it is enough."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
