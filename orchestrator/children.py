"""Short work in a process of its own: one question in, one answer out, and an end that nothing in it can put off.

For what strangers give us to parse or to run: a hang, a crash or a leak stays in the child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from typing import Any

_AT_ONCE = 4
_PATIENCE_S = 10.0  # for a place among those
_slots = threading.BoundedSemaphore(_AT_ONCE)


class ChildError(RuntimeError):
    """The child ended without an answer."""


class ChildTimeout(ChildError):
    """The child had no answer in time, and was killed."""


class ChildBusy(ChildError):
    """Too many children are at work."""


def ask(module: str, question: Any, *, timeout_s: float, sees: Collection[str] = ()) -> Any:
    """The answer of `python -m module` to a JSON document; it and what it started are killed after `timeout_s`.

    The child sees no variable of ours but where packages and models are, and `sees`: no password, no key.
    """
    if not _slots.acquire(timeout=_PATIENCE_S):
        raise ChildBusy
    try:
        return _ask(module, question, timeout_s, sees)
    finally:
        _slots.release()


def _ask(module: str, question: Any, timeout_s: float, sees: Collection[str]) -> Any:
    command = [sys.executable, "-m", module]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("EQUIPOISE_") or name in sees},
    ) as child:
        try:
            answer, _ = child.communicate(json.dumps(question).encode(), timeout=timeout_s)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
            if isinstance(error, subprocess.TimeoutExpired):
                raise ChildTimeout(f"no answer within {timeout_s:g} s") from None
            raise
    try:
        return json.loads(answer)
    except ValueError:
        raise ChildError(f"{module} ended with status {child.returncode}") from None
