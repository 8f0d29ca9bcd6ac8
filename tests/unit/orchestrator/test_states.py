"""The transition table, as properties of the graph it draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import IllegalTransition
from orchestrator.state.states import (
    CANCEL,
    PAUSE,
    RESUME,
    TRANSITIONS,
    JobStatus,
    check_transition,
    is_terminal,
    sources,
)

statuses = st.sampled_from(JobStatus)


def _reachable(start: JobStatus) -> set[JobStatus]:
    seen, todo = {start}, [start]
    while todo:
        new = TRANSITIONS[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def test_the_table_covers_every_status() -> None:
    assert set(TRANSITIONS) == set(JobStatus)


def test_terminal_statuses() -> None:
    assert {s for s in JobStatus if is_terminal(s)} == {"succeeded", "failed", "cancelled"}


@given(statuses, statuses)
def test_check_agrees_with_the_table(current: JobStatus, wanted: JobStatus) -> None:
    if wanted in TRANSITIONS[current]:
        check_transition(current, wanted)
        assert current in sources(wanted)
    else:
        with pytest.raises(IllegalTransition) as caught:
            check_transition(current, wanted)
        assert (caught.value.current, caught.value.wanted) == (current, wanted)
        assert current not in sources(wanted)


@given(st.lists(statuses, max_size=30))
def test_no_walk_leaves_a_terminal_status(wishes: list[JobStatus]) -> None:
    status, ended = JobStatus.VALIDATING, None
    for wish in wishes:
        try:
            check_transition(status, wish)
        except IllegalTransition:
            continue
        status = wish
        if is_terminal(status):
            assert ended is None
            ended = status
    assert ended is None or status is ended


@pytest.mark.parametrize("status", JobStatus)
def test_every_status_can_come_to_an_end(status: JobStatus) -> None:
    assert any(is_terminal(s) for s in _reachable(status))


@pytest.mark.parametrize("status", JobStatus)
def test_every_status_is_reached_by_some_job(status: JobStatus) -> None:
    assert status in _reachable(JobStatus.VALIDATING)


@pytest.mark.parametrize("moves", [CANCEL, PAUSE, RESUME], ids=["cancel", "pause", "resume"])
def test_requests_follow_the_table(moves: dict[JobStatus, JobStatus]) -> None:
    for current, wanted in moves.items():
        if current != wanted:
            check_transition(current, wanted)


def test_every_living_job_can_be_cancelled() -> None:
    assert {s for s in JobStatus if not is_terminal(s)} <= set(CANCEL)
