"""One reward on its replicas: pieces of batches go to whichever is free, and what fails is tried again within budgets.

    infrastructure   the piece goes to another replica, up to `attempts` tries in all; a replica that is gone is started
                     again, after a pause that doubles. What was late goes on in quarters: each may well be in time
    data             a piece that can't be scored is halved until single rows remain; a row that alone still can't be
                     scored is left out after `row_attempts` tries

The two budgets never count against each other. What exhausts one ends the host's share of the round.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import RewardBatch, RewardDataError, RewardDeadlineError, RewardError, RewardFailedError
from rewards.hosting import DATA, GONE, SINGLE, Answer, Failure, Hosting, Kind, Replica

LOOK_EVERY_S = 1.0
LISTED_ROWS = 100  # of those that were left out, in an event
_LATE_PARTS = 4  # by which 64 rows are alone before five tries are over


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that people should hear of, for an event of the job. It quotes no row."""

    type: str
    level: str
    data: dict[str, Any]


@dataclass(kw_only=True)
class Piece:
    """Rows that are scored in one call."""

    share: Share
    rows: list[int]  # of the round
    batch: RewardBatch
    attempts: int = 0  # that failed by infrastructure
    row_attempts: int = 0  # that failed by these very rows
    tried: set[int] = field(default_factory=set)  # replicas on which it failed
    is_part: bool = False  # of a piece that failed
    queued: float = field(default_factory=time.monotonic)

    @property
    def is_new(self) -> bool:
        return not (self.is_part or self.attempts or self.row_attempts)

    def joined(self, other: Piece) -> Piece:
        """Both as one; of the same share."""
        batch = RewardBatch.joined([self.batch, other.batch])
        return Piece(share=self.share, rows=[*self.rows, *other.rows], batch=batch, queued=self.queued)


@dataclass(frozen=True, kw_only=True)
class Call:
    """When a replica was at work, for how long the piece had waited, and what the answer cost; a lost one, nothing."""

    began: float
    ended: float
    waited: float
    cost: float = 0.0


class Share:
    """What one host does of one round of scoring: scores by objective, and the rows that have none."""

    def __init__(self, host: Host, rows: int, *, first: int, left_out: int, changed: threading.Condition) -> None:
        """`first` rows of the step came in earlier rounds, of which `left_out` could not be scored."""
        self.host = host
        self.rows = rows
        self.first = first
        self.left_out = left_out
        self.forgone = 0
        self.scores: dict[str, list[float | None]] = {name: [None] * rows for name in host.heads}
        self.bad: dict[int, str] = {}
        self.left = rows
        self.calls: list[Call] = []
        self.failures: Counter[Kind] = Counter()
        self.row_tries: Counter[int] = Counter()  # calls with a row alone or known as bad, by row
        self.retries = 0
        self.restarts = 0
        self.error: RewardError | None = None
        self.cancelled = False
        self._changed = changed

    @property
    def over(self) -> bool:
        return self.left == 0 or self.error is not None or self.cancelled

    @property
    def tolerated(self) -> int:
        """Rows that may be left out."""
        return self.host.hosting.tolerated(self.first + self.rows) - self.left_out

    def forgo(self, rows: int) -> None:
        """So many of the rows that nothing was said of will not come."""
        with self._changed:
            self.rows -= rows
            self.left -= rows
            self.forgone += rows
            self._judge()
            self._changed.notify_all()

    def take(self, piece: Piece, found: Answer, call: Call) -> list[Piece]:
        """Notes an answer; what is to be tried again comes back, the first first."""
        with self._changed:
            self.calls.append(call)
            if self.over:
                return []
            again = self._settle(piece, found)
            self._changed.notify_all()
            return again

    def charge(self, piece: Piece, failure: Failure) -> list[Piece]:
        """As `take`, where there was no replica to call."""
        with self._changed:
            self.failures[failure.kind] += 1
            again = [] if self.over else self._infrastructure(piece, failure)
            self._changed.notify_all()
            return again

    def stop(self, error: RewardError | None = None) -> None:
        """What is still to be scored is of no use."""
        with self._changed:
            self.error = self.error or error
            self.cancelled = True
            self._changed.notify_all()

    def _settle(self, piece: Piece, found: Answer) -> list[Piece]:
        failure = found.failure
        if failure is None:
            return self._scored(piece, found)
        self.failures[failure.kind] += 1
        self.restarts += failure.kind in GONE
        if failure.kind not in DATA:
            again = self._infrastructure(piece, failure, hopeless=failure.kind == "broken")
            return self._in_less(piece) if again and failure.kind == "deadline" else again
        if len(piece.rows) == 1:
            return self._row(piece, {piece.rows[0]: failure.text})
        return self._cut(piece, 2)

    def _scored(self, piece: Piece, found: Answer) -> list[Piece]:
        for i, row in enumerate(piece.rows):
            if i not in found.bad:
                for name, head in self.host.heads.items():
                    self.scores[name][row] = found.columns[head][i]
                self.left -= 1
        if not found.bad:
            return []
        self.failures["value"] += 1
        return self._row(
            self._part(piece, sorted(found.bad)), {piece.rows[i]: f"got {words}" for i, words in found.bad.items()}
        )

    def _row(self, piece: Piece, problems: Mapping[int, str]) -> list[Piece]:
        """Rows that are known to be the trouble: once more, or left out."""
        piece.row_attempts += 1
        self.row_tries.update(piece.rows)
        if piece.row_attempts < self.host.hosting.row_attempts:
            return [piece]
        self.bad |= problems
        self.left -= len(problems)
        self._judge()
        return []

    def _judge(self) -> None:
        """Whether more rows are bad than may be."""
        scored_before = self.first - self.left_out
        if self.bad and (len(self.bad) > self.tolerated or len(self.bad) == scored_before + self.rows):
            rows = tuple(self.first + row for row in sorted(self.bad))
            text = f"{len(rows)} of {self.first + self.rows} rows could not be scored ({_counted(self.problems)})"
            self.error = self.error or RewardDataError(self.host.objective, text, rows)

    def _infrastructure(self, piece: Piece, failure: Failure, *, hopeless: bool = False) -> list[Piece]:
        hosting = self.host.hosting
        piece.attempts += 1
        if piece.attempts >= hosting.attempts or hopeless:
            kind = RewardDeadlineError if failure.kind == "deadline" else RewardFailedError
            times = "" if piece.attempts == 1 else f" ({piece.attempts} times)"
            self.error = kind(self.host.objective, f"{failure.text}{times}")
            return []
        self.retries += 1
        return [piece]

    def _in_less(self, piece: Piece) -> list[Piece]:
        """A piece that was late, in parts that have no more tries left than it has."""
        parts = self._cut(piece, _LATE_PARTS)
        for part in parts:
            part.attempts, part.tried = piece.attempts, set(piece.tried)
        return parts

    def _cut(self, piece: Piece, parts: int) -> list[Piece]:
        rows = range(len(piece.rows))
        size = -(-len(rows) // parts)
        return [self._part(piece, rows[first : first + size]) for first in rows[::size]]

    def _part(self, piece: Piece, index: Sequence[int]) -> Piece:
        rows = [piece.rows[i] for i in index]
        batch = piece.batch.rows(index)
        return Piece(
            share=self, rows=rows, batch=batch, row_attempts=piece.row_attempts, queued=piece.queued, is_part=True
        )

    # ------------------------------------------------------------- what is told

    @property
    def problems(self) -> Counter[str]:
        return Counter(self.bad.values())

    def incidents(self) -> list[Incident]:
        """Failed, rows left out, recovered."""
        about = {"reward": self.host.reward, "objectives": list(self.host.heads)}
        infrastructure = {kind: count for kind, count in sorted(self.failures.items()) if kind not in DATA}
        told: list[Incident] = []
        if self.error is not None:
            about_error = {"message": str(self.error), "failures": infrastructure, "retries": self.retries}
            about_error |= self._left_out() if self.bad else {}
            told.append(Incident(type="reward.failed", level="error", data=about | about_error))
        elif self.bad:
            told.append(Incident(type="reward.rows_dropped", level="warning", data=about | self._left_out()))
        company = {kind: count for kind, count in sorted(self.failures.items()) if kind in ("raised", "length")}
        overcome = infrastructure | ({} if self.bad else company)  # of whole pieces, whose rows had scores in less
        if overcome and self.error is None and not self.cancelled:
            data = {"failures": overcome, "retries": self.retries, "restarts": self.restarts}
            told.append(Incident(type="reward.recovered", level="warning", data=about | data))
        return told

    def _left_out(self) -> dict[str, Any]:
        rows = [self.first + row for row in sorted(self.bad)]
        return {
            **(
                {} if self.forgone else {"rows": rows[:LISTED_ROWS]}
            ),  # else they are places among others that did not come
            "count": len(rows),
            "of": self.first + self.rows,
            "problems": dict(self.problems),
            "attempts": max(self.row_tries[row] for row in self.bad),
        }


def _counted(problems: Counter[str]) -> str:
    return ", ".join(f"{words}: {count}" for words, count in problems.most_common(3))


class Host:
    """One reward on its replicas, a thread for each of them.

    consumes: pieces, the first first; those that failed come before new ones
    waits for: an answer at most `deadline_s`, a start at most `start_s`
    unblocked by: `close`
    """

    def __init__(
        self, reward: str, heads: Mapping[str, str], replicas: Sequence[Replica], hosting: Hosting | None = None
    ) -> None:
        """`heads`: which of the reward's columns each objective gets; SINGLE where it has only one."""
        assert heads
        assert replicas
        self.reward = reward
        self.heads = dict(heads)
        self.objective = next(iter(heads))  # names the reward in an error
        self.hosting = hosting or Hosting()
        self._columns = tuple(dict.fromkeys(heads.values()))
        self._replicas = list(replicas)
        self._queue: deque[Piece] = deque()
        self._up: set[int] = set()
        self._failures = [0] * len(replicas)  # in a row
        self._broken: Failure | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self.cost = 0.0  # of all calls since the start, also of those whose scores nobody waited for
        self._threads = [
            threading.Thread(target=self._run, args=(i,), name=f"reward {reward} {i}", daemon=True)
            for i in range(len(replicas))
        ]
        for thread in self._threads:
            thread.start()

    def put(self, pieces: Sequence[Piece], *, first: bool = False) -> None:
        with self._changed:
            if first:
                self._queue.extendleft(reversed(pieces))
            else:
                self._queue.extend(pieces)
            self._changed.notify_all()

    def wait_ready(self, on_wait: Callable[[], None] = lambda: None, *, every: bool = False) -> None:
        """Returns when a replica can score, or with `every` when none is still starting.

        RewardFailedError where the reward can't be built, or does not start.
        `on_wait` is called every second until then, and may raise.
        """
        while True:
            with self._changed:
                if not self._has_started(every):
                    self._changed.wait(LOOK_EVERY_S)
                if self._has_started(every):
                    if not self._up and self._broken is not None:
                        raise RewardFailedError(self.objective, self._broken.text)
                    return
            on_wait()

    def _has_started(self, every: bool) -> bool:
        if not every or self._hopeless():
            return bool(self._up) or self._hopeless()
        return all(i in self._up or failed >= self.hosting.attempts for i, failed in enumerate(self._failures))

    def _hopeless(self) -> bool:
        broken = self._broken is not None and self._broken.kind == "broken"
        return broken or min(self._failures) >= self.hosting.attempts

    def close(self) -> None:
        """Ends the replicas. Safe to call twice."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        for replica in self._replicas:
            replica.kill()

    def _run(self, i: int) -> None:
        piece = None
        try:
            while not self._closing.is_set():
                if i in self._up or self._start(i):
                    piece = self._next(i)
                    if piece is not None:
                        self._call(i, piece)
        except Exception as error:  # ours: nobody may wait for ever for what a thread has dropped
            if piece is not None:
                piece.share.stop(RewardFailedError(self.objective, f"{type(error).__name__}: {error}"))
            raise

    def _start(self, i: int) -> bool:
        if self._closing.wait(self.hosting.pause_s(self._failures[i])):
            return False
        failure = self._replicas[i].start(self.hosting.start_s)
        if self._closing.is_set():  # meanwhile, so that `close` may have missed it
            self._replicas[i].kill()
            return False
        with self._changed:
            self._broken = failure
            if failure is None:
                self._up.add(i)
            else:
                self._failures[i] += 1
            self._changed.notify_all()
            waits = failure is not None and not self._up and self._queue
            piece = self._queue.popleft() if waits else None
        if piece is not None and failure is not None:
            self.put(piece.share.charge(piece, failure), first=True)
        return failure is None

    def _next(self, i: int) -> Piece | None:
        """The first piece that is for this replica; one that failed on it is left to the others that are up."""
        with self._changed:
            while not self._closing.is_set():
                for piece in list(self._queue):
                    if piece.share.over:
                        self._queue.remove(piece)
                    elif i not in piece.tried or self._up <= piece.tried:
                        self._queue.remove(piece)
                        return self._with_more(piece)
                self._changed.wait()
            return None

    def _with_more(self, piece: Piece) -> Piece:
        """The piece, with those that wait behind it where their scores are the same in one call: a call has its cost.

        What has failed before is called by itself, and everything once a call of the round was late.
        """
        if piece.share.failures["deadline"]:
            return piece
        while self._queue and piece.is_new and (after := self._queue[0]).is_new and after.share is piece.share:
            if not self.hosting.merges(len(piece.rows) + len(after.rows)):
                break
            piece = piece.joined(self._queue.popleft())
        return piece

    def _call(self, i: int, piece: Piece) -> None:
        began = time.monotonic()
        found = self._replicas[i].call(piece.batch, self._columns, self.hosting.deadline_s)
        call = Call(began=began, ended=time.monotonic(), waited=began - piece.queued, cost=found.cost)
        with self._changed:
            self.cost += found.cost
        failure = found.failure
        lost = failure is not None and failure.kind not in DATA
        self._failures[i] = self._failures[i] + 1 if lost else 0
        gone = failure is not None and failure.kind in GONE
        if gone:
            with self._changed:
                self._up.discard(i)
            self._replicas[i].kill()
        if lost:
            piece.tried.add(i)
        self.put(piece.share.take(piece, found, call), first=True)
        if lost and not gone:  # a connection: the process is all right
            self._closing.wait(self.hosting.pause_s(self._failures[i]))


__all__ = ["SINGLE", "Call", "Host", "Incident", "Piece", "Share"]
