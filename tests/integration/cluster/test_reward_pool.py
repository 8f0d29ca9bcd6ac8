"""Rewards in real Ray actors that score, hang, raise, starve and die: T11 to T13 of the reliability table."""

from __future__ import annotations

import functools
import os
import time

import pytest

from rewards import registry
from rewards.base import RewardBatch, RewardDeadlineError, RewardFailedError
from rewards.host import Host
from rewards.hosting import SINGLE, Hosting, actor_replica
from rewards.pool import RewardPool
from tests.fault_figures import tell

pytestmark = pytest.mark.usefixtures("ray_cluster")

COMPLETIONS = (
    "-1=29\n+6=35\n\\boxed{35}",
    "\\boxed{\\frac{70}{2}}",
    "-1=29\n+6=35",
)
BATCH = RewardBatch(
    prompts=("30-1+6=",) * 3,
    completions=COMPLETIONS,
    answers=("35",) * 3,
    completion_tokens=(20, 0, 64),
    truncated=(False, False, True),
    max_tokens=64,
)
DEADLINE_S = 2.0


def rows(*completions: str) -> RewardBatch:
    size = len(completions)
    return RewardBatch(
        prompts=("p",) * size, completions=completions, answers=(None,) * size, completion_tokens=(1,) * size,
        truncated=(False,) * size, max_tokens=9,
    )  # fmt: skip


def make_obedient():
    """A reward that does what a completion says: `hang`, `kill`, ... for ever, or once for each path that follows.

    The class is made here so that it travels to the actor by value.
    """

    class Obedient:
        def score(self, batch):
            scores = [self.obey(*text.split()) for text in batch.completions]
            return scores[:-1] if "short" in batch.completions[0] else scores

        def obey(self, what, flag=None):
            import resource
            import signal

            if flag is not None:
                if os.path.exists(flag):  # noqa: PTH110
                    return 1.0
                open(flag, "w").close()  # noqa: PTH123
            if what == "hang":
                time.sleep(600)
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "starve":
                hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
                return float(len(bytearray(64 << 30)))
            if what == "raise":
                raise type("Unpicklable", (ValueError,), {"lock": property(lambda _: 1)})(lambda: "not to be sent")
            return {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "huge": 1e300, "text": "1"}.get(
                what, 1.0
            )

    return Obedient


@pytest.fixture(scope="module")
def obedient():
    """Two replicas beside the built-in conciseness."""
    hosting = Hosting(replicas=2, batch_size=4, deadline_s=DEADLINE_S, attempts=3, backoff_s=0.01, max_bad_share=0.25)
    host = Host("obedient", {"told": SINGLE}, [actor_replica(make_obedient()) for _ in range(2)], hosting)
    short = Host(
        "conciseness", {"short": SINGLE}, [actor_replica(functools.partial(registry.build, "conciseness", {}))]
    )
    pool = RewardPool([short, host])
    pool.wait_ready()
    yield pool
    pool.close()


def health(pool):
    return pool.health()["obedient"]


def test_the_built_in_rewards_score_in_actors():
    hosts = [
        Host(name, {name: SINGLE}, [actor_replica(functools.partial(registry.build, name, {}))])
        for name in ("math", "clarity")
    ]
    pool = RewardPool(hosts)
    assert pool.score(BATCH).scores == {"math": [1.0, 1.0, 0.0], "clarity": [1.0, 0.0, 0.5]}
    pool.close()


def test_a_hang_is_seen_at_the_deadline_and_another_replica_scores(obedient, tmp_path):
    health(obedient)
    began = time.monotonic()
    scored = obedient.score(rows(f"hang {tmp_path}/hung", *["fine"] * 7))
    seconds = time.monotonic() - began
    assert (scored.scores["told"], scored.dropped) == ([1.0] * 8, ())
    figures = health(obedient)
    assert (figures["retries"], figures["restarts"]) == (1, 1)
    (told,) = obedient.told()
    assert (told.type, told.data["failures"]) == ("reward.recovered", {"deadline": 1})
    assert DEADLINE_S <= figures["latency_s_max"] <= seconds
    tell("T11", actor_deadline_s=DEADLINE_S, actor_detected_s=round(figures["latency_s_max"], 2), retries=1)


def test_what_always_hangs_or_dies_is_an_error_after_its_tries_and_the_next_batch_is_scored(obedient):
    with pytest.raises(RewardDeadlineError, match=r"objective 'told': no scores within 2 s \(3 times\)"):
        obedient.score(rows("hang"))
    assert obedient.told()[0].data["failures"] == {"deadline": 3}
    with pytest.raises(RewardFailedError, match=r"objective 'told': .* \(3 times\)"):
        obedient.score(rows("kill", *["fine"] * 3))
    assert obedient.told()[0].data["failures"] == {"died": 3}
    assert obedient.score(rows("fine")).scores["told"] == [1.0]
    tell("T11", attempts_per_hang=3)
    tell("T13", infrastructure_attempts=3)


@pytest.mark.parametrize(("what", "kind"), [("kill", "died"), ("starve", "memory")])
def test_a_process_that_is_lost_once_costs_nothing_but_time(obedient, tmp_path, what, kind):
    health(obedient)
    scored = obedient.score(rows("fine", f"{what} {tmp_path}/once", *["fine"] * 6))
    assert (scored.scores["told"], scored.dropped) == ([1.0] * 8, ())
    (told,) = obedient.told()
    assert (told.type, told.data["failures"], told.data["restarts"]) == ("reward.recovered", {kind: 1}, 1)


def test_bad_rows_of_every_sort_are_left_out_exactly(obedient):
    what = ["fine"] * 60
    bad = {3: "nan", 11: "inf", 17: "-inf", 18: "huge", 30: "text", 41: "raise", 42: "raise", 59: "nan"}
    for row, word in bad.items():
        what[row] = word
    health(obedient)
    scored = obedient.score(rows(*what))
    assert scored.dropped == tuple(bad)
    for column in scored.scores.values():
        assert [row for row, score in enumerate(column) if score is None] == list(bad)
    (told,) = obedient.told()
    assert (told.type, told.data["rows"], told.data["attempts"]) == ("reward.rows_dropped", list(bad), 2)
    assert {words.split(" at ")[0]: count for words, count in told.data["problems"].items()} == {
        "got nan": 2, "got inf": 1, "got -inf": 1, "got 1e+300": 1, "got a str": 1, "Unpicklable": 2,
    }  # fmt: skip
    assert "not to be sent" not in str(told)
    figures = health(obedient)
    assert (figures["restarts"], figures["retries"]) == (0, 0)  # no failure of the infrastructure
    tell("T12", injected_rows=len(bad), masked_rows=len(scored.dropped))
    tell("T13", data_attempts=told.data["attempts"])


def test_a_reward_that_cannot_be_built_is_named():
    def fatal():
        raise OSError("no such weights")

    pool = RewardPool([Host("bad", {"bad": SINGLE}, [actor_replica(fatal)], Hosting(backoff_s=0.01))])
    with pytest.raises(RewardFailedError, match=r"objective 'bad': .*no such weights"):
        pool.wait_ready()
    pool.close()


def wait_until_dead(actor) -> None:
    import ray

    try:
        while ray.get(actor.ready.remote(), timeout=60):
            time.sleep(0.05)
    except ray.exceptions.RayActorError:
        return


def test_an_actor_that_is_killed_from_outside_is_replaced(obedient):
    import ray

    for replica in obedient._hosts[1]._replicas:
        ray.kill(replica._actor)
        wait_until_dead(replica._actor)  # until then it may go on answering
    assert obedient.score(rows(*["fine"] * 8)).scores["told"] == [1.0] * 8
    (told,) = obedient.told()
    assert set(told.data["failures"]) == {"died"}
