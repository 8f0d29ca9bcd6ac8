"""Scores a step's rollouts under every objective, while others are still being written.

A step never has some objectives' scores and not others': a row that one of them cannot score is left out under all, and
above a reward's own limit, or where its process does not come back, there are no scores at all (RewardError).

Rows are cut into pieces by their place in the round alone, so that the order in which groups end changes nothing.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.base import RewardBatch, RewardDataError, RewardError
from rewards.host import Host, Incident, Piece, Share
from rewards.hosting import SINGLE, Hosting, LocalReplica, RewardFactory

_LOOK_EVERY_S = 1.0
_ENDED = 64  # rounds that nobody has asked for; more than a step has, with those that were begun ahead


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Every objective's scores of a round's rows: finite, or None where an objective does not apply.

    A row in `dropped` has None under all of them: it could not be scored, and counts for nothing.
    """

    scores: dict[str, list[float | None]]
    dropped: tuple[int, ...] = ()
    by_host: dict[str, int] = field(default_factory=dict)  # rows that each host could not score

    @property
    def rows(self) -> int:
        return len(next(iter(self.scores.values())))


class RewardPool:
    """The hosts of a job's objectives.

    consumes: rounds, which several threads may begin and finish
    waits for: every host, in parallel
    unblocked by: the last answer, or the first host that gives up
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        names = [name for host in hosts for name in host.heads]
        if not names:
            raise ValueError("a reward pool needs at least one objective")
        assert len(set(names)) == len(names), "every objective has one host"
        self._hosts = list(hosts)
        self._labels = _labels(hosts)
        self._incidents: list[Incident] = []
        self._telling = threading.Lock()
        self._ended: deque[_Ended] = deque(maxlen=_ENDED)

    def begin(self, counts: Sequence[int], *, before: Sequence[Scored] = (), purpose: str = "") -> Round:
        """A round of scoring: groups of `counts` rows, to be added as they end. `before`: earlier ones of the step.

        `purpose` is what `health` calls it.
        """
        return Round(self, self._hosts, counts, before, purpose)

    def score(self, batch: RewardBatch) -> Scored:
        """A batch that is there as a whole."""
        round_ = self.begin([1] * len(batch))
        for row in range(len(batch)):
            round_.add(row, batch.rows([row]))
        return round_.finish()

    def wait_ready(self, on_wait: Callable[[], None] = lambda: None, *, every: bool = False) -> None:
        """Returns when every reward can score, or with `every` when each replica of theirs can that starts at all.

        Raises RewardError, which names the one that can't be built.
        `on_wait` is called every second until then, and may raise.
        """
        for host in self._hosts:
            host.wait_ready(on_wait, every=every)

    @property
    def cost(self) -> float:
        """Of all calls since the start, whatever they were for."""
        return sum(host.cost for host in self._hosts)

    def told(self) -> list[Incident]:
        """What people should hear of since the last call."""
        with self._telling:
            incidents, self._incidents = self._incidents, []
        return incidents

    def health(self, purpose: str = "") -> dict[str, dict[str, float]]:
        """Figures of each reward over the rounds of a purpose, told once; those of none are forgotten.

        Steps ask each for its own: a round that was begun ahead may end before the step that it is of begins.
        """
        with self._telling:
            ended = [found for found in self._ended if found.purpose == purpose]
            self._ended = deque((found for found in self._ended if found.purpose not in ("", purpose)), maxlen=_ENDED)
        return {label: _health([(e.shares[i], e.gathered) for e in ended]) for i, label in enumerate(self._labels)}

    def close(self) -> None:
        """Ends every host. Safe to call twice."""
        for host in self._hosts:
            host.close()

    def ended(self, round_: Round) -> None:
        """Called by the round itself."""
        with self._telling:
            self._ended.append(_Ended(round_.purpose, round_.shares, round_.gathered))
            self._incidents += [incident for share in round_.shares for incident in share.incidents()]


@dataclass(frozen=True)
class _Ended:
    """What `health` needs of a round, without its rows."""

    purpose: str
    shares: Sequence[Share]
    gathered: float


class Round:
    """Groups that are scored as they are added."""

    def __init__(
        self, pool: RewardPool, hosts: Sequence[Host], counts: Sequence[int], before: Sequence[Scored], purpose: str
    ) -> None:
        self._pool = pool
        self.purpose = purpose
        self._changed = threading.Condition()
        self._counts = counts
        self._starts = [0, *itertools.accumulate(counts)]
        self._groups: list[RewardBatch | None] = [None] * len(counts)
        first = sum(scored.rows for scored in before)
        self._kept_before = first - sum(len(scored.dropped) for scored in before)
        self.rows = self._starts[-1]
        self.gathered = 0.0  # when all had been added
        self.shares = [
            Share(
                host,
                self.rows,
                first=first,
                left_out=sum(scored.by_host[host.objective] for scored in before),
                changed=self._changed,
            )
            for host in hosts
        ]
        self._parts: list[list[list[_Part]]] = [_parts(counts, self._starts, host) for host in hosts]

    def add(self, group: int, batch: RewardBatch) -> None:
        """A group that has ended. Pieces that are whole by it are scored from now on."""
        assert self._groups[group] is None
        assert len(batch) == self._starts[group + 1] - self._starts[group]
        self._groups[group] = batch
        for share, parts in zip(self.shares, self._parts, strict=True):
            for part in parts[group]:
                part.missing -= 1
            whole = [part for part in parts[group] if not part.missing]
            if whole:
                share.host.put([self._piece(share, part) for part in whole])

    def finish(self, groups: Sequence[int] | None = None, on_wait: Callable[[], None] = lambda: None) -> Scored:
        """Waits for the rest. Raises RewardError, of the first host that gave up; what is left is then dropped.

        `groups`: those that the round came to, in order, where it ended before others did; scores are of their rows.
        `on_wait` is called at least every second meanwhile, and may raise: who is then to `cancel` is the caller.
        """
        missing = [p for p, group in enumerate(self._groups) if group is None]
        assert missing == ([] if groups is None else sorted({*range(len(self._groups))} - {*groups})), (
            "every group is added before the round is finished"
        )
        if missing:
            self._forgo(missing)
        self.gathered = time.monotonic()
        with self._changed:
            while not all(share.over for share in self.shares) and not self._errors():
                self._changed.wait(_LOOK_EVERY_S)
                on_wait()
        errors = self._errors()
        self.cancel()
        self._pool.ended(self)
        if errors:
            raise errors[0]
        return self._scored()

    def cancel(self) -> None:
        """Nobody will ask for the scores."""
        for share in self.shares:
            if not share.over:
                share.stop()

    def _forgo(self, groups: Sequence[int]) -> None:
        """These will not come; what waits for them is scored without them."""
        rows = sum(self._counts[p] for p in groups)
        for share, parts in zip(self.shares, self._parts, strict=True):
            share.forgo(rows)
            waiting = {part.rows: part for p in groups for part in parts[p]}.values()
            begun = [part for part in waiting if any(self._groups[p] is not None for p in part.groups)]
            share.host.put([self._piece(share, part) for part in begun])

    def _errors(self) -> list[RewardError]:
        return [share.error for share in self.shares if share.error is not None]

    def _scored(self) -> Scored:
        bad = {row for share in self.shares for row in share.bad}
        dropped = sorted(bad)
        scores = {name: column for share in self.shares for name, column in share.scores.items()}
        there = [row for p, group in enumerate(self._groups) if group is not None for row in self._rows(p)]
        if dropped and len(dropped) == len(there) and not self._kept_before:
            worst = max(self.shares, key=lambda share: len(share.bad))
            text = "every row could not be scored under one objective or another"
            raise RewardDataError(worst.host.objective, text, tuple(dropped))
        for column in scores.values():
            for row in dropped:
                column[row] = None
        return Scored(
            scores={name: [column[row] for row in there] for name, column in scores.items()},
            dropped=tuple(i for i, row in enumerate(there) if row in bad),
            by_host={share.host.objective: len(share.bad) for share in self.shares},
        )

    def _rows(self, group: int) -> range:
        return range(self._starts[group], self._starts[group + 1])

    def _piece(self, share: Share, part: _Part) -> Piece:
        """Of the part's groups that are there."""
        there = [(group, self._rows(p)) for p in part.groups if (group := self._groups[p]) is not None]
        whole = RewardBatch.joined([group for group, _ in there])
        places = [row for _, rows in there for row in rows]
        mine = [i for i, row in enumerate(places) if row in part.rows]
        batch = whole if len(mine) == len(places) else whole.rows(mine)
        return Piece(share=share, rows=[places[i] for i in mine], batch=batch)


@dataclass
class _Part:
    """Rows that are scored together, and how many of the groups that they come from have not ended."""

    rows: range
    groups: range
    missing: int


def _parts(counts: Sequence[int], starts: Sequence[int], host: Host) -> list[list[_Part]]:
    """A host's pieces of a round, by each group that they have rows of."""
    found: list[list[_Part]] = [[] for _ in counts]
    for rows in pieces(counts, host.hosting.together(counts)):
        groups = range(bisect_right(starts, rows.start) - 1, bisect_left(starts, rows.stop))
        part = _Part(rows=rows, groups=groups, missing=len(groups))
        for p in groups:
            found[p].append(part)
    return found


def pieces(counts: Sequence[int], size: int) -> list[range]:
    """The rows of a round in order, at most `size` together; a group is cut only where it is larger than that."""
    found, first, last = [], 0, 0
    for count in counts:
        if last > first and last - first + count > size:
            found.append(range(first, last))
            first = last
        last += count
        while last - first > size:
            found.append(range(first, first + size))
            first += size
    return [*found, range(first, last)] if last > first else found


def local_pool(factories: Mapping[str, RewardFactory], hosting: Hosting | None = None) -> RewardPool:
    """Every objective in threads of this process: for tests, and for a few rows."""
    hosting = hosting or Hosting()
    hosts = [
        Host(name, {name: SINGLE}, [LocalReplica(factory) for _ in range(hosting.replicas)], hosting)
        for name, factory in factories.items()
    ]
    return RewardPool(hosts)


def _labels(hosts: Sequence[Host]) -> list[str]:
    """The rewards' names, with an objective's where several hosts have the same reward."""
    names = [host.reward for host in hosts]
    return [host.reward if names.count(host.reward) == 1 else f"{host.reward}:{host.objective}" for host in hosts]


def _health(shares: Sequence[tuple[Share, float]]) -> dict[str, Any]:
    """Seconds of calls and of waiting for a free replica, and how much of the work was done before rollouts ended."""
    calls = [call for share, _ in shares for call in share.calls]
    latencies = [call.ended - call.began for call in calls]
    busy = sum(_covered([(call.began, call.ended) for call in share.calls]) for share, _ in shares)
    shown = sum(
        _covered([(max(call.began, gathered), call.ended) for call in share.calls if call.ended > gathered])
        for share, gathered in shares
    )
    return {
        "calls": len(calls),
        "latency_s_p50": _quantile(latencies, 50),
        "latency_s_p95": _quantile(latencies, 95),
        "latency_s_max": max(latencies, default=0.0),
        "queue_s_p95": _quantile([call.waited for call in calls], 95),
        "score_busy_s": busy,
        "hidden_share": 1.0 - shown / busy if busy > 0 else 0.0,
        "retries": sum(share.retries for share, _ in shares),
        "restarts": sum(share.restarts for share, _ in shares),
        "failures": sum(share.failures.total() for share, _ in shares),
        "dropped": sum(len(share.bad) for share, _ in shares),
        "cost": sum(call.cost for call in calls),
    }


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def _quantile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
