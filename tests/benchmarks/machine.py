"""What a figure was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """Date, processor, cores and memory, for the results' head."""
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }


class PeakMemory:
    """The largest proportional memory (PSS) of a tree of processes, GiB, sampled while `watch` is called."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.peak_gib = 0.0

    def sample(self) -> None:
        total = 0
        try:
            for process in [self.root, *self.root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        self.peak_gib = max(self.peak_gib, total / 2**30)
