"""Why a process that vLLM started ended: it tells its log alone, and whoever started it hears "see root cause above".

Its log is the output that it has from this process, which under Ray is a file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

OUTPUTS = (1, 2)  # vLLM's log, and what Python itself writes of an error that nobody took
LAST_BYTES = 2**17
LONGEST = 500
_ERROR = re.compile(r"(?:^|[\s\]])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): \S.*)$")
_HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING)\b")  # of a line of vLLM's log
_ELSEWHERE = re.compile("root cause|stack trace", re.IGNORECASE)  # an error that only points to another


def with_root_cause(told: object) -> str:
    """What was told, in one line, with the last error in the log that says more, if there is one."""
    found = " ".join(str(told).split())
    cause = _last_error()
    return found if cause is None or cause in found else f"{found} (last error in its log: {cause})"


def points_elsewhere(told: object) -> bool:
    return bool(_ELSEWHERE.search(str(told)))


def _last_error() -> str | None:
    for output in OUTPUTS:
        for line in reversed(_last_lines(output)):
            found = None if _HARMLESS.search(line) else _ERROR.search(line)
            if found and not points_elsewhere(found[1]):
                return found[1][:LONGEST]
    return None


def _last_lines(output: int) -> list[str]:
    try:
        if not stat.S_ISREG(os.fstat(output).st_mode):
            return []
        with Path(f"/proc/self/fd/{output}").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
            return [line.rstrip() for line in log.read().decode(errors="replace").splitlines()]
    except OSError:  # closed, or gone
        return []
