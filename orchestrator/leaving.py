"""A machine of a Ray cluster that goes down tells its drivers first: python -m orchestrator.leaving, as a preStop hook.

Ray's own end of a machine waits for what runs there, as long as RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, and then kills
it; a driver, which writes a checkpoint and hands its job back when it is asked to end, would not hear of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def tell_drivers(processes: Iterable[psutil.Process]) -> list[int]:
    """SIGTERM to those that are drivers. Returns their pids."""
    told = []
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended by itself, or is not ours
            if process.cmdline()[1:3] == ["-m", "orchestrator.driver"]:
                process.terminate()
                told.append(process.pid)
    return told


if __name__ == "__main__":
    print(f"told {len(tell_drivers(psutil.process_iter()))} drivers that this machine goes down")
