"""Ports for servers that are told theirs, below those that the system gives to who asks for none.

One of the latter may be taken by any outgoing connection before its server binds it, or while that starts again.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 20_000  # Ray's workers take those below
SYSTEMS = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 100


def free_port() -> int:
    """By chance, so that tests in other processes choose others."""
    last = int(SYSTEMS.read_text().split()[0]) if SYSTEMS.exists() else FIRST
    for port in random.SystemRandom().sample(range(FIRST, max(last, FIRST + TRIES)), TRIES):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of {TRIES} is free")
