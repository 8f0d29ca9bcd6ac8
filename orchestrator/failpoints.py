"""Places where a test may let a process die, stop or stumble. Off unless EQUIPOISE_FAILPOINTS says otherwise.

    EQUIPOISE_FAILPOINTS="after_commit=kill@3,before_commit=sleep:2"

kill: SIGKILL to this process; stop: SIGSTOP; raise: `FailpointError`; sleep:S seconds. @N: at the N-th time that the
place is reached, else the first; each acts once. A mistake in the variable is a `ValueError` when the process starts.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter

VARIABLE = "EQUIPOISE_FAILPOINTS"

# In the order in which a job comes by.
POINTS = {
    "after_claim": "the lease is ours, nothing is built",
    "before_sync": "the learner has new weights, the engines the old ones",
    "after_sync": "the engines have the new weights, the step is not committed",
    "before_commit": "the step is done, the ledger does not know",
    "after_commit": "the ledger has the step, nobody here has heard so",
    "checkpoint_begun": "its hidden directory is there, and empty",
    "checkpoint_halfway": "the learner's state is written, its policy is not; in the process of the learner",
    "checkpoint_filled": "all its files are written, none is flushed, there is no manifest",
    "checkpoint_sealed": "flushed with its manifest, still hidden",
    "checkpoint_placed": "in sight on disk, not registered",
    "checkpoint_registered": "the ledger restarts there, older ones are not removed yet",
    "before_finish": "all work is done, the job still counts as running",
    "after_finish": "the job has its end, the process goes on",
}
_ACTION = re.compile(r"(?P<name>\w+)=(?P<act>kill|stop|raise|sleep:(?P<seconds>\d+(\.\d+)?))(@(?P<nth>[1-9]\d*))?")


class FailpointError(RuntimeError):
    """What `raise` raises."""


class Failpoints:
    """What shall happen where."""

    def __init__(self, text: str) -> None:
        self._due: dict[tuple[str, int], re.Match[str]] = {}  # (place, n-th time) -> what happens
        self._names: set[str] = set()
        self._reached: Counter[str] = Counter()
        for word in text.split(",") if text.strip() else ():
            found = _ACTION.fullmatch(word.strip())
            if found is None:
                raise ValueError(f"{VARIABLE}: '{word}' is not NAME=kill|stop|raise|sleep:SECONDS, with @N or without")
            if found["name"] not in POINTS:
                raise ValueError(f"{VARIABLE}: no failpoint '{found['name']}'; there are {', '.join(POINTS)}")
            self._due[found["name"], int(found["nth"] or 1)] = found
            self._names.add(found["name"])

    def reach(self, name: str) -> None:
        if name not in self._names:
            return
        self._reached[name] += 1
        due = self._due.get((name, self._reached[name]))
        if due is None:
            return
        if due["act"] == "raise":
            raise FailpointError(f"failpoint {name}")
        if due["seconds"]:
            time.sleep(float(due["seconds"]))
        else:
            os.kill(os.getpid(), signal.SIGKILL if due["act"] == "kill" else signal.SIGSTOP)


_points = Failpoints(os.environ.get(VARIABLE, ""))


def reach(name: str) -> None:
    """We are at the place `name`, one of `POINTS`."""
    _points.reach(name)
