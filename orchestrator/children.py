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
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

# What a child sees of our variables: where programs, packages, models and scratch files are, and how libraries behave.
_SEEN = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HF_HOME"}
)
_SEEN_BEGINNINGS = (
    "LC_", "PYTHON", "XDG_", "SSL_CERT_", "HF_HUB_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_", "OPENBLAS_",
    "CUDA_", "NVIDIA_", "REQUESTS_CA_", "CURL_CA_",
)  # fmt: skip
# How the hub is reached; each may have a user's name and password in it, and is seen without those alone.
_ADDRESSES = frozenset({"HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_AT_ONCE = 4
_PATIENCE_S = 10.0  # for a place among those
_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # where it has a limit, and ends all of us above it
_FOR_OURSELVES = 512 << 20
_LEAST = 192 << 20  # an honest file of prompts takes half of it; below, a small container would refuse them all
_LOOK_EVERY_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


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
    `sees`: no password, no key, no credentials of the cloud. In a container with a limit on memory it is killed above
    its share of that, before the kernel ends the container: ChildError, as for a crash.
    """
    with _places.one(owner, patience_s=_PATIENCE_S):
        return _ask(module, question, timeout_s, sees)


def _is_seen(name: str, value: str) -> bool:
    if name.upper() in _ADDRESSES:
        return "@" not in value
    return name in _SEEN or name.startswith(_SEEN_BEGINNINGS)


def _ask(module: str, question: Any, timeout_s: float, sees: Collection[str]) -> Any:
    command = [sys.executable, "-m", module]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name in sees or _is_seen(name, value)},
    ) as child:
        try:
            answer = _answer(child, json.dumps(question).encode(), time.monotonic() + timeout_s)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
            if isinstance(error, subprocess.TimeoutExpired):
                raise ChildTimeout(f"no answer within {timeout_s:g} s") from None
            raise
    try:
        return json.loads(answer)
    except ValueError:
        raise ChildError(f"{module} ended with status {child.returncode}") from None


def _answer(child: subprocess.Popen[bytes], question: bytes, until: float) -> bytes:
    """What it writes until it ends. Raises TimeoutExpired, and ChildError where it takes more memory than it may."""
    most = _most_bytes()
    sent: bytes | None = question
    while True:
        left_s = until - time.monotonic()
        try:
            return child.communicate(sent, timeout=left_s if most is None else min(left_s, _LOOK_EVERY_S))[0]
        except subprocess.TimeoutExpired:
            if most is None or time.monotonic() >= until:
                raise
        sent = None  # the first call goes on with it
        if _resident_bytes(child.pid) > most:
            raise ChildError(f"more than {most >> 20} MiB of memory")


def _most_bytes() -> int | None:
    """What one child may take, so that all of them fit into this container beside us, if it is large enough for that;
    None where there is no limit."""
    try:
        return max((int(_CONTAINER.read_text()) - _FOR_OURSELVES) // _AT_ONCE, _LEAST)
    except (OSError, ValueError):  # no container, or "max"
        return None


def _resident_bytes(process: int) -> int:
    """Of it and all that it started; what they share counts for each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * _PAGE + sum(_resident_bytes(int(child)) for child in started)
