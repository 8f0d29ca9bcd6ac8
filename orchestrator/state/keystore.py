"""API keys in Redis: whom each speaks for, what it may do, and until when.

Only a key's SHA-256 comes here; the key itself is made and checked in services and never reaches Redis.
Times are Redis's, in Unix seconds. Any method may raise `StoreUnavailable`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import QuotaReached, StoreError
from orchestrator.state import keys
from orchestrator.state.records import Page
from orchestrator.state.redis_calls import RedisCalls

TOUCH_EVERY_S = 60
OWNER_KEYS_WORTH = 4  # an owner may write as often as so many keys, however many it has


class Scope(StrEnum):
    """What a key may do; admin may do everything."""

    READ = "read"
    SUBMIT = "submit"
    STEER = "steer"
    ADMIN = "admin"


class KeyNotFound(StoreError):
    """No API key has this id."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    key_id: str
    sha256: str
    owner: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    created_by: str | None  # the name of a key; None of one that an earlier version made
    revoked_by: str | None

    def is_valid_at(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore:
    """The keys of all owners. Holds no state: safe to share between threads."""

    def __init__(self, calls: RedisCalls) -> None:
        self._calls = calls

    def add(
        self,
        *,
        key_id: str,
        sha256: str,
        owner: str,
        name: str,
        scopes: Collection[Scope],
        expires_in_s: int | None = None,
        most: int | None = None,
        by: str = "",
    ) -> ApiKey:
        """Keep a new key. `ValueError` for a malformed id or owner.

        Of an owner with `most` keys the oldest that is revoked or expired is forgotten first; `QuotaReached` where all
        are in use. Calls at the same moment may exceed it by their number.
        """
        if not keys.is_key_id(key_id):
            raise ValueError("key id: expected 16 hexadecimal digits")
        index = keys.Keys(owner).api_keys
        seconds, micros = self._calls.command("TIME")
        now = int(seconds) + int(micros) / 1e6
        if most is not None and self._calls.command("ZCARD", index) >= most:
            self._forget_one(index, now)
        expiry = "" if expires_in_s is None else f"{now + expires_in_s:.6f}"
        fields = (
            "sha256", sha256, "owner", owner, "scopes", " ".join(sorted(scopes)), "name", name,
            "created_at", f"{now:.6f}", "expires_at", expiry, "created_by", by,
        )  # fmt: skip
        order = int(seconds) * 1_000_000 + int(micros)
        self._calls.together([
            ("HSET", keys.api_key(key_id), *fields),
            ("ZADD", index, order, key_id),
            ("ZADD", keys.API_KEYS, order, key_id),
        ])  # fmt: skip
        return self.find(key_id)[0]

    def _forget_one(self, index: str, now: float) -> None:
        """Of the keys that nobody can use any more."""
        ids = self._calls.command("ZRANGE", index, 0, -1)
        hashes = self._calls.reads([("HGETALL", keys.api_key(key_id)) for key_id in ids])
        for key_id, fields in zip(ids, hashes, strict=True):
            if not fields or not _api_key(key_id, fields).is_valid_at(now):
                self._calls.together([
                    ("ZREM", index, key_id), ("ZREM", keys.API_KEYS, key_id), ("DEL", keys.api_key(key_id)),
                ])  # fmt: skip
                return
        raise QuotaReached("every key is in use")

    def find(self, key_id: str) -> tuple[ApiKey, float]:
        """A key and the time by Redis. `KeyNotFound`."""
        if not keys.is_key_id(key_id):
            raise KeyNotFound(key_id)
        # Two commands, no transaction: Redis 6.2 refuses every transaction while its memory is full.
        fields = self._calls.command("HGETALL", keys.api_key(key_id))
        if not fields:
            raise KeyNotFound(key_id)
        seconds, micros = self._calls.command("TIME")
        return _api_key(key_id, fields), int(seconds) + int(micros) / 1e6

    def page(self, *, owner: str | None, after: str | None = None, limit: int = 20) -> Page[ApiKey]:
        """Newest first, those made before the key `after`; of every owner for None. `KeyNotFound` for `after`."""
        index = keys.API_KEYS if owner is None else keys.Keys(owner).api_keys
        start = 0
        if after is not None:
            rank = self._calls.command("ZREVRANK", index, after)
            if rank is None:
                raise KeyNotFound(after)
            start = int(rank) + 1
        ids = self._calls.command("ZREVRANGE", index, start, start + limit)
        hashes = self._calls.reads([("HGETALL", keys.api_key(key_id)) for key_id in ids[:limit]])
        found = tuple(_api_key(key_id, fields) for key_id, fields in zip(ids[:limit], hashes, strict=True))
        return Page(items=found, has_more=len(ids) > limit)

    def revoke(self, key_id: str, *, by: str = "") -> ApiKey:
        """From now on for good; again is no error. A full Redis takes it. `KeyNotFound`."""
        self.find(key_id)
        self._calls.script("key_revoke", [keys.api_key(key_id)], [by])
        return self.find(key_id)[0]

    def touch(self, key: ApiKey, now: float) -> None:
        """Note that the key was used `now`, at most once in TOUCH_EVERY_S."""
        if now - (key.last_used_at or 0) >= TOUCH_EVERY_S:
            self._calls.script("key_touch", [keys.api_key(key.key_id)], [])

    def count_write(self, key_id: str, owner: str | None, per_minute: int) -> int:
        """0 if one more write fits into the key's minute and its owner's, else the seconds until the next one.

        With None as owner it counts in the key's alone.
        """
        counters = [keys.rate(key_id), *([] if owner is None else [keys.Keys(owner).rate])]
        code, *rest = self._calls.script("key_rate", counters, [per_minute, OWNER_KEYS_WORTH * per_minute])
        return 0 if code == "OK" else max(1, math.ceil(int(rest[0]) / 1000))


def _api_key(key_id: str, fields: Mapping[str, str]) -> ApiKey:
    def time(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

    return ApiKey(
        key_id=key_id,
        sha256=fields["sha256"],
        owner=fields["owner"],
        name=fields["name"],
        scopes=frozenset(Scope(scope) for scope in fields["scopes"].split()),
        created_at=float(fields["created_at"]),
        expires_at=time("expires_at"),
        revoked_at=time("revoked_at"),
        last_used_at=time("last_used_at"),
        created_by=fields.get("created_by") or None,
        revoked_by=fields.get("revoked_by") or None,
    )
