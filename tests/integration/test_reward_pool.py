"""Rewards in real Ray actors: they score, hang, raise and die."""

from __future__ import annotations

import functools
import os
import time

import pytest

from rewards import registry
from rewards.base import RewardBatch, RewardDeadlineError, RewardFailedError, RewardValueError
from rewards.pool import RewardPool, remote_scorers

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


def make_troubled(how: str, flag: str):
    """A factory of a reward that fails once, on its first batch, and then scores 1; `flag` is a file's path.

    The class is made here so that it travels to the actor by value.
    """

    class Troubled:
        def score(self, batch):
            if os.path.exists(flag):  # noqa: PTH110
                return [1.0] * len(batch)
            open(flag, "w").close()  # noqa: PTH123
            if how == "hang":
                time.sleep(600)
            if how == "raise":
                raise ZeroDivisionError("oh no")
            if how == "die":
                os._exit(1)
            return [1.0, float("nan"), 1.0]

    return Troubled


def make_fatal():
    class Fatal:
        def __init__(self):
            raise OSError("no such weights")

    return Fatal


@pytest.fixture
def pool_of():
    """Builds pools, with the built-in conciseness beside what is given, and closes them."""
    pools = []

    def build(deadline_s: float = 60.0, **factories) -> RewardPool:
        good = functools.partial(registry.build, "conciseness", {})
        pools.append(RewardPool(remote_scorers({"short": good, **factories}), deadline_s=deadline_s))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()


SHORT = [1 - 20 / 64, 1.0, 0.0]


def test_the_built_in_rewards_score_in_actors(pool_of):
    right, clear = (functools.partial(registry.build, name, {}) for name in ("math", "clarity"))
    pool = pool_of(right=right, clear=clear)
    assert pool.score(BATCH) == {"short": SHORT, "right": [1.0, 1.0, 0.0], "clear": [1.0, 0.0, 0.5]}
    assert set(pool.timings_s) == {"short", "right", "clear"}
    assert pool.score(BATCH)["right"] == [1.0, 1.0, 0.0]


def test_a_hung_actor_is_an_error_at_the_deadline_and_is_replaced(pool_of, tmp_path):
    pool = pool_of(deadline_s=8.0, stuck=make_troubled("hang", str(tmp_path / "hung")))
    started = time.monotonic()
    with pytest.raises(RewardDeadlineError, match="objective 'stuck': no scores within 8 s"):
        pool.score(BATCH)
    assert time.monotonic() - started < 12
    assert (tmp_path / "hung").exists()
    assert pool.score(BATCH) == {"short": SHORT, "stuck": [1.0] * 3}


def test_an_actor_that_dies_scores_the_batch_again(pool_of, tmp_path):
    pool = pool_of(fragile=make_troubled("die", str(tmp_path / "died")))
    assert pool.score(BATCH) == {"short": SHORT, "fragile": [1.0] * 3}
    assert (tmp_path / "died").exists()


def test_an_actor_that_was_killed_for_good_is_an_error_once(pool_of):
    import ray

    pool = pool_of()
    assert pool.score(BATCH) == {"short": SHORT}
    ray.kill(pool._scorers["short"]._actor)
    with pytest.raises(RewardFailedError, match="objective 'short': "):
        pool.score(BATCH)
    assert pool.score(BATCH) == {"short": SHORT}


def test_an_exception_in_an_actor_is_named_with_its_type(pool_of, tmp_path):
    pool = pool_of(bad=make_troubled("raise", str(tmp_path / "raised")))
    with pytest.raises(RewardFailedError, match="objective 'bad': ZeroDivisionError: oh no") as caught:
        pool.score(BATCH)
    assert caught.value.reward == "bad"
    assert pool.score(BATCH) == {"short": SHORT, "bad": [1.0] * 3}


def test_a_bad_score_from_an_actor_is_named(pool_of, tmp_path):
    pool = pool_of(bad=make_troubled("nan", str(tmp_path / "bad")))
    with pytest.raises(RewardValueError, match=r"objective 'bad': .* for row 1, got nan"):
        pool.score(BATCH)


def test_a_reward_that_cannot_be_built_is_named(pool_of):
    with pytest.raises(RewardFailedError, match=r"(?s)objective 'bad': .*no such weights"):
        pool_of(bad=make_fatal()).score(BATCH)
