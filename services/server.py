"""The API behind a socket, in a thread of its own, so that the main thread is free for signals."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

import anyio.to_thread
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from orchestrator.state.store import JobStore
from services.app import create_app
from services.errors import ApiProblem, problem_response
from services.settings import Dashboard, Settings, Tls
from services.watched import Mark, mark

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 15.0
_LAST_ANSWERS_S = 3  # for requests in flight when the server stops
_MAX_HEAD_BYTES = 128 << 10
_MAX_SOCKET_BYTES = 1 << 20  # of one message of a page
_TICKS_TO_LOOK = 10  # of a tenth of a second, between looks at the certificate's files
_HANDLERS_AT_ONCE = 16  # in threads, which take turns anyway: with more of them everyone's answer is later
_HEAD_S = 20.0  # from the connection, or its first byte after an answer, to the head's end


class ServerError(Exception):
    """The server can't start; the text says why in one line."""


class _Http(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Bounds the head of a request, in size and in time, as nothing is known of who sends it.

    What the parser refuses, as not HTTP or with a URL beyond its 64 KB, gets the shape of every refusal. Between
    requests uvicorn's own timeout_keep_alive counts; while one is answered, nothing here does.
    """

    transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _is_socket = False  # the connection has become a websocket, which has its own protocol
    _heads = 0  # begun so far
    _in_head = False
    _parsed = 0  # bytes of names and values of the present head
    _fed = 0  # bytes that came after its first part, as a value is parsed when it has ended

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        begun = self._heads
        super().data_received(data)
        if self.transport.is_closing() or self._is_socket:
            return
        if self._in_head and self._heads == begun:
            self._fed += len(data)
            if self._fed > _MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
                return
        self._watch()

    def handle_websocket_upgrade(self) -> None:
        self._is_socket = True
        self._unwatch()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        self._heads += 1
        self._in_head, self._parsed, self._fed = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parse(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers of a body in chunks come here too."""
        self._parse(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, _: str) -> None:
        if self._parsed > _MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        else:
            self._refuse(ApiProblem(400, "invalid_http", "this is not HTTP, or its URL is too long"))

    def _parse(self, size: int) -> None:
        self._parsed += size
        if self._parsed > _MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # to the parser, which has send_400_response called

    def _watch(self) -> None:
        """A time limit for as long as neither a whole head nor an answer is under way; it is not put off by bytes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_S, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(ApiProblem(408, "head_timeout", "the head of the request came too slowly"))
        else:
            self.transport.close()

    def _refuse(self, problem: ApiProblem) -> None:
        """Ends the connection, as nobody knows where the next request would begin."""
        answer = problem_response(problem)
        headers = {**answer.headers, "x-request-id": uuid.uuid4().hex, "connection": "close"}
        status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"
        lines = [status, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + bytes(answer.body))
        self.transport.close()


def _head_too_large() -> ApiProblem:
    return ApiProblem(431, "head_too_large", f"the head of the request has more than {_MAX_HEAD_BYTES} bytes")


class _Server(uvicorn.Server):
    """Starts with what makes answers even, and takes a new certificate and key from their files while it runs.

    They are taken as soon as they fit together; what is connected goes on.
    """

    def __init__(self, config: uvicorn.Config, tls: Tls | None) -> None:
        super().__init__(config)
        self._tls = tls
        self._seen = None if tls is None else _marks(tls)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _HANDLERS_AT_ONCE
        gc.collect()
        gc.freeze()  # what is loaded by now stays: without it the collector walks all of it, and all wait 80 ms
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second, in the event loop: nothing is half taken while a connection begins."""
        if self._tls is not None and counter % _TICKS_TO_LOOK == 0 and (now := _marks(self._tls)) != self._seen:
            self._seen = now
            self._take(self._tls)
        return await super().on_tick(counter)

    def _take(self, tls: Tls) -> None:
        try:
            _check(tls)
        except ServerError as error:  # one of the two may still be the old one
            log.warning("%s; the certificate from before stays in use", error)
            return
        assert self.config.ssl is not None
        self.config.ssl.load_cert_chain(tls.cert, tls.key, password="")
        log.warning("a new certificate is in use, from %s", tls.cert)


def _marks(tls: Tls) -> list[Mark | None]:
    return [mark(path) for path in (tls.cert, tls.key) if path is not None]


class ApiServer:
    """Bound when constructed, so that a port that is taken is told before anything else starts."""

    def __init__(self, host: str, port: int, *, tls: Tls | None = None, proxies: Sequence[str] = ()) -> None:
        """`proxies`: see settings.Listen. Raises ServerError."""
        if tls is not None:
            _check(tls)
        self._socket = _bind(host, port)
        self.host, self.tls, self.proxies = host, tls, list(proxies)
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._stopping: threading.Event | None = None

    @property
    def url(self) -> str:
        """For clients on this machine."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://[{address}]:{self.port}" if ":" in address else f"{scheme}://{address}:{self.port}"

    @property
    def ca_file(self) -> Path | None:
        """What clients on this machine trust."""
        return None if self.tls is None else self.tls.cert

    @property
    def is_exposed(self) -> bool:
        """True if other machines can reach it: by the address that it is bound to, whatever its name."""
        return not is_loopback(self._socket.getsockname()[0])

    def dashboard(self) -> Dashboard | None:
        """As the environment has it. ValueError names the variable."""
        return Dashboard.from_environment(is_local=not self.is_exposed and not self.proxies)

    def start(self, store: JobStore, settings: Settings) -> None:
        app = create_app(store, settings)
        self._stopping = app.state.stopping
        config = uvicorn.Config(
            app,
            http=_Http,
            log_level="warning",
            log_config=None,  # its lines go where ours go
            access_log=False,
            lifespan="off",
            ws="websockets-sansio" if settings.dashboard is not None else "none",
            ws_max_size=_MAX_SOCKET_BYTES,
            ws_per_message_deflate=False,  # messages are small and many: the time is worth more than the bytes
            server_header=False,
            ssl_certfile=None if self.tls is None else self.tls.cert,
            ssl_keyfile=None if self.tls is None else self.tls.key,
            proxy_headers=bool(self.proxies),
            forwarded_allow_ips=self.proxies,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
        self._server = _Server(config, self.tls)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="api", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServerError("the API does not start; its log is above")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends streams, lets requests in flight finish, and returns when the port is free."""
        if self._server is not None and self._thread is not None and self._stopping is not None:
            self._stopping.set()
            self._server.should_exit = True
            self._thread.join(_LAST_ANSWERS_S + 5)
        self._socket.close()


def is_loopback(address: str) -> bool:
    """Of 127.0.0.0/8 or ::1, also as an IPv4 address in IPv6 writing."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback


def _check(tls: Tls) -> None:
    """Before anything starts, as uvicorn would read the files in its own thread."""
    try:
        # An empty password: a key that has one is refused, rather than asked for in a terminal that may not be there.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        files = " and ".join(str(path) for path in (tls.cert, tls.key) if path is not None)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ServerError(f"can't use {files} for TLS: {reason}") from None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart waits for old connections to fade
        try:
            bound.bind(address)
            bound.listen(128)  # two servers may bind with SO_REUSEADDR; only one may listen
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"can't listen on {host}:{port}: {reason}; choose another with --port") from None
    return bound
