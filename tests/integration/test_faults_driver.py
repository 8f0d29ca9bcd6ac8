"""Drivers that are killed, stopped and raced, on toy jobs whose every step can be replayed: T2 to T5, T7, T14, T16,
T17, T19, T26 and T30 of the reliability table. Each check is shown a mistake that it must see.

Races of the store alone, zombies' every write and sweeps are in store/test_store_leases.py, the worker's deaths in
test_worker.py.
"""

import json
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.failpoints import POINTS
from orchestrator.launch.launchers import SubprocessLauncher
from orchestrator.launch.worker import Worker
from orchestrator.state.redis_calls import connect
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import ClaimOutcome, Fenced, IllegalTransition, JobStore, SteerOutcome
from tests import toy_driver
from tests.fault_figures import BUSY_S, REPEATS, all_at_once, tell
from tests.toy_driver import Forks, Garage, ToyDriver
from tests.toy_jobs import EVERY, audit, events_of, submit, toy_spec, weights
from tests.toy_mutants import store_with

SPEC = toy_spec()


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url, timeout_s=5) as client:
        yield JobStore(client, owner=f"faults-{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def garage(forks: Forks, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Garage]:
    with Garage(forks, redis_url, tmp_path_factory.mktemp("garage")) as garage:
        yield garage


def wait_for_step(store: JobStore, job_id: str, step: int, driver: ToyDriver) -> None:
    deadline = time.monotonic() + 60
    while store.job(job_id).step < step:
        assert driver.poll() is None, driver.tail()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def claimed_at(store: JobStore, job_id: str, after: float) -> float:
    return min(event.at for event in events_of(store, job_id) if event.type == "job.claimed" and event.at > after)


# ------------------------------------------------------------------------------------------- T2, T16, T17: kills

# The n-th time that each is reached, so that something lies before and after it.
PLACES = {
    "after_claim": 1, "before_sync": 4, "after_sync": 5, "before_commit": 5, "after_commit": 5,
    "checkpoint_begun": 3, "checkpoint_halfway": 3, "checkpoint_filled": 3, "checkpoint_sealed": 3,
    "checkpoint_placed": 3, "checkpoint_registered": 3, "before_finish": 1, "after_finish": 1,
}  # fmt: skip


def finish(garage: Garage, store: JobStore, job_id: str) -> None:
    """Drivers one after another until the job is at its end."""
    for _ in range(3):
        driver = garage.start(job_id, owner=store.owner)
        assert driver.wait(300) == 0, driver.tail()
        if is_terminal(store.job(job_id).status):
            return


def test_a_driver_killed_anywhere_costs_at_most_the_steps_since_its_checkpoint(garage: Garage, store: JobStore) -> None:
    assert PLACES.keys() == POINTS.keys()
    reruns, duplicates = [], 0
    for round_ in range(max(1, REPEATS // 2)):
        specs = {place: toy_spec(seed=100 * round_ + nth) for place, nth in PLACES.items()}
        jobs = {place: submit(store, spec) for place, spec in specs.items()}
        first = {
            place: garage.start(jobs[place], owner=store.owner, failpoints=f"{place}=kill@{nth}")
            for place, nth in PLACES.items()
        }
        for place, driver in first.items():
            assert driver.wait() == -signal.SIGKILL, (place, driver.tail())
        second = [garage.start(job_id, owner=store.owner) for job_id in jobs.values()]
        for driver in second:
            assert driver.wait() == 0, driver.tail()
        audits = {place: audit(store, jobs[place], specs[place], garage.state_dir) for place in jobs}
        assert {place: found.violations for place, found in audits.items() if found.violations} == {}
        assert all(store.job(job_id).status is JobStatus.SUCCEEDED for job_id in jobs.values())
        assert audits["after_commit"].rerun == 2  # steps 4 and 5: the checkpoint is at 3
        reruns += [found.rerun for found in audits.values()]
        duplicates += sum(found.duplicates for found in audits.values())
    tell("T2", failpoint_kills=len(reruns), max_lost=max(reruns), mean_lost=round(sum(reruns) / len(reruns), 2))
    tell("T16", double_applied=duplicates)
    tell("T17", load_failures=0, boundaries=sum(place.startswith("checkpoint") for place in PLACES))


def test_one_that_is_written_beside_the_steps_is_lost_whole_or_kept_whole(garage: Garage, store: JobStore) -> None:
    """Killed anywhere in it: the run goes back to the one before, at most two intervals."""
    spec = toy_spec(checkpoints={"asynchronous": True})
    places = [place for place in PLACES if place.startswith("checkpoint")]
    jobs = {place: submit(store, spec) for place in places}
    first = {place: garage.start(jobs[place], owner=store.owner, failpoints=f"{place}=kill@3") for place in places}
    for place, driver in first.items():
        assert driver.wait() == -signal.SIGKILL, (place, driver.tail())
    second = [garage.start(job_id, owner=store.owner) for job_id in jobs.values()]
    for driver in second:
        assert driver.wait() == 0, driver.tail()
    audits = {place: audit(store, jobs[place], spec, garage.state_dir, every=2 * EVERY) for place in places}
    assert {place: found.violations for place, found in audits.items() if found.violations} == {}
    assert all(store.job(job_id).status is JobStatus.SUCCEEDED for job_id in jobs.values())


def test_a_checkpoint_that_was_never_registered_is_not_chosen(garage: Garage, store: JobStore) -> None:
    """Not by the next driver, nor by the one after it, to whom the ledger shows a step below the orphan's."""
    job_id = submit(store, SPEC)
    garage.start(job_id, owner=store.owner, failpoints="checkpoint_placed=kill@3").wait()
    garage.start(job_id, owner=store.owner, failpoints="after_claim=kill").wait()
    assert (store.job(job_id).step, store.job(job_id).checkpoint_step) == (3, 3)
    assert (garage.state_dir / "jobs" / job_id / "checkpoints" / "step-000006").is_dir()
    finish(garage, store, job_id)
    assert not [event for event in events_of(store, job_id) if event.type == "job.recovered"]
    assert audit(store, job_id, SPEC, garage.state_dir).violations == ()
    assert [record["fence"] for record in store.steps(job_id)] == [1] * 3 + [3] * 6


def test_a_flipped_bit_in_the_newest_checkpoint_costs_the_steps_since_the_one_before(
    garage: Garage, store: JobStore
) -> None:
    """T19: it is named and passed over, and the steps after the one before it give the same figures again."""
    job_id = submit(store, SPEC)
    assert garage.start(job_id, owner=store.owner, failpoints="after_commit=kill@8").wait() == -signal.SIGKILL
    newest = garage.state_dir / "jobs" / job_id / "checkpoints" / "step-000006" / "learner.json"
    content = newest.read_bytes()
    newest.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    finish(garage, store, job_id)
    told = {event.type: event.data for event in events_of(store, job_id)}
    assert told["checkpoint.damaged"]["step"] == 6
    assert told["job.resumed"] == {"step": 3, "rerun": 5}
    found = audit(store, job_id, SPEC, garage.state_dir)
    assert found.mismatches == 0
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    tell("T19", rerun=5, allowed=2 * SPEC.checkpoints.every, mismatches=found.mismatches)


def test_a_driver_killed_at_random(garage: Garage, store: JobStore) -> None:
    chance = random.Random(2)
    specs = [toy_spec(seed=seed) for seed in range(2 * REPEATS)]
    jobs = [submit(store, spec) for spec in specs]
    takeovers = []
    for spec, job_id in zip(specs, jobs, strict=True):
        driver = garage.start(job_id, owner=store.owner)
        wait_for_step(store, job_id, 1, driver)
        time.sleep(chance.uniform(0, 0.3))
        killed = time.time()
        driver.kill()
        finish(garage, store, job_id)
        if driver.code != 0:
            takeovers.append(claimed_at(store, job_id, killed) - killed)
        assert audit(store, job_id, spec, garage.state_dir).violations == ()
    tell("T2", random_kills=len(takeovers), takeover_s_max=round(max(takeovers), 2), ttl_s=garage.toy["ttl_s"])
    assert max(takeovers) < garage.toy["ttl_s"] + BUSY_S


@pytest.mark.parametrize(
    ("mutant", "place", "seen"),
    [
        ("forget_learner", "after_commit=kill@5", "are not what spec and steering log give"),
        ("register_before_durable", "checkpoint_begun=kill@2", "a registered checkpoint was not whole"),
    ],
)
def test_a_restart_that_is_wrong_is_seen(garage: Garage, store: JobStore, mutant: str, place: str, seen: str) -> None:
    job_id = submit(store, SPEC)
    garage.start(job_id, owner=store.owner, failpoints=place, mutants=[mutant]).wait()
    garage.start(job_id, owner=store.owner, mutants=[mutant]).wait()
    assert any(seen in words for words in audit(store, job_id, SPEC, garage.state_dir).violations)


def test_a_commit_that_is_applied_twice_is_seen(store: JobStore) -> None:
    """T16: the reply to a commit was lost, so it comes again."""
    for twice, wrong in ((store, False), (store_with(store, "commit_twice"), True)):
        job_id = submit(store, SPEC)
        lease = store.claim(job_id, nonce="n", ttl_s=30).lease
        assert lease is not None
        accepted = True
        for _ in range(2):
            try:
                twice.commit(lease, step=1, digest="d", record={})
            except Fenced:
                accepted = False  # the stream's own order refused it
        assert accepted is not wrong
        assert len(store.raw_steps(job_id)) == 1


def test_an_update_whose_answer_was_lost_is_not_made_twice(garage: Garage, store: JobStore) -> None:
    """T16: the learner's process ends after its optimizer's step, before it answers. The checkpoint is at step 3."""
    job_id = submit(store, SPEC)
    assert garage.start(job_id, owner=store.owner, lost_step=5).wait() == 0
    job = store.job(job_id)
    assert (job.status, job.step) == (JobStatus.QUEUED, 4)
    assert "its process ended" in (job.reason or "")
    finish(garage, store, job_id)
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    found = audit(store, job_id, SPEC, garage.state_dir)
    assert found.violations == ()
    tell("T16", double_applied_by_an_actor=found.duplicates + found.mismatches)


def test_an_update_that_is_made_again_where_its_answer_was_lost_is_seen(garage: Garage, store: JobStore) -> None:
    job_id = submit(store, SPEC)
    driver = garage.start(job_id, owner=store.owner, lost_step=5, mutants=["learn_again"])
    assert driver.wait() == 0, driver.tail()
    assert audit(store, job_id, SPEC, garage.state_dir).mismatches


# ------------------------------------------------------------------------------------------- T3: claims


def claimers(store: JobStore, jobs: int) -> list[Counter[ClaimOutcome]]:
    found = []
    for _ in range(jobs):
        job_id = submit(store, SPEC)
        claims = all_at_once(50, lambda i, job_id=job_id: store.claim(job_id, nonce=str(i), ttl_s=30).outcome)
        found.append(Counter(claims))
    return found


def test_fifty_claim_a_job_and_one_gets_it(store: JobStore) -> None:
    wins = [outcomes[ClaimOutcome.OK] for outcomes in claimers(store, 2 * REPEATS)]
    tell("T3", winners_min=min(wins), winners_max=max(wins), jobs=len(wins))
    assert set(wins) == {1}
    assert claimers(store_with(store, "claim_held"), 1)[0][ClaimOutcome.OK] > 1  # the mistake is seen


# ------------------------------------------------------------------------------------------- T4: zombies


def zombie_wakes(garage: Garage, store: JobStore, *mutants: str) -> tuple[str, ToyDriver, ToyDriver]:
    """A driver sleeps before its commit of step 5, another takes over, and stops right before that step too."""
    job_id = submit(store, SPEC)
    zombie = garage.start(job_id, owner=store.owner, failpoints="before_commit=stop@5", mutants=mutants)
    zombie.wait_until_stopped()
    heir = garage.start(job_id, owner=store.owner, failpoints="before_commit=stop@2")
    heir.wait_until_stopped()
    assert store.job(job_id).step == 4
    return job_id, zombie, heir


def test_a_zombie_that_wakes_at_its_commit_is_fenced(garage: Garage, store: JobStore) -> None:
    """The generators need no fence of their own: engines are actors of their driver's own Ray session and end with it.

    No engine ever hears from another driver, so a zombie's weights reach only its own engines, whose rollouts only it
    could commit (tests/integration/cluster/test_rules_job.py looks for what a killed driver leaves behind).
    """
    exits = []
    for _ in range(REPEATS):
        job_id, zombie, heir = zombie_wakes(garage, store)
        before = store.raw_steps(job_id)
        woken = time.monotonic()
        zombie.send(signal.SIGCONT)
        assert zombie.wait() == 3
        exits.append(time.monotonic() - woken)
        assert store.raw_steps(job_id) == before
        heir.send(signal.SIGCONT)
        assert heir.wait() == 0, heir.tail()
        assert store.job(job_id).status is JobStatus.SUCCEEDED
        assert audit(store, job_id, SPEC, garage.state_dir).violations == ()
    tell("T4", zombies=len(exits), stale_writes_accepted=0, zombie_exit_s_max=round(max(exits), 2))


def test_a_zombie_that_is_not_fenced_is_seen(garage: Garage, store: JobStore) -> None:
    job_id, zombie, heir = zombie_wakes(garage, store, "no_fence", "no_native_guard")
    zombie.send(signal.SIGCONT)
    wait_for_step(store, job_id, 5, zombie)
    for driver in (zombie, heir):
        driver.kill()
    assert audit(store, job_id, SPEC, garage.state_dir).violations


def test_the_two_fences_stand_alone(store: JobStore) -> None:
    """The lease's check alone, the stream's order alone, and neither: only then a stale commit gets through."""
    accepted = {}
    for mutants in ((), ("no_fence",), ("no_native_guard",), ("no_fence", "no_native_guard")):
        job_id = submit(store, SPEC)
        old = store.claim(job_id, nonce="old", ttl_s=0.02).lease
        assert old is not None
        store.commit(old, step=1, digest="1", record={})
        store.register_checkpoint(old, step=1, path="/1", digest="c")
        time.sleep(0.05)
        new = store.claim(job_id, nonce="new", ttl_s=30).lease
        assert new is not None
        store.commit(new, step=2, digest="2", record={})
        try:
            store_with(store, *mutants).commit(old, step=3, digest="zombie", record={})
            accepted[mutants] = True
        except Fenced:
            accepted[mutants] = False
    assert [mutants for mutants, stale in accepted.items() if stale] == [("no_fence", "no_native_guard")]


def test_a_driver_that_hangs_does_not_keep_its_job(
    redis_url: str, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker whose driver it is has no other place for the job.

    On a busy machine a driver that is well may lose its lease, too: then a third one ends the job.
    """
    monkeypatch.setenv("EQUIPOISE_TOY", '{"ttl_s": 5.0, "renew_s": 0.2}')
    monkeypatch.setenv("EQUIPOISE_FAILPOINTS", "after_commit=stop@4")
    spec = toy_spec(steps=6)  # the first driver stops after step 4, the second does 4, 5 and 6
    job_id = submit(store, spec)
    launcher = SubprocessLauncher(redis_url, tmp_path, command=toy_driver.command)
    worker = Worker(store, launcher, owners=[store.owner], poll_s=0.05, sweep_s=0.2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not is_terminal(store.job(job_id).status):
            assert time.monotonic() < deadline, store.job(job_id)
            time.sleep(0.05)
    finally:
        worker.request_kill()
        thread.join(20)
    found = audit(store, job_id, spec, tmp_path)
    assert (store.job(job_id).status, found.violations) == (JobStatus.SUCCEEDED, ())
    assert found.claims >= 2
    assert [step for fence, step, _ in store.raw_steps(job_id) if fence == 1] == [1, 2, 3, 4]


def test_a_driver_that_ends_its_job_does_not_take_itself_for_a_zombie(garage: Garage, store: JobStore) -> None:
    """A renewal that comes between the end of the job and the end of the process is refused, and rightly."""
    job_id = submit(store, SPEC)
    driver = garage.start(job_id, owner=store.owner, failpoints="after_finish=sleep:0.7")
    assert driver.wait() == 0, driver.tail()
    assert store.job(job_id).status is JobStatus.SUCCEEDED


# ------------------------------------------------------------------------------------------- T5: clocks


def test_a_clock_that_is_an_hour_ahead_takes_nothing_over(
    garage: Garage, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease expires by the server's time, whatever the holder's and the claimer's clocks say."""
    job_id = submit(store, SPEC)
    holder = garage.start(job_id, owner=store.owner, ahead_s=-3600.0, ttl_s=30.0)  # a busy machine expires none either
    wait_for_step(store, job_id, 1, holder)
    real, false_takeovers, tries = time.time, 0, 0
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + 3600)
        while holder.poll() is None:
            tries += 1
            false_takeovers += store.claim(job_id, nonce="early", ttl_s=1).outcome is ClaimOutcome.OK
            store.sweep()
    tell("T5", false_takeovers=false_takeovers, claims_tried=tries)
    assert (false_takeovers, store.job(job_id).status) == (0, JobStatus.SUCCEEDED)
    assert tries > 5
    assert audit(store, job_id, SPEC, garage.state_dir).claims == 1

    other = submit(store, SPEC)
    assert store.claim(other, nonce="holder", ttl_s=30).outcome is ClaimOutcome.OK
    believing = store_with(store, "clock_of_client")  # the mistake: whose clock is ahead finds every lease expired
    assert believing.claim(other, nonce="early", ttl_s=1).outcome is ClaimOutcome.OK


# ------------------------------------------------------------------------------------------- T7: poison


def test_a_job_that_kills_its_drivers_is_given_up_and_holds_up_no_other(garage: Garage, store: JobStore) -> None:
    poison, sound = submit(store, SPEC), submit(store, SPEC)
    beside = garage.start(sound, owner=store.owner)
    for _ in range(3):
        driver = garage.start(poison, owner=store.owner, failpoints="after_claim=kill")
        assert driver.wait() == -signal.SIGKILL
    assert garage.start(poison, owner=store.owner).wait() == 0
    job = store.job(poison)
    why = "3 starts came to no new checkpoint (the events have each); the last ended with: its lease ran out"
    assert (job.status, job.reason, job.attempts) == (JobStatus.FAILED, why, 3)
    assert beside.wait() == 0
    assert (store.job(sound).status, store.job(sound).fence) == (JobStatus.SUCCEEDED, 1)
    tell("T7", attempts=job.attempts, takeovers_of_others=store.job(sound).fence - 1)

    endless = submit(store, SPEC)
    mutant = store_with(store, "no_poison")
    for i in range(4):
        claim = mutant.claim(endless, nonce=str(i), ttl_s=0.01)
        time.sleep(0.03)
    assert claim.outcome is ClaimOutcome.OK  # a fourth attempt: the job would go round for ever


# ------------------------------------------------------------------------------------------- T14: out of memory


OOM_PLACES = ("before", "in", "after")  # the optimizer's step


@pytest.mark.parametrize("when", OOM_PLACES)
def test_a_learner_out_of_memory_is_tried_again_and_given_up_at_the_third(
    garage: Garage, store: JobStore, when: str
) -> None:
    """The checkpoint is at step 3; what was done of the update at step 5 is nowhere afterwards."""
    full = {"oom_step": 5, "oom_when": when}
    lucky, hopeless = submit(store, SPEC), submit(store, SPEC)
    for tries in (1, 2):
        for job_id in (lucky, hopeless):
            assert garage.start(job_id, owner=store.owner, **full).wait() == 0
            job = store.job(job_id)
            assert (job.status, job.step, job.attempts) == (JobStatus.QUEUED, 4, tries - 1)
            assert job.reason == "the learner is out of memory: tried to allocate 2 GiB"
    finish(garage, store, lucky)
    assert store.job(lucky).status is JobStatus.SUCCEEDED
    found = audit(store, lucky, SPEC, garage.state_dir)
    assert found.violations == ()

    assert garage.start(hopeless, owner=store.owner, **full).wait() == 0
    job = store.job(hopeless)
    assert job.status is JobStatus.FAILED
    assert (job.reason or "").startswith("oom: the learner is out of memory")
    given_up = audit(store, hopeless, SPEC, garage.state_dir)
    assert given_up.violations == ()
    half_applied = {f"half_applied_updates_{when}": found.mismatches + given_up.mismatches}
    tell("T14", tries_before_failed=3, rerun=found.rerun, **half_applied)


@pytest.mark.parametrize("when", OOM_PLACES)
def test_an_update_that_is_made_twice_or_one_and_a_half_times_is_seen(
    garage: Garage, store: JobStore, when: str
) -> None:
    """The mistake: the step is tried again without going back to the checkpoint. Before the update that is harmless."""
    job_id = submit(store, SPEC)
    driver = garage.start(job_id, owner=store.owner, oom_step=5, oom_when=when, mutants=["learn_again"])
    assert driver.wait() == 0, driver.tail()
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    assert bool(audit(store, job_id, SPEC, garage.state_dir).mismatches) is (when != "before")


# ------------------------------------------------------------------------------------------- T26: steering


def steered(garage: Garage, store: JobStore, steering: JobStore, *, steps: int) -> tuple[int, list[int], list[str]]:
    """(winners of 100 writers to one version, each later steer's delay in steps, what the audit found).

    The driver is killed half way, so the second half has to go by what the first was told.
    """
    spec = toy_spec(steps=steps, step_s=0.03)
    job_id = submit(store, spec)
    driver = garage.start(job_id, owner=store.owner, failpoints=f"after_commit=kill@{steps // 2}")
    wait_for_step(store, job_id, 1, driver)
    version = store.steering(job_id).version
    answers = all_at_once(
        100, lambda i: steering.steer(job_id, change=weights(0.1 + i / 200), if_match=version, by=str(i)).outcome
    )
    delays: list[int] = []

    def storm() -> None:
        chance = random.Random(steps)
        while True:
            step = store.job(job_id).step
            done = steering.steer(job_id, change=weights(chance.uniform(0.1, 0.9)), if_match=None, by="storm")
            if done.effective_step is None:
                return
            delays.append(done.effective_step - step)
            time.sleep(0.05)  # 1,000 a minute

    stormy = threading.Thread(target=storm)
    stormy.start()
    driver.wait(300)
    finish(garage, store, job_id)
    stormy.join()
    found = audit(store, job_id, spec, garage.state_dir)
    assert store.job(job_id).status is JobStatus.SUCCEEDED
    return answers.count(SteerOutcome.OK), delays, list(found.violations)


def test_steers_while_it_trains_take_effect_where_they_said(garage: Garage, store: JobStore) -> None:
    winners, delays, violations = steered(garage, store, store, steps=20 * REPEATS)
    assert violations == []
    assert winners == 1
    assert len(delays) > 5
    tell("T26", writers=100, winners_per_version=winners, steers=len(delays), mismatch_steps=0)


def test_a_steer_that_reaches_the_step_in_flight_is_seen(garage: Garage, store: JobStore) -> None:
    hasty = store_with(store, "steer_in_flight", "steer_any_version")
    winners, _, violations = steered(garage, store, hasty, steps=12)
    assert winners > 1
    assert any("are not what spec and steering log give" in words for words in violations)


# ------------------------------------------------------------------------------------------- T30: requests at the end


def test_requests_race_with_the_end_to_one_end(garage: Garage, store: JobStore) -> None:
    chance = random.Random(30)
    ends: Counter[str] = Counter()
    after_cancel = []
    for _ in range(4 * REPEATS):
        spec = toy_spec(steps=3, step_s=0.01)
        job_id = submit(store, spec)
        driver = garage.start(job_id, owner=store.owner)
        wait_for_step(store, job_id, 1, driver)
        time.sleep(chance.uniform(0, 0.2))
        cancelled = None
        for request in chance.sample([store.request_cancel, store.request_pause, store.resume], 3):
            with suppress(IllegalTransition):
                asked = time.monotonic()
                request(job_id)
                cancelled = asked if request == store.request_cancel else cancelled
        assert driver.wait() == 0, driver.tail()
        if cancelled is not None:
            after_cancel.append(time.monotonic() - cancelled)
        job = store.job(job_id)
        if job.status is JobStatus.PAUSED:
            store.resume(job_id)
        if not is_terminal(store.job(job_id).status):
            finish(garage, store, job_id)
        ends[str(store.job(job_id).status)] += 1
        found = audit(store, job_id, spec, garage.state_dir)
        assert is_terminal(store.job(job_id).status)
        assert found.violations == ()
    assert max(after_cancel, default=0) < 30
    figures = {"ends": dict(ends), "busy_s_after_cancel_max": round(max(after_cancel, default=0), 2)}
    tell("T30", jobs=sum(ends.values()), **figures)
    assert max(after_cancel, default=0) < BUSY_S


def test_a_cancel_does_not_wait_for_the_end_of_a_long_step(garage: Garage, store: JobStore) -> None:
    spec = toy_spec(steps=3, step_s=600)
    job_id = submit(store, spec)
    driver = garage.start(job_id, owner=store.owner, cancel_s=0.5)
    while store.job(job_id).status is not JobStatus.RUNNING:
        assert driver.poll() is None, driver.tail()
        time.sleep(0.02)
    asked = time.monotonic()
    store.request_cancel(job_id)
    assert driver.wait() == 0, driver.tail()
    took_s = time.monotonic() - asked
    assert 0.5 <= took_s < 0.5 + BUSY_S  # 0.5 s of grace, and what a busy machine takes
    job = store.job(job_id)
    assert (job.status, job.reason) == (JobStatus.CANCELLED, "cancelled on request")
    document = json.loads((garage.state_dir / "jobs" / job_id / "job.json").read_text())
    assert document["ended"] == "cancelled"
    assert audit(store, job_id, spec, garage.state_dir).violations == ()
    tell("T30", long_step_s=600, grace_s=0.5, busy_s_after_cancel_in_a_step=round(took_s, 2))


def test_a_second_end_is_seen(store: JobStore, tmp_path: Path) -> None:
    job_id = submit(store, SPEC)
    lease = store.claim(job_id, nonce="n", ttl_s=30).lease
    assert lease is not None
    store.finish(lease, JobStatus.FAILED, "by hand")
    store_with(store, "finish_from_anywhere").request_cancel(job_id)  # the mistake: what is over ends once more
    assert any("its ends are" in words for words in audit(store, job_id, SPEC, tmp_path).violations)
