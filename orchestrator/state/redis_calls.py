"""One way to talk to Redis for the store: commands, transactions and scripts, with one kind of failure."""

import copy
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from orchestrator.errors import Outage, StoreUnavailable
from orchestrator.state import scripts
from orchestrator.state.redis_secret import resolve

log = logging.getLogger(__name__)
_CONNECT_S = 1.0

Arg = str | int | float

# A server that runs but takes no writes now: memory full, disk failing, a replica. From a script, 6.2 says
# so in the text of a general error.
_REFUSALS = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError)
_REFUSAL_CODES = ("OOM ", "MISCONF", "READONLY", "NOREPLICAS")
_REMEDIES = {
    Outage.AWAY: "check that it runs, then try again",
    Outage.READ_ONLY: "give it room (memory, disk), or the address of the primary, then try again",
    Outage.FORBIDDEN: "check its list of users, and that the keeper of its scripts runs",
}
_QUIET_S = 60.0


def connect(url: str, *, timeout_s: float = 1.0) -> redis.Redis:
    """A client that gives up soon: each call waits `timeout_s` and is tried at most twice.

    The library's own defaults would wait about a minute on a frozen server and repeat a command ten times.
    Every write of the store is safe to repeat. Connects lazily: raises nothing for a server that is down. `url` may
    name a file that holds it, file:///path, whose password may change meanwhile. ValueError for what is no URL.
    """
    address, credentials = resolve(url)
    return redis.Redis.from_url(
        address,
        credential_provider=credentials,
        decode_responses=True,
        protocol=2,  # what a 6.2 server and every later one answer alike
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ConstantBackoff(0.05), 1),
    )


class Breaker:
    """Who asks a server that has just kept another waiting in vain is told at once, so that nobody queues for it.

    Closed while the server answers. After a call without an answer, none goes out for `rest_s`, and from then on one at
    a time, to see whether it is back.
    """

    def __init__(self, rest_s: float = 0.5) -> None:
        self._rest_s = rest_s
        self._lock = threading.Lock()
        self._open = False
        self._next_at = 0.0

    def admits(self) -> bool:
        """Whether a call may go out now. One that does must be followed by `saw`."""
        with self._lock:
            if self._open:
                if time.monotonic() < self._next_at:
                    return False
                self._next_at = math.inf  # until this one has seen
            return True

    def saw(self, *, answered: bool) -> None:
        with self._lock:
            self._open = not answered
            self._next_at = time.monotonic() + self._rest_s


class Outages:
    """Logs why Redis does not serve: once for each reason, and again only after a minute without it."""

    def __init__(self, consequence: str) -> None:
        """`consequence`: what that means here, such as "webhooks wait"."""
        self._consequence = consequence
        self._seen: dict[Outage, float] = {}  # when last, in monotonic seconds

    def saw(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        is_new = now - self._seen.get(error.outage, -math.inf) > _QUIET_S
        self._seen[error.outage] = now
        if is_new:
            log.warning("%s; %s", error, self._consequence)


class RedisCalls:
    """Runs commands, transactions and the scripts; every failure to be served is `StoreUnavailable`."""

    def __init__(self, client: redis.Redis) -> None:
        self._breaker: Breaker | None = None
        self._outages: Outages | None = None
        if not client.get_encoder().decode_responses:
            raise ValueError("the store reads text: make its client with connect()")
        self._client: Any = client  # its commands are typed for both sync and async use
        self._scripts = {name: client.register_script(source) for name, source in scripts.load().items()}

    def failing_fast(self) -> Self:
        """The same connection behind a breaker of its own: for a server, whose callers share a few threads.

        Outages are logged, as a server's callers hear of them and its operator would not.
        """
        other = copy.copy(self)
        other._breaker, other._outages = Breaker(), Outages("requests that need it are answered 503")
        return other

    def command(self, *words: Arg) -> Any:
        with self._reachable([words]):
            return self._client.execute_command(*words)

    def reads(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Commands that only read, in order and one round trip; others may write between two of them.

        Unlike a transaction it is answered by a Redis whose memory is full.
        """
        with self._reachable(commands), self._client.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            return list(pipe.execute())

    def together(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """All commands in one transaction and one round trip; their replies in order."""
        with self._reachable(commands), self._client.pipeline(transaction=True) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            return list(pipe.execute())

    def script(self, name: str, keys: Sequence[str], args: Sequence[Arg]) -> list[Any]:
        with self._reachable([("EVALSHA", f"of {name}.lua on {', '.join(keys)}")]):
            return list(self._scripts[name](keys=list(keys), args=list(args)))

    def certificate_end(self) -> float | None:
        """When the server's certificate ends, in Unix time; None without TLS, or where nobody shows a good one."""
        pool = self._client.connection_pool
        if not issubclass(pool.connection_class, redis.SSLConnection):
            return None
        at = pool.connection_kwargs
        host, port = at.get("host", "localhost"), int(at.get("port", 6379))
        try:
            context = ssl.create_default_context(cafile=at.get("ssl_ca_certs"))
            with (
                socket.create_connection((host, port), timeout=_CONNECT_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as connection,
            ):
                shown = connection.getpeercert() or {}
        except OSError:
            return None
        return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))

    @contextmanager
    def _reachable(self, commands: Sequence[Sequence[Arg]]) -> Iterator[None]:
        """`commands`: a word and a key of each, to be named where one is forbidden."""
        try:
            with self._served(commands):
                yield
        except StoreUnavailable as error:
            if self._outages is not None:
                self._outages.saw(error)
            raise

    @contextmanager
    def _served(self, commands: Sequence[Sequence[Arg]]) -> Iterator[None]:
        if self._breaker is not None and not self._breaker.admits():
            raise self._unavailable("did not answer just now", None)
        answered = True
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            answered = False
            raise self._unavailable("did not answer, tried twice", error) from error
        except ResponseError as error:
            if isinstance(error, NoPermissionError):
                asked = "; ".join(dict.fromkeys(" ".join(map(str, words[:2])) for words in commands))
                why = f"forbids this, or was not given its scripts yet: {asked}"
                raise self._unavailable(why, error, Outage.FORBIDDEN, asked) from error
            if isinstance(error, _REFUSALS) or any(code in str(error) for code in _REFUSAL_CODES):
                raise self._unavailable("refuses writes", error, Outage.READ_ONLY) from error
            raise
        finally:
            if self._breaker is not None:
                self._breaker.saw(answered=answered)

    def _unavailable(
        self, what: str, error: RedisError | None, outage: Outage = Outage.AWAY, asked: str = ""
    ) -> StoreUnavailable:
        at = self._client.connection_pool.connection_kwargs
        place = at.get("path") or f"{at.get('host')}:{at.get('port')}"
        why = "" if error is None else f" ({error})"
        return StoreUnavailable(f"Redis at {place} {what}{why}: {_REMEDIES[outage]}", outage, asked)
