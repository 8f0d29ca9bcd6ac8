"""Whether a Redis keeps what it acknowledged: looked at once, before a process begins to rely on it.

Or as soon as it answers, where it is away at that moment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

import redis
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

# Setting -> (the value that we need, what is lost with another one).
NEEDED = {
    "appendonly": ("yes", "a restart forgets jobs and steps"),
    "appendfsync": ("always", "a power cut takes back up to a second of acknowledged writes"),
    "maxmemory-policy": ("noeviction", "a full memory silently deletes jobs"),
}


class UnsafeRedis(Exception):
    """Settings that lose data, one line each with the way to change it."""


@dataclass(frozen=True, kw_only=True)
class Unsafe:
    """One setting that is not as needed."""

    setting: str
    value: str

    def describe(self) -> str:
        needed, loss = NEEDED[self.setting]
        return (
            f"{self.setting} is '{self.value}', and {loss}: run `redis-cli CONFIG SET {self.setting} {needed}` and "
            f"write `{self.setting} {needed}` in its redis.conf"
        )


def unsafe_settings(client: redis.Redis) -> list[Unsafe] | None:
    """What is not as needed; None where it cannot be told (many who host a Redis forbid CONFIG, or leave it empty)."""
    found: dict[str, str] = {}
    for setting in NEEDED:
        try:
            reply = dict(client.config_get(setting))
        except ResponseError:  # no permission, or an unknown command
            return None
        if setting in reply:
            found[setting] = str(reply[setting])
    unsafe = [Unsafe(setting=setting, value=value) for setting, value in found.items() if value != NEEDED[setting][0]]
    return unsafe if unsafe or len(found) == len(NEEDED) else None


def check_settings(client: redis.Redis, accepted: Collection[str] = ()) -> list[str]:
    """Warnings to show. Raises UnsafeRedis for a setting that loses data and is not among the accepted ones.

    ValueError for an accepted name that is none of `NEEDED`, redis.RedisError where it does not answer, or loads still.
    """
    unknown = [name for name in accepted if name not in NEEDED]
    if unknown:
        raise ValueError(f"no setting '{unknown[0]}'; those that can be accepted are {', '.join(NEEDED)}")
    unsafe = unsafe_settings(client)
    if unsafe is None:
        needed = ", ".join(f"{setting} {value}" for setting, (value, _) in NEEDED.items())
        return [f"this Redis does not show its settings; make sure of {needed}"]
    refused = [setting for setting in unsafe if setting.setting not in accepted]
    if refused:
        lines = "\n  ".join(setting.describe() for setting in refused)
        names = ",".join(setting.setting for setting in refused)
        raise UnsafeRedis(f"this Redis would lose data:\n  {lines}\nor live with it: --accept-redis-settings {names}")
    return [f"accepted: {NEEDED[setting.setting][1]} ({setting.setting} {setting.value})" for setting in unsafe]


class SettingsWatch:
    """The check of a Redis that was away, made when it first answers: `on_refusal` is called where it is unsafe.

    waits for: the Redis.
    unblocked by: `request_stop`.
    """

    def __init__(self, client: redis.Redis, accepted: Collection[str] = (), *, poll_s: float = 1.0) -> None:
        self._client = client
        self._accepted = accepted
        self._poll_s = poll_s
        self._stopping = threading.Event()
        self.refusal: UnsafeRedis | None = None
        self.on_refusal: Callable[[], None] = lambda: None

    def run(self) -> None:
        while not self._stopping.wait(self._poll_s):
            try:
                warnings = check_settings(self._client, self._accepted)
            except redis.RedisError:
                continue  # still away: who uses it says so
            except UnsafeRedis as error:
                self.refusal = error
                self.on_refusal()
                return
            for warning in warnings:
                log.warning("%s", warning)
            return

    def request_stop(self) -> None:
        self._stopping.set()
