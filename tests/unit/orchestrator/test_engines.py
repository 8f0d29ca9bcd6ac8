"""The pool of engines over stand-ins: who gets what, and what becomes of a batch whose engines fail."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ActorLost
from orchestrator.rollouts import engines
from orchestrator.rollouts.engine_health import MOVES, Health, Place, recorded
from orchestrator.rollouts.engines import EngineError
from policies.rollout import StaleEngineError
from policies.types import Rollout
from tests.engine_fakes import Fleet, StandIn, requests_of
from tests.fault_figures import tell
from tests.loop_fakes import Run, make_spec, start


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LOOK_EVERY_S", 0.01)


def seeds(rollouts: list[Rollout]) -> list[str]:
    return [rollout.text for rollout in rollouts]


def calls(fleet: Fleet, number: int) -> list[list[int]]:
    """Prompts of each call at a place."""
    return [[request.prompt_tokens[1] for request in call] for call in fleet.asked.get(number, [])]


def types(pool: engines.EnginePool) -> list[str]:
    return [incident.type for incident in pool.told()]


# ------------------------------------------------------------------ the states


def test_no_way_leads_from_retired_to_healthy_but_through_new_weights() -> None:
    """T8's rule, of the table itself: every path from retired passes stale, after which only a refit leads on."""
    reached = {Health.RETIRED}
    while True:
        further = reached | {to for state in reached - {Health.STALE} for to in MOVES[state]}
        if further == reached:
            break
        reached = further
    assert reached == {Health.RETIRED, Health.STARTING, Health.STALE}


@pytest.mark.parametrize("there", Health)
@pytest.mark.parametrize("wanted", Health)
def test_a_move_that_is_none_is_refused(there: Health, wanted: Health) -> None:
    place = Place(number=0, engine=None, health=there)
    if wanted in MOVES[there]:
        place.move(wanted)
        assert place.health is wanted
    else:
        with pytest.raises(AssertionError, match=f"no way from {there} to {wanted}"):
            place.move(wanted)


# -------------------------------------------------------------------- dispatch


def test_groups_stay_whole_and_go_to_the_engine_that_holds_least() -> None:
    fleet = Fleet()
    pool = fleet.pool(3)
    requests = requests_of(1, 6) + requests_of(5, 2)[2:]
    assert seeds(pool.generate(requests)) == [str(request.seed) for request in requests]
    assert [calls(fleet, n) for n in range(3)] == [[[0] * 6], [[1, 1, 3, 3]], [[2, 2, 4, 4]]]


def test_who_gets_what_depends_on_the_requests_alone() -> None:
    asked = []
    for _ in range(2):
        fleet = Fleet()
        pool = fleet.pool(4)
        pool.generate(requests_of(11, 3))
        asked.append({n: calls(fleet, n) for n in range(4)})
    assert asked[0] == asked[1]
    assert all(len(found) == 1 for found in asked[0].values())  # one call each: a batch that fits is planned at once


def test_one_engine_gets_a_batch_as_a_whole_whatever_its_room() -> None:
    """vLLM itself lets what does not fit wait, and forms the same batches each time."""
    fleet = Fleet()
    fleet.pool(1, room=4).generate(requests_of(6, 3))
    assert [len(call) for call in fleet.asked[0]] == [18]


def test_what_does_not_fit_waits_for_room() -> None:
    fleet = Fleet(tokens_s=0.0005)
    pool = fleet.pool(2, room=4)  # of what one engine decodes together
    most = [0]
    original = StandIn.stream

    def stream(self: StandIn, requests: Any, call: str) -> Any:
        most[0] = max(most[0], *(place.held for place in pool.places))
        return original(self, requests, call)

    StandIn.stream = stream  # type: ignore[method-assign]
    try:
        rollouts = pool.generate(requests_of(20, 2))
    finally:
        StandIn.stream = original  # type: ignore[method-assign]
    assert seeds(rollouts) == [str(request.seed) for request in requests_of(20, 2)]
    assert most[0] == 5  # a group of two where three were held: one waits inside the engine, and no slot is empty
    assert all(place.held == 0 for place in pool.places)


def test_a_group_larger_than_the_room_is_not_left_waiting_for_ever() -> None:
    assert len(Fleet().pool(2, room=2).generate(requests_of(3, 5))) == 15


def test_batches_of_several_threads_share_the_engines() -> None:
    fleet = Fleet(tokens_s=0.0002)
    pool = fleet.pool(3, room=6)
    found: dict[int, list[Rollout]] = {}

    def make(i: int) -> None:
        found[i] = pool.generate(requests_of(5 + i, 2))

    threads = [threading.Thread(target=make, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {i: seeds(r) for i, r in found.items()} == {
        i: [str(request.seed) for request in requests_of(5 + i, 2)] for i in range(6)
    }
    assert all(place.held == 0 for place in pool.places)


def test_what_on_end_raises_ends_the_batch_and_leaves_the_pool_whole() -> None:
    pool = Fleet().pool(2)

    def stop(_place: int, _rollout: Rollout) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        pool.generate(requests_of(4, 2), stop)
    assert all(place.held == 0 for place in pool.places)
    assert len(pool.generate(requests_of(4, 2))) == 8


def test_what_nobody_waits_for_is_withdrawn_from_its_engines() -> None:
    fleet = Fleet(tokens_s=0.002)
    pool = fleet.pool(2)
    ended: list[int] = []
    found = pool.gather(requests_of(8, 4), lambda place, _: ended.append(place), lambda: len(ended) >= 5)
    assert sorted(found) == sorted(ended)
    assert 5 <= len(found) < 32
    assert len(fleet.withdrawn) == len(set(fleet.withdrawn)) == 2
    assert all(place.held == 0 for place in pool.places)
    assert len(pool.generate(requests_of(4, 2))) == 8  # under names of their own
    assert len(fleet.withdrawn) == 2


def test_what_has_ended_is_not_withdrawn() -> None:
    fleet = Fleet()
    assert len(fleet.pool(2).generate(requests_of(4, 2))) == 8
    assert fleet.withdrawn == []


def test_a_batch_behind_others_has_all_the_time_that_these_take() -> None:
    """`timeout_s` counts from the last rollout that ended, of whichever batch."""
    pool = Fleet(tokens_s=0.01).pool(2, timeout_s=0.5, room=2)
    found: list[int] = []
    first = threading.Thread(target=lambda: found.append(len(pool.generate(requests_of(16, 4)))))  # 1.3 s
    first.start()
    while not pool.places[0].held:
        time.sleep(0.001)
    assert len(pool.generate(requests_of(1, 2))) == 2  # waits for the other to have been given out
    first.join()
    assert found == [64]


def test_a_stale_answer_from_before_a_refit_changes_nothing_after_it() -> None:
    """The call came to the engine while its weights changed, and is heard of once they have."""
    fleet = Fleet()
    pool = fleet.pool(1)
    late = threading.Event()
    original, calls = StandIn.stream, itertools.count()

    def stream(self: StandIn, requests: Any, call: str) -> Any:
        if next(calls):
            yield from original(self, requests, call)
            return
        late.wait(5)
        raise StaleEngineError("the weights are mixed")

    StandIn.stream = stream  # type: ignore[method-assign]
    found: list[Rollout] = []
    try:
        thread = threading.Thread(target=lambda: found.extend(pool.generate(requests_of(2, 2))))
        thread.start()
        while not pool.places[0].held:
            time.sleep(0.001)
        pool.refit(fleet, 1)
        late.set()
        thread.join(10)
    finally:
        StandIn.stream = original  # type: ignore[method-assign]
    assert len(found) == 4
    assert pool.health()["0"]["health"] == "healthy"


def test_a_batch_of_nothing() -> None:
    assert Fleet().pool(2).generate([]) == []


# ------------------------------------------------------------------------ T8-T10


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_engines_die_or_fail_every_rollout_is_made_once_while_one_is_left(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 3))  # a request that fails at three engines is the job's mistake
    doomed = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    what = st.tuples(st.sampled_from(["die", "fail"]), st.integers(0, 6))
    fleet = Fleet(up=False, trouble={number: data.draw(what) for number in sorted(doomed)})
    pool = fleet.pool(count, room=data.draw(st.integers(2, 20)))
    ended: list[int] = []
    requests = requests_of(7, 3)
    rollouts = pool.generate(requests, lambda place, _: ended.append(place))
    assert seeds(rollouts) == [str(request.seed) for request in requests]
    assert sorted(ended) == list(range(len(requests)))
    assert all(place.held == 0 for place in pool.places)


def test_an_engine_that_dies_is_replaced_and_serves_after_a_refit_alone() -> None:
    """T8."""
    fleet = Fleet(up=False, trouble={1: ("die", 2)})
    pool = fleet.pool(3)
    pool.refit(fleet, 5)
    assert {rollout.policy_version for rollout in pool.generate(requests_of(9, 2))} == {5}
    (incident,) = pool.told()
    assert (incident.type, incident.level) == ("engine.retired", "warning")
    assert incident.data == {"engine": 1, "message": "its process is gone", "resent": 4, "given_up": False}
    fleet.up = True
    figures = pool.health()
    assert [figures[str(n)]["health"] for n in range(3)] == ["healthy", "stale", "healthy"]
    assert (figures["1"]["restarts"], figures["1"]["resent"], figures["1"]["policy_version"]) == (1, 4, None)
    assert sum(figures[n]["rollouts"] for n in figures) == 18
    before = len(fleet.asked[1])
    pool.generate(requests_of(9, 2))
    assert len(fleet.asked[1]) == before  # up, but without weights

    pool.refit(fleet, 6)
    assert types(pool) == ["engine.restarted", "engine.back"]
    assert {rollout.policy_version for rollout in pool.generate(requests_of(9, 2))} == {6}
    assert len(fleet.asked[1]) == before + 1
    assert fleet.connected[-1] == [place.engine for place in pool.places]


def test_an_engine_that_still_comes_up_holds_no_refit_up() -> None:
    fleet = Fleet(up=False, trouble={0: ("die", 0)})
    pool = fleet.pool(2)
    pool.generate(requests_of(2, 1))
    pool.refit(fleet, 1)
    assert pool.health()["0"]["health"] == "starting"
    assert pool.serving == 1
    fleet.up = True
    pool.refit(fleet, 2)
    assert pool.serving == 2


def test_an_engine_that_hangs_is_retired_by_its_silence() -> None:
    """T9."""
    fleet = Fleet(up=False, trouble={0: ("hang", 1)})
    pool = fleet.pool(2, stall_s=1.0)
    assert len(pool.generate(requests_of(4, 2))) == 8
    (incident,) = pool.told()
    assert incident.data["message"] == "no new token for 1 s (rollout.stall_s)"
    assert incident.data["resent"] == 3
    assert fleet.engines[0].killed.is_set()


def test_a_slow_engine_that_shows_tokens_is_left_alone() -> None:
    fleet = Fleet(tokens_s=0.02)
    pool = fleet.pool(1, stall_s=1.0)
    assert len(pool.generate(requests_of(4, 2, max_tokens=10))) == 8  # 1.6 s
    assert types(pool) == []


def test_a_streak_of_failures_retires_an_engine_and_one_that_ends_something_begins_anew() -> None:
    fleet = Fleet(up=False, trouble={0: ("fail", 0)})
    pool = fleet.pool(2)
    for _ in range(2):
        pool.generate(requests_of(4, 1))
    assert pool.health()["0"]["failures"] == 2
    del fleet.trouble[0]
    pool.generate(requests_of(4, 1))
    assert pool.health()["0"]["failures"] == 0
    fleet.trouble[0] = ("fail", 0)
    for _ in range(3):
        pool.generate(requests_of(4, 1))
    *failing, retired = pool.told()
    assert [incident.type for incident in failing] == ["engine.failing"] * 2
    assert retired.data["message"] == "3 calls in a row failed, the last: an odd token"


def test_an_engine_that_breaks_calls_off_is_told_though_it_ends_some_rollouts() -> None:
    fleet = Fleet(trouble={1: ("fail", 2)})
    pool = fleet.pool(2)
    for _ in range(2):  # steps
        for _ in range(4):
            pool.generate(requests_of(8, 1))
        (incident,) = pool.told()
        assert (incident.type, incident.level) == ("engine.failing", "warning")
        assert incident.data == {"engine": 1, "message": "an odd token"}
        told = recorded(pool.health())
        assert told["engines"] == {"healthy": 2}
        assert told["engine_health"].keys() == {"1"}
        figures = told["engine_health"]["1"]
        assert (figures["failures"], figures["resent"], figures["reason"]) == (4, 8, "an odd token")
    pool.generate([])
    assert recorded(pool.health())["engine_health"] == {}


def test_a_request_that_no_engine_can_make_is_the_jobs_mistake() -> None:
    fleet = Fleet(trouble=dict.fromkeys(range(4), ("fail", 0)))
    pool = fleet.pool(4)
    with pytest.raises(EngineError, match="an odd token"):
        pool.generate(requests_of(1, 1))
    assert sum(len(found) for found in fleet.asked.values()) == 3
    assert len(fleet.asked) == 3  # another engine each time


def test_no_engine_left_is_no_empty_batch() -> None:
    """T10: the job goes back to its checkpoint."""
    fleet = Fleet(trouble={n: ("die", n) for n in range(3)})
    pool = fleet.pool(3)
    with pytest.raises(ActorLost, match=r"no rollout engine is left \(engine 0 is st.*its process is gone"):
        pool.generate(requests_of(6, 2))
    tell("T10", stand_ins_killed=3, batches_of_less=0)


def test_where_weights_go_by_a_group_of_ranks_one_loss_is_the_jobs() -> None:
    fleet = Fleet(trouble={1: ("die", 1)})
    pool = fleet.pool(2)
    pool._start = None
    with pytest.raises(ActorLost, match="a rollout engine is gone: its process is gone"):
        pool.generate(requests_of(6, 2))


def test_an_engine_that_does_not_take_the_weights_is_retired() -> None:
    fleet = Fleet(up=False)
    pool = fleet.pool(2)
    fleet.deaf = {1}
    pool.refit(fleet, 3)
    (incident,) = pool.told()
    assert incident.data["message"] == "it did not take the weights of step 3"
    assert {rollout.policy_version for rollout in pool.generate(requests_of(4, 1))} == {3}
    fleet.deaf = {0, 1}
    with pytest.raises(ActorLost, match="no rollout engine is left"):
        pool.refit(fleet, 4)


def test_engines_sleep_until_they_are_sent_weights() -> None:
    """An update while one sleeps would break it (vLLM issue 57853): the stand-ins refuse it."""
    fleet = Fleet()
    pool = fleet.pool(2)
    pool.rest()
    pool.refit(fleet, 1)
    pool.refit(fleet, 2)
    assert fleet.said == ["sleep 0", "sleep 1", "wake 0", "wake 1", "sync", "sync"]
    assert {rollout.policy_version for rollout in pool.generate(requests_of(4, 1))} == {2}


def test_engines_that_share_no_gpu_do_not_sleep() -> None:
    fleet = Fleet()
    pool = fleet.pool(2, sleeps=False)
    pool.rest()
    pool.refit(fleet, 1)
    assert fleet.said == ["sync"]


@pytest.mark.parametrize(("at", "said"), [("sleep", "it did not go to sleep"), ("wake", "it did not wake up")])
def test_an_engine_that_does_not_sleep_or_wake_is_replaced(at: str, said: str) -> None:
    fleet = Fleet()
    pool = fleet.pool(2)
    fleet.stiff = {1} if at == "sleep" else set()
    pool.rest()
    fleet.stiff = {1} if at == "wake" else set()
    pool.refit(fleet, 1)
    incidents = pool.told()
    assert [incident.type for incident in incidents] == ["engine.retired", "engine.restarted", "engine.back"]
    assert incidents[0].data["message"] == said
    assert {rollout.policy_version for rollout in pool.generate(requests_of(4, 1))} == {1}


@pytest.mark.parametrize("count", [1, 2])
def test_where_none_goes_to_sleep_all_begins_anew(count: int) -> None:
    fleet = Fleet()
    pool = fleet.pool(count)
    fleet.stiff = set(range(count))
    with pytest.raises(ActorLost, match=r"no rollout engine is left.*it did not go to sleep"):
        pool.rest()  # before anything is learned in vain


def test_one_that_was_given_up_while_it_went_to_sleep_is_not_woken() -> None:
    fleet = Fleet()
    pool = fleet.pool(2)
    pool.places[1].starts = engines.STARTS
    fleet.stiff = {1}
    pool.rest()
    pool.refit(fleet, 1)
    assert [place.health for place in pool.places] == [Health.HEALTHY, Health.RETIRED]


def test_an_engine_that_is_replaced_while_the_learner_is_connected_is_not_connected_before_it_is_up() -> None:
    fleet = Fleet()
    pool = fleet.pool(2)
    reconnect = pool._reconnect

    def late(members: list[Any]) -> None:
        with pool._lock:  # a batch's thread, which had its death in hand
            pool._retire(pool.places[0], "died just now")
        reconnect(members)

    fleet.up = False
    pool._reconnect = late  # type: ignore[method-assign]
    pool.refit(fleet, 1)
    assert pool.places[0].health is Health.STARTING
    assert all(pool.places[0].engine not in connected for connected in fleet.connected)
    pool._reconnect = reconnect  # type: ignore[method-assign]
    fleet.up = True
    pool.refit(fleet, 2)
    assert [place.version for place in pool.places] == [2, 2]


def test_an_engine_that_never_comes_up_is_given_up() -> None:
    fleet = Fleet(trouble={0: ("die", 0)})
    pool = fleet.pool(2)
    started = pool._start
    assert started is not None

    def start(number: int) -> Any:
        engine = started(number)
        fleet.trouble[number] = ("never", 0)
        return engine

    pool._start = start
    for _ in range(6):
        assert len(pool.generate(requests_of(2, 1))) == 2
        pool.health()
    told = pool.told()
    assert [incident.data["given_up"] for incident in told] == [False, False, False, True]
    assert told[-1].level == "error"
    assert pool.health()["0"]["health"] == "retired"
    assert "it did not start: it did not come up" in str(pool.health()["0"]["reason"])


def test_a_place_that_was_given_up_is_tried_again_much_later(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(trouble={0: ("die", 0)})
    pool = fleet.pool(2)
    started, broken = pool._start, [True]
    assert started is not None

    def start(number: int) -> Any:
        engine = started(number)
        if broken[0]:
            fleet.trouble[number] = ("never", 0)
        return engine

    pool._start = start
    for _ in range(6):
        pool.generate(requests_of(2, 1))
    assert pool.health()["0"]["health"] == "retired"
    made = len(fleet.engines)
    pool.told()
    monkeypatch.setattr(engines, "GIVEN_UP_S", 0.0)
    pool.health()  # one more, which does not come up either
    monkeypatch.setattr(engines, "GIVEN_UP_S", 600.0)
    pool.health()
    assert len(fleet.engines) == made + 1
    assert [incident.data["given_up"] for incident in pool.told()] == [True]
    broken[0] = False
    monkeypatch.setattr(engines, "GIVEN_UP_S", 0.0)
    pool.health()
    pool.refit(fleet, 1)
    assert pool.health()["0"]["health"] == "healthy"


def test_one_that_is_never_up_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(trouble={0: ("die", 0)}, up=False)
    pool = fleet.pool(2, timeout_s=0.2)
    pool.generate(requests_of(2, 1))
    assert pool.health()["0"]["health"] == "starting"
    pool.told()
    time.sleep(0.3)
    pool.health()
    assert pool.told() == []  # an engine takes longer to start than some batches
    monkeypatch.setattr(engines, "START_S", 0.1)
    pool.health()
    (retired,) = pool.told()
    assert retired.data["message"] == "it did not start within 0.2 s"
    assert pool.health()["0"]["health"] == "starting"  # another


def test_rollouts_under_way_go_on_under_new_weights_and_say_so() -> None:
    fleet = Fleet(tokens_s=0.002)
    pool = fleet.pool(2)
    first = threading.Event()
    found: list[Rollout] = []
    thread = threading.Thread(target=lambda: found.extend(pool.generate(requests_of(8, 2), lambda *_: first.set())))
    thread.start()
    first.wait(5)
    pool.refit(fleet, 1)
    thread.join(5)
    assert {rollout.policy_version for rollout in found} == {0, 1}
    assert seeds(found) == [str(request.seed) for request in requests_of(8, 2)]
    assert pool.told() == []


# -------------------------------------------------------------------- in a job


def job(folder: Path, trouble: dict[int, tuple[str, int]] | None = None, *, at: int = 3, **rollout: Any) -> Run:
    """A loop over three stand-ins; the trouble begins when step `at` is rolled out."""
    rollout |= {"engines": 3, "prompts_per_step": 3, "rollouts_per_prompt": 4, "max_tokens": 9}
    run = start(folder, make_spec(rollout=rollout))
    fleet = Fleet(write=run.engines.sample)
    pool = fleet.pool(3)
    steering = run.journal.steering

    def steered(step: int) -> Any:
        if step == at and trouble:
            fleet.trouble = dict(trouble)
        return steering(step)

    def sync(version: int) -> None:
        learn(version)
        fleet.sync(version)

    run.journal.steering = steered  # type: ignore[method-assign]
    learn, run.learner.sync = run.learner.sync, sync  # type: ignore[method-assign]
    for part in (run.loop.parts, run.loop.collector.parts, run.loop.evaluator.parts):
        object.__setattr__(part, "engines", pool)
    return run


def test_a_job_whose_engine_dies_makes_the_same_figures_and_tells_of_it(tmp_path: Path) -> None:
    undisturbed, run = job(tmp_path / "one"), job(tmp_path / "other", {1: ("die", 2)})
    assert undisturbed.loop.run() == run.loop.run() == "succeeded"
    assert run.figures() == undisturbed.figures()
    (retired,) = run.journal.named("engine.retired")
    assert retired == {"engine": 1, "step": 3, "message": "its process is gone", "resent": 2, "given_up": False}
    assert [len(run.journal.named(f"engine.{what}")) for what in ("restarted", "back")] == [1, 1]
    engines = [record["engines"] for record in run.journal.records.values()]
    assert engines == [{"healthy": 3}] * 6  # back within its step's own sync
    told = {step: record["engine_health"] for step, record in run.journal.records.items()}
    assert told[2] == {}, "of healthy ones there is nothing to tell"
    assert told[3].keys() == {"1"}
    assert told[3]["1"]["restarts"] == 1
    lines = [line["engines"] for line in run.journal.lines if "engines" in line]
    assert lines == [{"serving": 3, "of": 3}] * 6


def test_a_job_whose_engines_sleep_while_it_learns_makes_the_same_figures(tmp_path: Path) -> None:
    """Also where one does not wake up."""
    undisturbed, asleep = job(tmp_path / "one"), job(tmp_path / "other", sleep=True)
    pool: Any = asleep.loop.parts.engines
    fleet = pool.places[0].engine.fleet
    learn = asleep.learner.learn

    def learns(*arguments: Any) -> Any:
        assert all(place.engine.resting for place in pool.places)
        fleet.stiff = {2} if len(asleep.journal.records) == 3 else set()  # until it is replaced
        return learn(*arguments)

    asleep.learner.learn = learns  # type: ignore[method-assign]
    assert undisturbed.loop.run() == asleep.loop.run() == "succeeded"
    assert asleep.figures() == undisturbed.figures()
    (retired,) = asleep.journal.named("engine.retired")
    assert (retired["step"], retired["message"]) == (4, "it did not wake up")


def test_a_job_that_loses_all_engines_makes_no_step_of_less(tmp_path: Path) -> None:
    """T10: the driver hands it back, and the next goes on from the checkpoint."""
    run = job(tmp_path, dict.fromkeys(range(3), ("die", 1)))
    with pytest.raises(ActorLost, match="no rollout engine is left"):
        run.loop.run()
    assert list(run.journal.records) == [1, 2]
