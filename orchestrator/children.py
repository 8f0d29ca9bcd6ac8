"""Short work in a process of its own: one question in, one answer out, and an end that nothing in it can put off.

For what strangers give us to parse or to run: a hang, a crash or a leak stays in the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

# What a child sees of our variables: where programs, packages, models and scratch files are, and how libraries behave.
_SEEN = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HF_HOME"}
)
_SEEN_BEGINNINGS = (
    "LC_", "PYTHON", "XDG_", "SSL_CERT_", "HF_HUB_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_", "OPENBLAS_",
    "CUDA_", "NVIDIA_",
)  # fmt: skip
_AT_ONCE = 4
_PATIENCE_S = 10.0  # for a place among those


class ChildError(RuntimeError):
    """The child ended without an answer."""


class ChildTimeout(ChildError):
    """The child had no answer in time, and was killed."""


class ChildBusy(ChildError):
    """Too many children are at work."""


class Places:
    """So many at once, and all but one of them for one owner. One that is free is for whoever has fewest."""

    def __init__(self, at_once: int) -> None:
        self._at_once, self._most = at_once, max(1, at_once - 1)
        self._taken: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, owner: str, *, patience_s: float) -> Iterator[None]:
        """A place for as long as the context lasts. Raises ChildBusy where there was none in time."""
        with self._changed:
            self._waiting[owner] += 1
            got = self._changed.wait_for(lambda: self._may(owner), timeout=patience_s)
            self._waiting -= Counter([owner])  # which also forgets those that have none
            self._changed.notify_all()
            if not got:
                raise ChildBusy
            self._taken[owner] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= Counter([owner])
                self._changed.notify_all()

    def _may(self, owner: str) -> bool:
        mine = self._taken[owner]
        fewest = min(self._taken[other] for other in self._waiting)
        return self._taken.total() < self._at_once and mine < self._most and mine <= fewest


_places = Places(_AT_ONCE)


def ask(module: str, question: Any, *, timeout_s: float, owner: str = "", sees: Collection[str] = ()) -> Any:
    """The answer of `python -m module` to a JSON document; it and what it started are killed after `timeout_s`.

    `owner` is for whom: owners share the places for children. The child sees no variable of ours but those of _SEEN and
    `sees`: no password, no key, no credentials of the cloud.
    """
    with _places.one(owner, patience_s=_PATIENCE_S):
        return _ask(module, question, timeout_s, sees)


def _is_seen(name: str) -> bool:
    return name in _SEEN or name.startswith(_SEEN_BEGINNINGS)


def _ask(module: str, question: Any, timeout_s: float, sees: Collection[str]) -> Any:
    command = [sys.executable, "-m", module]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name in sees or _is_seen(name)},
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
