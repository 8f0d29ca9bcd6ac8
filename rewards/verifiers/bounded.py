"""Decides what may take for ever or explode, in a child process that cannot hang its parent.

A policy writes things like `9^{9^{9^9}}`, on which the computer algebra below math-verify runs for ever
inside one C call. Neither a thread nor math-verify's own timeouts can stop that (they are signals, handled
between two bytecodes of the main thread only), but the kernel can: a timer whose default action is to end
the process. The child loads the libraries, which takes seconds, and forks a worker, which arms the timer
and answers. A worker that the timer ends is replaced at once, and the parent reads it as "not shown to be
so". Whatever else ends a worker ends the child, and the parent starts another for the next question. A
worker whose parent was killed ends by its timer, or at the end of its input.

This file is the parent's class and, run as a script, the child.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any, TextIO

_READY, _YES, _NO, _LATE = "ready\n", "yes\n", "no\n", "late\n"
_MEMORY_BYTES = 4 * 1024**3  # an expression that grows without end meets this before it troubles the machine
_SEEN = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})  # of our variables: no key
_LATE_KNOWN = 4096  # questions that took too long, a hash of each


class Bounded:
    """Asks a child process, started at the first question and again whenever it did not survive one.

    Not thread-safe: one question at a time. The child ends with this object.
    """

    def __init__(self, task: str, timeout_s: float) -> None:
        """`task` is one of TASKS; `timeout_s` bounds a question's processor time, so a busy machine changes nothing."""
        self._task = task
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[str] | None = None
        self._late: dict[bytes, None] = {}  # the oldest first

    def ask(self, **question: Any) -> bool:
        """The task's verdict on a question that JSON can carry; False where there is none in time.

        What took too long is not tried again: a policy that repeats it would spend every call's time on it.
        RuntimeError where nothing can be decided at all, for instance because a library does not import.
        """
        return self.verdict(**question) == _YES

    def verdict(self, **question: Any) -> str:
        """The same with the task's reason for a No, in a line: "no" and what it says. "late" where there is no time."""
        message = json.dumps([self._timeout_s, question]) + "\n"
        key = hashlib.sha256(message.encode()).digest()
        if key in self._late:
            return _LATE
        if self._child is None:
            self._child = self._start()
        verdict = _exchange(self._child, message)
        if verdict == _LATE:
            self._late[key] = None
            if len(self._late) > _LATE_KNOWN:
                del self._late[next(iter(self._late))]
        if not verdict:
            status, self._child = self._child.wait(), None
            self._end_child()
            if status >= 0:  # a signal (a crash, no memory) would be negative
                raise RuntimeError(f"the process that decides {self._task!r} failed; its error output says why")
        return verdict

    def _start(self) -> subprocess.Popen[str]:
        # -P: this file's folder holds a math.py, which must not hide the standard library's.
        command = [sys.executable, "-P", __file__, self._task]
        seen = {name: value for name, value in os.environ.items() if name in _SEEN or name.startswith("PYTHON")}
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=seen)
        self._end_child = weakref.finalize(self, _end, child)
        if _exchange(child, "") != _READY:
            raise RuntimeError(f"the process that decides {self._task!r} did not start; its error output says why")
        return child


def _exchange(child: subprocess.Popen[str], message: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(message)
    child.stdin.flush()
    return child.stdout.readline()


def _end(child: subprocess.Popen[str]) -> None:
    with child:  # closes the pipes and reaps it
        child.kill()


def _serve(task: str) -> None:
    """The child: loads what the task needs, and has a worker for as long as there are questions."""
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parser below prints warnings to stdout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # math-verify warns that no timeout is set, and here one is

    decide = TASKS[task]()
    verdicts.write(_READY)
    while (worker := os.fork()) > 0:
        _, status = os.waitpid(worker, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        if os.WTERMSIG(status) != signal.SIGPROF:
            os.kill(os.getpid(), signal.SIGKILL)  # perhaps no question was open, and an answer would be to the next one
        verdicts.write(_LATE)
    _answer(decide, verdicts)


def _answer(decide: Callable[..., bool | str], verdicts: TextIO) -> None:
    """The worker: a JSON question a line on stdin, a verdict a line on stdout."""
    for line in sys.stdin:
        timeout_s, question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        try:
            verdict = decide(**question)
        except ImportError:  # no question's fault
            raise
        except MemoryError:  # nor may what the libraries keep of it leave none for the next: as if time were over
            signal.raise_signal(signal.SIGPROF)
        except Exception:  # of a text that a library stumbles over, which is as far from being right as any
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(verdict, str):  # a No with its reason
            verdicts.write(f"no {verdict}\n")
        else:
            verdicts.write(_YES if verdict else _NO)


def _equal_answers() -> Callable[..., bool]:
    from math_verify import parse, verify  # only here: the parent stays light
    from math_verify.parser import LatexExtractionConfig
    from sympy import Float, Rational

    def exact(parsed: list[Any]) -> list[Any]:
        """Decimals as the fractions that they are, or 0.333333 would be 1/3."""
        return [
            part if isinstance(part, str) else part.xreplace({f: Rational(str(f)) for f in part.atoms(Float)})
            for part in parsed
        ]

    def same(gold: str, answer: str, prose: bool) -> bool:
        """Both are what stands inside a box, LaTeX or plain. With `prose` the answer is a line that contains one."""
        latex = [LatexExtractionConfig()]
        golds = parse(rf"\boxed{{{gold}}}", latex, parsing_timeout=None)
        if prose:
            answers = parse(answer, parsing_timeout=None)
        else:
            answers = parse(rf"\boxed{{{answer}}}", latex, parsing_timeout=None)
        return bool(verify(exact(golds), exact(answers), timeout_seconds=None, allow_set_relation_comp=True))

    same("x + 1", "1 + x", prose=False)  # what a first comparison loads, no worker has to load again
    return same


def _valid_json() -> Callable[..., bool]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    def valid(schema: Any, document: Any) -> bool:
        """A reference that leads nowhere, or round in circles, makes nothing valid; none is ever fetched."""
        try:
            Draft202012Validator(schema, registry=Registry()).validate(document)
        except (ValidationError, Unresolvable, RecursionError):
            return False
        return True

    return valid


def _json_schema() -> Callable[..., bool | str]:
    from jsonschema import Draft202012Validator, SchemaError

    def sound(schema: Any) -> bool | str:
        """Compiles the patterns too, which may take minutes."""
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path))
            return f"expected a JSON schema (draft 2020-12), found a fault at {place or 'its root'!r}"
        except RecursionError:
            return "expected a schema that nests less deep"
        return True

    sound({"properties": {"a": {"pattern": "a"}}})  # what a first check loads, no worker has to load again
    return sound


TASKS: dict[str, Callable[[], Callable[..., bool | str]]] = {
    "equal_answers": _equal_answers,
    "valid_json": _valid_json,
    "json_schema": _json_schema,
}


if __name__ == "__main__":
    _serve(sys.argv[1])
