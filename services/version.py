"""Which Equipoise this is, as a server says on each answer to a valid key and its clients compare."""

from __future__ import annotations

import functools
import importlib.metadata

HEADER = "equipoise-version"


@functools.cache
def version() -> str:
    """Empty where it runs without being installed."""
    try:
        return importlib.metadata.version("equipoise")
    except importlib.metadata.PackageNotFoundError:
        return ""


def difference(server: str) -> str | None:
    """A line for a person where the server's major or minor version is another one; either may be unknown."""
    own = version()
    if not server or not own or server.split(".")[:2] == own.split(".")[:2]:
        return None
    return f"the server has Equipoise {server[:32]!r}, and this is {own}: what the one has, the other may not know"
