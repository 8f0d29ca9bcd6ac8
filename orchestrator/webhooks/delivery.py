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
import os
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult

from rewards.addresses import TIMEOUT_S, AddressError, addresses_of, check_url

_READ_BYTES = 1024


class DeliveryError(Exception):
    """The other side did not take it; the text may be shown to the webhook's owner."""


def private_allowed() -> bool:
    """EQUIPOISE_WEBHOOK_PRIVATE=1: http, any port, and addresses inside the network too."""
    return os.environ.get("EQUIPOISE_WEBHOOK_PRIVATE") == "1"


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
    try:
        addresses = addresses_of(parts.hostname, port, allow_private=allow_private, timeout_s=timeout_s)
    except AddressError as error:
        raise DeliveryError(str(error)) from None
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
