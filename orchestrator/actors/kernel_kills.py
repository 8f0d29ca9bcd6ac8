"""What the kernel does where memory runs out, which no process lives to tell."""

from __future__ import annotations

import re
from pathlib import Path

# A container's own count; else the machine's. Of control groups' first version there is none that both have.
COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def kernel_kills() -> int:
    """How many processes it has ended for want of memory: here, since this container or machine was started."""
    for path in COUNTERS:
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
