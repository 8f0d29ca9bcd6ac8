"""Decides whether two mathematical answers are the same, in a child process that cannot hang its parent.

A policy writes things like `9^{9^{9^9}}`, on which the computer algebra below math-verify runs for ever
inside one C call. Neither a thread nor math-verify's own timeouts can stop that (they are signals, handled
between two bytecodes of the main thread only), but the kernel can: the child arms a timer whose default
action is to end the process. The parent reads that as "not shown to be equal" and starts another child for
the next question. A child whose parent was killed ends the same way, or at the end of its input.

This file is the parent's class and, run as a script, the child.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import weakref
from typing import Any

_READY, _SAME, _DIFFERENT = "ready\n", "same\n", "different\n"
_MEMORY_BYTES = 4 * 1024**3  # an expression that grows without end meets this before it troubles the machine


class Equivalence:
    """Asks a child process, started at the first question and again whenever it did not survive one.

    Not thread-safe: one question at a time. The child ends with this object.
    """

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s` bounds the processor time of a question, so that a busy machine changes no verdict."""
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[str] | None = None

    def same(self, gold: str, answer: str, *, prose: bool = False) -> bool:
        """True where math-verify finds `answer` equal to `gold`; False where it does not, or not in time.

        Both are what stands inside a box, LaTeX or plain. With `prose` the answer is a line that contains
        one. RuntimeError where nothing can be compared at all, for instance because math-verify does not
        import.
        """
        if self._child is None:
            self._child = self._start()
        question = {"gold": gold, "answer": answer, "prose": prose, "timeout_s": self._timeout_s}
        verdict = _exchange(self._child, json.dumps(question) + "\n")
        if not verdict:
            status, self._child = self._child.wait(), None
            self._end_child()
            if status >= 0:  # a signal (the timer, a crash, no memory) would be negative
                raise RuntimeError("the process that compares answers failed; its error output says why")
        return verdict == _SAME

    def _start(self) -> subprocess.Popen[str]:
        # -P: this file's folder holds a math.py, which must not hide the standard library's.
        command = [sys.executable, "-P", __file__]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._end_child = weakref.finalize(self, _end, child)
        if _exchange(child, "") != _READY:
            raise RuntimeError("the process that compares answers did not start; its error output says why")
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


def _serve() -> None:
    """The child: a JSON question a line on stdin, a verdict a line on stdout."""
    verdicts = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parser below prints warnings to stdout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # it warns that no timeout is set, and here one is

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
        latex = [LatexExtractionConfig()]
        golds = parse(rf"\boxed{{{gold}}}", latex, parsing_timeout=None)
        if prose:
            answers = parse(answer, parsing_timeout=None)
        else:
            answers = parse(rf"\boxed{{{answer}}}", latex, parsing_timeout=None)
        return bool(verify(exact(golds), exact(answers), timeout_seconds=None, allow_set_relation_comp=True))

    verdicts.write(_READY)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, question.pop("timeout_s"))
        verdict = same(**question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdicts.write(_SAME if verdict else _DIFFERENT)


if __name__ == "__main__":
    _serve()
