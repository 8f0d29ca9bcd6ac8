"""Whether a file is another one than before, cheaply enough to ask every second."""

from __future__ import annotations

from pathlib import Path

Mark = tuple[int, int, int]


def mark(path: Path) -> Mark | None:
    """What changes when the file is written or replaced; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
