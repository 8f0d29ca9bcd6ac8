"""The two clients: one API, one core, two kinds of I/O."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from services.client.api import Api
from services.client.core import AsyncIo, BlockingIo, Core
from services.client.methods import Awaited, Blocking
from services.client.retry import Retry

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
Verify = str | os.PathLike[str] | ssl.SSLContext | None


class _Connection(Api):
    """How a client finds its server."""

    url: str

    def __init__(self, url: str, key: str, *, verify: Verify = None, proxy: str | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ, **options: Any) -> Self:
        """EQUIPOISE_URL and EQUIPOISE_API_KEY; EQUIPOISE_CA_FILE where its certificate is not one that all know.

        EQUIPOISE_PROXY where it is reached through one; servers of this machine never are. `options` are the
        constructor's. ValueError says which is missing.
        """
        missing = [name for name in ("EQUIPOISE_URL", "EQUIPOISE_API_KEY") if not environment.get(name)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be set")
        options.setdefault("verify", environment.get("EQUIPOISE_CA_FILE") or None)
        options.setdefault("proxy", _proxy_for(environment["EQUIPOISE_URL"], environment))
        return cls(environment["EQUIPOISE_URL"], environment["EQUIPOISE_API_KEY"], **options)

    @classmethod
    def from_state(
        cls, state_dir: str | os.PathLike[str], environment: Mapping[str, str] = os.environ, **options: Any
    ) -> Self:
        """The server that left its address and key in a state directory; what the environment names comes first.

        Its key goes to no other address. ValueError where there never was a server, or a key is missing.
        """
        if environment.get("EQUIPOISE_URL") and environment.get("EQUIPOISE_API_KEY"):
            return cls.from_env(environment, **options)
        from services.settings import read_credentials  # not above: all else here needs httpx alone

        credentials = read_credentials(Path(state_dir))
        if credentials is None:
            raise ValueError(
                f"no Equipoise server was ever started with the state directory {state_dir}: "
                "start one with `equipoise up`"
            )
        url, key = environment.get("EQUIPOISE_URL") or credentials.url, environment.get("EQUIPOISE_API_KEY") or None
        is_same = _origin(url) == _origin(credentials.url)
        if key is None and not is_same:
            raise ValueError(
                f"EQUIPOISE_URL is not the server of {state_dir}, whose key may do everything and is for it alone: set "
                "EQUIPOISE_API_KEY to a key of that server"
            )
        options.setdefault("verify", environment.get("EQUIPOISE_CA_FILE") or (credentials.ca_file if is_same else None))
        options.setdefault("proxy", _proxy_for(url, environment))
        return cls(url, key or credentials.key, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class Client(_Connection, Blocking):
    """One server and one key. Threads may share it."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        verify: Verify = None,
        proxy: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`verify`: a file of certificates to trust instead of the usual ones. `proxy`: the URL of one.

        ValueError for a bad URL, key, file.
        """
        self.url = _checked(url)
        self._http = httpx.Client(**_options(self.url, key, timeout_s, verify, proxy), transport=transport)
        self._core = Core(BlockingIo(self._http), self.url, retry or Retry())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()


class AsyncClient(_Connection, Awaited):
    """One server and one key, with every method of `Client` to be awaited."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        verify: Verify = None,
        proxy: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`verify`: a file of certificates to trust instead of the usual ones. `proxy`: the URL of one.

        ValueError for a bad URL, key, file.
        """
        self.url = _checked(url)
        self._http = httpx.AsyncClient(**_options(self.url, key, timeout_s, verify, proxy), transport=transport)
        self._core = Core(AsyncIo(self._http), self.url, retry or Retry())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or not 0 < (parts.port or 1) < 65536:
        raise ValueError("the address of a server is http:// or https://, a host and a port, without a password")
    return url.rstrip("/")


def _checked_proxy(proxy: str) -> str:
    """Its password is in no message."""
    try:
        parts = httpx.URL(proxy)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("the address of a proxy (EQUIPOISE_PROXY) is http:// or https://, a host and a port")
    return proxy


def _proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """What the environment names for servers elsewhere."""
    return None if httpx.URL(_checked(url)).host in LOOPBACK else environment.get("EQUIPOISE_PROXY") or None


def _origin(url: str) -> tuple[str, str, int | None]:
    """What a key may be sent to: scheme, host and port. Raises ValueError for what is no address."""
    parts = httpx.URL(_checked(url))
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, "localhost" if parts.host in LOOPBACK else parts.host, port


def _options(url: str, key: str, timeout_s: float, verify: Verify, proxy: str | None) -> dict[str, Any]:
    if not (key.isascii() and key.isprintable() and key.strip()):
        raise ValueError("a key is ASCII text without control characters")
    return {
        "base_url": url,
        "headers": {"authorization": f"Bearer {key}"},
        "timeout": timeout_s,
        # The server closes idle connections after 5 s: one that is about to close is not used any more.
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0),
        "verify": _context(verify),
        "proxy": None if proxy is None else _checked_proxy(proxy),
        "trust_env": False,  # a general proxy for the outside world must not get the key of a local server
        "follow_redirects": False,  # nor must another host
    }


def _context(verify: Verify) -> ssl.SSLContext | bool:
    if verify is None:
        return True
    if isinstance(verify, ssl.SSLContext):
        return verify
    try:
        context = ssl.create_default_context(cafile=os.fspath(verify))
    except OSError as error:  # SSLError is one
        raise ValueError(f"{os.fspath(verify)}: no certificates are read from it: {error}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate will do, without its issuer
    return context
