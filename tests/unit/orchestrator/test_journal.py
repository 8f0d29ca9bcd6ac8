"""The journal waits for a store that is away, and never for a lease that is lost."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clock import Clock
from orchestrator.journal import StoreJournal, Wishes, figures_digest
from orchestrator.state.records import SteeringEntry
from orchestrator.state.states import JobStatus
from orchestrator.state.store import Fenced, IllegalTransition, Lease, StoreUnavailable
from orchestrator.steering import Steering
from orchestrator.storage.checkpoints import Manifest

LEASE = Lease(job_id="job", fence=3, nonce="n")
RECORD = {"step": 4, "total": 0.5, "weights": {"applied": {"a": 1.0}}, "timings_s": {"step": 1.5}}
MANIFEST = Manifest(step=4, fence=3, files={}, digest="d")
STEERING = Steering(mode="auto", blend=0.5, weights={"a": 1.0}, bounds={"a": (0.0, 1.0)})
ENTRY = SteeringEntry(version=2, effective_step=5, at=0.0, by="", change={}, state=STEERING.model_dump(mode="json"))


class FakeStore:
    """Records every call; the first ones raise what they are told to."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            if self.errors:
                raise self.errors.pop(0)
            return ENTRY if name == "steering_at" else None

        return call


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeping moves the clock at once."""
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(naps))
    return naps


def journal(store: FakeStore, **options: Any) -> StoreJournal:
    return StoreJournal(store, LEASE, Wishes, **options)  # type: ignore[arg-type]


CALLS: dict[str, Callable[[StoreJournal], Any]] = {
    "steering": lambda j: j.steering(4),
    "commit": lambda j: j.commit(RECORD),
    "event": lambda j: j.event("x", level="warning", a=1),
    "progress": lambda j: j.progress(stage="training"),
    "front": lambda j: j.front({"points": []}),
    "checkpoint": lambda j: j.checkpoint(Path("p"), MANIFEST),
    "checkpoints": lambda j: j.checkpoints({4: {"on_front": True}}, [2]),
    "request_pause": lambda j: j.request_pause("paused: kl is 2"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_waits_for_a_store_that_is_away(slept: list[float], name: str) -> None:
    store = FakeStore(*[StoreUnavailable("away")] * 3)
    CALLS[name](journal(store))
    assert len(store.calls) == 4
    assert len({repr(call) for call in store.calls}) == 1  # the same call again
    assert slept == [0.2, 0.4, 0.8]


@pytest.mark.usefixtures("slept")
def test_a_run_is_parked_while_it_waits() -> None:
    found, seen = journal(FakeStore()), []
    found.clock = Clock()
    with found.clock("commit"):
        waits = iter([StoreUnavailable("away"), None])

        def call() -> None:
            seen.append(found.at())
            if error := next(waits):
                raise error

        found.patiently(call)
        seen.append(found.at())
    assert [at and at[0] for at in seen] == ["commit", "parked", "commit"]


@pytest.mark.parametrize("name", CALLS)
def test_every_call_gives_up_after_its_patience(slept: list[float], name: str) -> None:
    store = FakeStore(*[StoreUnavailable("away")] * 1000)
    with pytest.raises(StoreUnavailable):
        CALLS[name](journal(store, patience_s=60))
    assert 60 < sum(slept) <= 65
    assert max(slept) == 5.0


@pytest.mark.parametrize("name", CALLS)
def test_a_lost_lease_is_not_waited_for(slept: list[float], name: str) -> None:
    store = FakeStore(Fenced("another"))
    with pytest.raises(Fenced):
        CALLS[name](journal(store))
    assert len(store.calls) == 1
    assert slept == []


def test_what_reaches_the_store() -> None:
    store = FakeStore()
    for call in CALLS.values():
        call(journal(store))
    assert store.calls[2][2].pop("token")
    assert store.calls == [
        ("steering_at", ("job", 4), {}),
        ("commit", (LEASE,), {"step": 4, "digest": figures_digest(RECORD), "record": RECORD}),
        ("event", ("job", "x", {"a": 1}, LEASE), {"level": "warning", "once": None}),
        ("set_progress", (LEASE, {"stage": "training"}), {}),
        ("set_front", (LEASE, {"points": []}), {}),
        ("register_checkpoint", (LEASE,), {"step": 4, "path": "p", "digest": "d"}),
        ("update_checkpoints", (LEASE, {4: {"on_front": True}}), {"removals": [2]}),
        ("request_pause", ("job",), {"why": "paused: kl is 2"}),
    ]


def test_the_steering_in_force_at_a_step() -> None:
    assert journal(FakeStore()).steering(5) == (2, STEERING)


def test_what_a_job_cost_goes_on_from_its_earlier_runs() -> None:
    store, kept = FakeStore(), [2.0]
    store.job = lambda _: SimpleNamespace(cost=kept[-1], gpu_hours=1.5)  # type: ignore[attr-defined]
    store.set_cost = lambda _, cost: kept.append(cost)  # type: ignore[attr-defined]
    made = journal(store)
    assert [made.spent(cost)["cost"] for cost in (0.0, 0.25, 0.25, 1.0)] == [2.0, 2.25, 2.25, 3.0]
    assert kept == [2.0, 2.25, 3.0]  # written where it changed
    assert made.spent(1.0) == {"cost": 3.0, "gpu_hours": 1.5}


def test_a_pause_that_comes_after_a_cancel_is_no_error() -> None:
    journal(FakeStore(IllegalTransition(JobStatus.CANCELLING, JobStatus.PAUSED))).request_pause("")


def test_wishes_are_read_each_time() -> None:
    wishes = [Wishes(), Wishes(cancel=True)]
    made = StoreJournal(FakeStore(), LEASE, lambda: wishes.pop(0))  # type: ignore[arg-type]
    assert [made.wishes().cancel, made.wishes().cancel] == [False, True]


def test_a_pause_that_the_run_itself_asks_for_is_heard_at_once() -> None:
    made = journal(FakeStore())
    before = made.wishes().pause
    made.request_pause("")
    assert (before, made.wishes().pause) == (False, True)


# ----------------------------------------------------------------------- digest


def test_the_digest_ignores_the_clock_and_the_order_of_keys() -> None:
    digest = figures_digest(RECORD)
    assert figures_digest({**RECORD, "timings_s": {"step": 9.9}}) == digest
    assert figures_digest({key: value for key, value in RECORD.items() if key != "timings_s"}) == digest
    assert figures_digest(dict(reversed(RECORD.items()))) == digest
    assert len(digest) == 64


@given(st.floats(allow_nan=False).filter(lambda value: value != 0.5))
def test_the_digest_changes_with_every_figure(value: float) -> None:
    digest = figures_digest(RECORD)
    assert figures_digest({**RECORD, "total": value}) != digest
    assert figures_digest({**RECORD, "weights": {"applied": {"a": 1.0, "b": value}}}) != digest
    assert figures_digest({**RECORD, "extra": value}) != digest
