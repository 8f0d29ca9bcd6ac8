"""One signed POST to an address that a user named: to public addresses alone, and to the very address that was checked.

A name is resolved once and all its addresses must be public; then we connect to one of them ourselves, so that a second
answer of its name server changes nothing. No proxy, no redirects, and an end after some seconds whatever the other side
or its name server does.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 5.0
_MAX_URL_CHARS = 2048
_READ_BYTES = 1024
_RESOLVING = 16  # at once: the system's resolver can't be told to give up, so its threads are counted
_resolvers = threading.BoundedSemaphore(_RESOLVING)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.88.99.0/24",  # relays of 6to4
        "::/96",  # IPv4 inside IPv6, in the old way
        "64:ff9b::/96",  # and by the ways of NAT64, Teredo and 6to4
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fec0::/10",
    )
)


class DeliveryError(Exception):
    """The other side did not take it; the text may be shown to the webhook's owner."""


def private_allowed(environment: Mapping[str, str] = os.environ) -> bool:
    """EQUIPOISE_WEBHOOK_PRIVATE=1: http, any port, and addresses inside the network too."""
    return environment.get("EQUIPOISE_WEBHOOK_PRIVATE") == "1"


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Its parts. Raises ValueError for a URL that is never delivered to, whatever its name resolves to."""
    if len(url) > _MAX_URL_CHARS or not url.isascii() or not url.isprintable() or re.search(r'[\s\\"<>]', url):
        raise ValueError(f"expected at most {_MAX_URL_CHARS} ASCII characters without spaces or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ({"https", "http"} if allow_private else {"https"}):
        raise ValueError("expected https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a user name is not taken")
    if parts.fragment or not parts.hostname:
        raise ValueError("expected a host and no fragment")
    if port is not None and port != 443 and not allow_private:
        raise ValueError("only port 443 is taken")
    if (literal := _literal(parts.hostname)) is not None:
        if not allow_private and not is_public(literal):
            raise ValueError("the address is not a public one")
        return parts
    if not _HOST.fullmatch(parts.hostname) or _NUMBER.fullmatch(parts.hostname.rstrip(".").rpartition(".")[2]):
        raise ValueError("expected a host name, or an address in its usual form")
    return parts


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """True for an address that belongs to one host of the internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.scope_id is not None:
            return False
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def addresses_of(host: str, port: int, *, allow_private: bool, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Where to connect for a host, resolved now. Raises DeliveryError unless all of it is public."""
    try:
        found = _resolved(host, port, timeout_s)
    except (OSError, UnicodeError):
        raise DeliveryError("the host name does not resolve") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise DeliveryError("the host name resolves to an address that is not public")
    return addresses


def signature(secret: str, delivery_id: str, at: int, body: bytes) -> str:
    """Of the header `webhook-signature`: v1 is the HMAC-SHA256 of `id.t.body` under the secret."""
    signed = f"{delivery_id}.{at}.".encode() + body
    return f"t={at},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def post(
    url: str, body: bytes, *, secret: str, delivery_id: str, allow_private: bool, timeout_s: float = TIMEOUT_S
) -> int:
    """Deliver once and return the status, which is 2xx. Raises DeliveryError."""
    try:
        parts = check_url(url, allow_private=allow_private)
    except ValueError as error:
        raise DeliveryError(str(error)) from None
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    deadline = time.monotonic() + timeout_s
    addresses = addresses_of(parts.hostname, port, allow_private=allow_private, timeout_s=timeout_s)
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.auto_open = 0  # it must never resolve the name itself
    connection.default_port = 443 if parts.scheme == "https" else 80  # then the Host header has no port
    headers = {
        "content-type": "application/json",
        "user-agent": "equipoise-webhooks",
        "webhook-id": delivery_id,
        "webhook-signature": signature(secret, delivery_id, int(time.time()), body),
        "connection": "close",
    }
    try:
        plain = _connect(addresses, port, deadline)
        spare = plain.dup()  # TLS takes the first one over
        guard = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [spare])  # a byte a second is too slow too
        guard.daemon = True
        guard.start()
        try:
            secured = parts.scheme == "https"
            connection.sock = (
                ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) if secured else plain
            )
            connection.request("POST", _target(parts), body, headers)
            response = connection.getresponse()
            if time.monotonic() >= deadline:  # cut inside its headers, which the parser takes for their end
                raise TimeoutError
            response.read(_READ_BYTES)
            status = response.status
        finally:
            guard.cancel()
            connection.close()
            plain.close()
            spare.close()
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() >= deadline
        raise DeliveryError(f"no answer in {timeout_s:g} s" if late else _said(error)) from None
    if not 200 <= status < 300:
        raise DeliveryError(f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else ""))
    return status


def _resolved(host: str, port: int, timeout_s: float) -> list[tuple[Any, ...]]:
    """What the system's resolver says. Raises DeliveryError where it takes too long, and OSError as it does."""
    resolvers = _resolvers
    if not resolvers.acquire(blocking=False):
        raise DeliveryError("too many host names are being resolved")
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)))
        except Exception as error:  # raised again by who waits for the answer
            answers.put(error)
        finally:
            resolvers.release()

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise DeliveryError("the host name did not resolve in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    last: OSError = OSError("no address")
    for address in addresses:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        try:
            return socket.create_connection((address, port), timeout=left_s)
        except OSError as error:
            last = error
    raise last


def _cut(connected: socket.socket) -> None:
    """Ends what another thread waits for on this connection."""
    with contextlib.suppress(OSError):  # over already
        connected.shutdown(socket.SHUT_RDWR)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _said(error: Exception) -> str:
    """A kind of failure, without what the other side sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its TLS certificate is not valid"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return "the connection failed" if isinstance(error, OSError) else "the answer is not HTTP"
