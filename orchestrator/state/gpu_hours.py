"""GPU-hours of owners: what their jobs took this month, and how much they may take.

A job counts from the moment its GPUs are reserved until its lease ends, GPUs times time, in the scripts that extend and
end leases. So what was counted is counted once, whoever dies: a lease that runs out counts until it did. A month is one
of the calendar, in UTC, by the clock of Redis; a quota is used up where the month's sum has reached it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.errors import StoreError
from orchestrator.state.keys import Keys
from orchestrator.state.redis_calls import RedisCalls

UNITS_PER_HOUR = 3_600_000_000  # what Redis counts in: millionths of a GPU second
MAX_QUOTA_HOURS = 1_000_000  # so that sums stay below 2^53, where a script's number is exact
_LIMIT = "limit"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuHours:
    """Of one owner. `renews_at` is when the next month begins, `now` the clock of Redis; both Unix seconds."""

    quota: float | None
    used: float
    renews_at: float
    now: float

    @property
    def is_used_up(self) -> bool:
        return self.quota is not None and self.used >= self.quota


class GpuQuotaReached(StoreError):
    """The owner has used its GPU-hours of the month up."""

    def __init__(self, hours: GpuHours) -> None:
        super().__init__(hours)
        self.hours = hours


def read(calls: RedisCalls, owner: str) -> GpuHours:
    """What is counted so far: of running jobs, up to their last renewal. May raise `StoreUnavailable`."""
    key = Keys(owner).gpu_time
    (seconds, micros), fields = calls.reads([("TIME",), ("HGETALL", key)])
    now = int(seconds) + int(micros) / 1e6
    today = datetime.fromtimestamp(int(seconds), UTC)
    following = datetime(today.year + today.month // 12, today.month % 12 + 1, 1, tzinfo=UTC)
    return GpuHours(
        quota=int(fields[_LIMIT]) / UNITS_PER_HOUR if _LIMIT in fields else None,
        used=int(fields.get(f"{today:%Y-%m}", 0)) / UNITS_PER_HOUR,
        renews_at=following.timestamp(),
        now=now,
    )


def is_owner(calls: RedisCalls, owner: str) -> bool:
    """True if keys or jobs of it were ever made."""
    keys = Keys(owner)
    return bool(calls.command("EXISTS", keys.api_keys, keys.jobs))


def set_quota(calls: RedisCalls, owner: str, hours: float | None) -> None:
    """From now on; None: no limit. `ValueError` for a quota that is not above 0, or above MAX_QUOTA_HOURS."""
    key = Keys(owner).gpu_time
    if hours is None:
        calls.command("HDEL", key, _LIMIT)
        return
    if not 0 < hours <= MAX_QUOTA_HOURS:
        raise ValueError(f"gpu_hours: expected a number above 0, at most {MAX_QUOTA_HOURS:,}, or null for no limit")
    calls.command("HSET", key, _LIMIT, max(1, round(hours * UNITS_PER_HOUR)))
