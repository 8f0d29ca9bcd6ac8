"""HTTP to one host whose addresses were checked: no proxy, no redirects, and connections to the checked address alone.

httpcore connects through a network backend; ours resolves the name itself, refuses it unless all its addresses are
allowed, and connects to one of those. TLS and the Host header still carry the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Generator, Iterable
from typing import Any

import httpcore
import httpx

from rewards.addresses import addresses_of
from rewards.judges.profiles import Profile, ProfileFileError

_ADDRESSES_LAST_S = 30.0  # so that many connections at once ask the name server once
_CONNECT_S = 10.0
_IDLE_S = 30.0


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, *, allow_private: bool, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        """`inner` connects to an address: a seam for tests."""
        self._allow_private = allow_private
        self._inner = inner or httpcore.AnyIOBackend()
        self._lock = asyncio.Lock()
        self._known: dict[tuple[str, int], tuple[float, list[str]]] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        error: Exception = httpcore.ConnectError("no address")
        for address in await self._addresses(host, port, timeout or _CONNECT_S):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("no sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _addresses(self, host: str, port: int, timeout_s: float) -> list[str]:
        async with self._lock:
            until, addresses = self._known.get((host, port), (0.0, []))
            if time.monotonic() >= until:
                addresses = await asyncio.to_thread(
                    addresses_of, host, port, allow_private=self._allow_private, timeout_s=timeout_s
                )
                self._known[host, port] = (time.monotonic() + _ADDRESSES_LAST_S, addresses)
            return addresses


class FileHeaders(httpx.Auth):
    """The headers that a profile has in files, as they are at each call: a key may be replaced while jobs run.

    A file that is away or empty, as one that is being replaced may be, leaves what was read before.
    """

    def __init__(self, profile: Profile) -> None:
        """Raises ProfileFileError where they can't be read at first."""
        self._profile = profile
        self._known = profile.headers()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        with contextlib.suppress(ProfileFileError):
            self._known = self._profile.headers()
        request.headers.update({name: value.get_secret_value() for name, value in self._known.items()})
        yield request


def clients(profile: Profile, backend: httpcore.AsyncNetworkBackend | None = None) -> list[httpx.AsyncClient]:
    """One for each call at once, with the profile's headers; for one event loop. Raises ProfileFileError.

    Each holds one connection: a pool of httpcore looks at all its connections for each request, and for each of them
    again, which at 64 takes ten times as long as the call.
    """
    secured = profile.base_url.startswith("https")
    context = profile.tls() if secured else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which trusts nobody
    backend = backend or CheckedBackend(allow_private=profile.allow_private)
    headers = {"user-agent": "equipoise-judge", "accept": "application/json", "accept-encoding": "identity"}
    secrets = FileHeaders(profile)
    return [_client(profile.timeout_s, headers, secrets, context, backend) for _ in range(profile.max_concurrency)]


def _client(
    timeout_s: float,
    headers: dict[str, str],
    secrets: httpx.Auth,
    context: ssl.SSLContext,
    backend: httpcore.AsyncNetworkBackend,
) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
    transport._pool = httpcore.AsyncConnectionPool(  # httpx has no option for the backend
        ssl_context=context, max_connections=1, keepalive_expiry=_IDLE_S, network_backend=backend
    )
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=timeout_s,
        headers=headers,
        auth=secrets,
    )
