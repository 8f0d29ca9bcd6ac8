"""Which addresses of a network we connect to, for whatever calls a server that somebody else named.

Here because both rewards (judges) and orchestrator (webhooks) may import it. A name is resolved once, all its
addresses must be allowed, and the caller connects to one of them itself: a second answer of a name server then changes
nothing.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
from typing import Any
from urllib.parse import SplitResult, urlsplit

TIMEOUT_S = 5.0
_MAX_URL_CHARS = 2048
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
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "::/128",
        "169.254.0.0/16",  # link-local; clouds give a machine's credentials away here
        "fe80::/10",
        "100.100.100.200/32",  # and at these, which are otherwise ordinary
        "168.63.129.16/32",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "224.0.0.0/4",
        "ff00::/8",
    )
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressError(Exception):
    """A host that can't be found or that may not be called; the text may be shown to whoever named it."""


class ForbiddenAddressError(AddressError):
    """It may not be called."""


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Its parts. Raises ValueError for a URL that is never called, whatever its name resolves to."""
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
        if not _is_allowed(literal, allow_private=allow_private):
            raise ValueError("the address is not a public one")
        return parts
    if not _HOST.fullmatch(parts.hostname) or _NUMBER.fullmatch(parts.hostname.rstrip(".").rpartition(".")[2]):
        raise ValueError("expected a host name, or an address in its usual form")
    return parts


def is_public(address: Address) -> bool:
    """True for an address that belongs to one host of the internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.scope_id is not None:
            return False
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _is_allowed(address: Address, *, allow_private: bool) -> bool:
    if not allow_private:
        return is_public(address)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not any(address in network for network in _NEVER if network.version == address.version)


def addresses_of(host: str, port: int, *, allow_private: bool, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Where to connect for a host, resolved now. Raises AddressError unless all of it is public.

    With `allow_private` it may be inside the network too, but never link-local or a cloud's metadata service.
    """
    try:
        found = _resolved(host, port, timeout_s)
    except (OSError, UnicodeError):
        raise AddressError("the host name does not resolve") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(_is_allowed(ipaddress.ip_address(address), allow_private=allow_private) for address in addresses):
        raise ForbiddenAddressError("the host name resolves to an address that is not public")
    return addresses


def _resolved(host: str, port: int, timeout_s: float) -> list[tuple[Any, ...]]:
    """What the system's resolver says. Raises AddressError where it takes too long, and OSError as it does."""
    resolvers = _resolvers
    if not resolvers.acquire(blocking=False):
        raise AddressError("too many host names are being resolved")
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
        raise AddressError("the host name did not resolve in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
