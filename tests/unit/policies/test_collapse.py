"""The watch tells one objective being hacked from a person who asked for the trade."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.collapse import CollapseWatch

NAMES = ("accuracy", "conciseness", "clarity")
EQUAL = dict.fromkeys(NAMES, 1 / 3)


def means(accuracy, conciseness, clarity):
    return dict(zip(NAMES, (accuracy, conciseness, clarity), strict=True))


def watch(drop=0.15, total_drop=0.05):
    return CollapseWatch(drop=drop, total_drop=total_drop)


def observe_all(one, series, preference=EQUAL, start=0):
    return [one.observe(start + i, means(*row), preference) for i, row in enumerate(series)]


LATE_COLLAPSE = [(0.62, 0.5, 0.7), (0.78, 0.5, 0.9), (0.88, 0.5, 0.96), (0.80, 0.5, 0.97), (0.42, 0.5, 0.98)]


def test_a_run_that_rises_is_none():
    rising = [(0.5 + 0.04 * i, 0.4 + 0.05 * i, 0.6 + 0.02 * i) for i in range(10)]
    assert observe_all(watch(), rising) == [None] * 10


def test_the_late_collapse_is_seen_and_named():
    """Accuracy .88 -> .42 while clarity stays: as in the published runs of static weights."""
    *before, found = observe_all(watch(), LATE_COLLAPSE)
    assert before == [None] * 4
    assert found is not None
    assert (found.step, found.best_step, found.objective) == (4, 2, "accuracy")
    assert (found.best, found.now) == (0.88, 0.42)
    assert found.held_up == ("conciseness", "clarity")
    assert found.total_best == pytest.approx((0.88 + 0.5 + 0.96) / 3)
    assert found.total_now == pytest.approx((0.42 + 0.5 + 0.98) / 3)
    assert found.describe() == (
        "accuracy fell from 0.88 to 0.42 while conciseness and clarity held up; "
        "the weighted total is 0.63, below 0.78 at step 2"
    )


def test_what_falls_too_did_not_hold_up():
    found = observe_all(watch(), [(0.9, 0.5, 0.9), (0.4, 0.5, 0.8)])[-1]
    assert found is not None
    assert found.held_up == ("conciseness",)


def test_a_person_steering_to_conciseness_is_no_collapse():
    """Accuracy falls by more than any threshold, on purpose, while what was asked for rises."""
    preference = means(0.1, 0.8, 0.1)
    series = [(0.88, 0.3, 0.95), (0.75, 0.5, 0.95), (0.55, 0.75, 0.9), (0.40, 0.95, 0.85)]
    assert observe_all(watch(), series, preference) == [None] * 4


def test_the_same_fall_under_equal_weights_is_one():
    series = [(0.88, 0.5, 0.95), (0.40, 0.6, 0.85)]
    assert observe_all(watch(), series)[-1] is not None


def test_new_weights_are_a_new_aim():
    one = watch()
    observe_all(one, LATE_COLLAPSE[:3])
    steered = means(0.1, 0.8, 0.1)
    assert one.observe(3, means(0.42, 0.5, 0.98), steered) is None
    assert one.observe(4, means(0.42, 0.5, 0.98), steered) is None
    assert one.observe(5, means(0.42, 0.3, 0.98), steered).objective == "conciseness"


@pytest.mark.parametrize(
    ("steered", "rows", "collapsed"),
    [
        (means(0.5, 0.2, 0.3), [(0.42, 0.5, 0.98), (0.40, 0.5, 0.98), (0.80, 0.5, 0.98)], [True, True, False]),
        (means(0.3, 0.4, 0.3), [(0.42, 0.6, 0.98), (0.42, 0.95, 0.98)], [True, False]),  # more than it ever had
        (means(0.0, 0.5, 0.5), [(0.42, 0.5, 0.98)], [False]),  # what fell is no longer asked for
    ],
    ids=["towards what fell", "the total rises", "to nothing"],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_steer_does_not_end_a_collapse_by_itself(steered, rows, collapsed, resumed):
    """But what the new weights make of the best before it, and of now."""
    one, other = watch(), watch()
    assert observe_all(one, LATE_COLLAPSE)[-1] is not None
    if resumed:
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    found = observe_all(other if resumed else one, rows, steered, start=5)
    assert [item is not None for item in found] == collapsed
    assert found[0] is None or (found[0].best_step, found[0].objective, found[0].best) == (2, "accuracy", 0.88)


def drawn(rng, chances_KP):
    """What is observed of one completion for each prompt: means, weights, standard errors."""
    scores_KP = (rng.random(chances_KP.shape) < chances_KP).astype(float)
    errors_K = scores_KP.std(axis=1, ddof=1) / chances_KP.shape[1] ** 0.5
    return means(*scores_KP.mean(axis=1)), EQUAL, means(*errors_K)


@pytest.mark.parametrize(
    ("prompts", "evaluations", "runs"), [(50, 30, 200), (100, 30, 200), (50, 500, 6)], ids=["50", "100", "a long run"]
)
@pytest.mark.parametrize("difficulties", ["spread", "all even"])
def test_a_policy_that_does_not_change_hardly_ever_collapses(prompts, evaluations, runs, difficulties):
    """In fewer than 2% of runs of 30 evaluations, the same prompts each time; in none of 6 long runs."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(runs):
        one = watch()
        chances_KP = rng.random((3, prompts)) if difficulties == "spread" else np.full((3, prompts), 0.5)
        alarms += any(one.observe(step, *drawn(rng, chances_KP)) is not None for step in range(evaluations))
    assert alarms < max(1, 0.02 * runs)


@pytest.mark.parametrize(("prompts", "now"), [(50, 0.25), (100, 0.4), (300, 0.5)])
def test_a_real_fall_is_seen_through_the_noise(prompts, now):
    """Accuracy .85 -> `now` while the others stay; seen within three evaluations in 95% of the runs."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(100):
        one = watch()
        before, after = (np.repeat([[chance], [0.5], [0.9]], prompts, axis=1) for chance in (0.85, now))
        found = [one.observe(step, *drawn(rng, before if step < 3 else after)) for step in range(6)]
        seen += any(one is not None and one.objective == "accuracy" and one.step > 2 for one in found)
    assert seen >= 95


def test_a_hack_that_all_but_makes_up_for_what_it_cost_is_none_the_less_one():
    """The quickstart under .2 / .4 / .4, as measured: accuracy stays lost, and the total comes back to within .03."""
    rows = [(0.49, 0.638, 0.98), (0.025, 0.776, 0.83), (0.035, 0.771, 0.978), (0.025, 0.79, 0.995), (0.03, 0.95, 0.995)]
    found = observe_all(watch(), rows, means(0.2, 0.4, 0.4))
    assert [item is not None for item in found] == [False, True, True, True, False]


def test_once_begun_a_collapse_lasts_until_what_fell_is_within_the_threshold():
    errors = means(0.05, 0.05, 0.05)
    rows = [(0.9, 0.5, 0.9), (0.65, 0.5, 0.9), (0.3, 0.5, 0.9), (0.65, 0.5, 0.9), (0.8, 0.5, 0.9)]
    one = watch()
    found = [one.observe(step, means(*row), EQUAL, errors) for step, row in enumerate(rows)]
    assert [item is not None for item in found] == [False, False, True, True, False]
    assert found[2].fall_error == pytest.approx(0.05 * 2**0.5)
    assert "fell from 0.90 to 0.30 (standard error of the fall 0.07) while" in found[2].describe()


def test_how_often_it_has_looked_is_in_the_checkpoint():
    errors = means(0.03, 0.03, 0.03)
    one, other, short = watch(), watch(), watch()
    for step in range(400):
        assert one.observe(step, means(0.9, 0.5, 0.9), EQUAL, errors) is None
    short.observe(0, means(0.9, 0.5, 0.9), EQUAL, errors)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    low = means(0.5, 0.5, 0.9)  # the total by 3.4 standard errors beyond its threshold
    found = [each.observe(400, low, EQUAL, errors) for each in (one, other, short)]
    assert [item is not None for item in found] == [False, False, True]


def test_a_checkpoint_that_does_not_say_whether_it_is_in_a_collapse_is_in_none():
    one = watch()
    one.load_state_dict({"weights": {}, "best": None})
    assert observe_all(one, LATE_COLLAPSE)[-1] is not None


@pytest.mark.parametrize("moved", [1e-16, 0.007], ids=["last digits", "a nudge"])
def test_a_steer_does_not_forget_the_best(moved):
    one = watch()
    observe_all(one, [(0.6, 0.55, 0.8), (0.76, 0.6, 0.9)])
    found = one.observe(2, means(0.21, 0.6, 0.9), means(1 / 3 + moved, 1 / 3 - moved, 1 / 3))
    assert found is not None
    assert (found.best_step, found.objective) == (1, "accuracy")


def test_a_steer_does_not_begin_a_collapse_by_itself():
    """Conciseness was given up on purpose, then is asked for again: what it fell before that is nobody's hack."""
    one = watch()
    assert observe_all(one, [(0.5, 0.9, 0.5), (0.48, 0.5, 0.5)], means(0.9, 0.05, 0.05)) == [None] * 2
    steered = means(0.1, 0.8, 0.1)
    assert observe_all(one, [(0.48, 0.5, 0.5), (0.48, 0.55, 0.5)], steered, start=2) == [None] * 2
    assert one.observe(4, means(0.48, 0.3, 0.5), steered).best_step == 3


def test_a_run_stays_in_its_collapse_until_it_recovers():
    one = watch()
    found = observe_all(one, [*LATE_COLLAPSE, (0.45, 0.5, 0.97), (0.80, 0.5, 0.97), (0.93, 0.5, 0.97)])
    assert [item is not None for item in found[4:]] == [True, True, False, False]
    assert one.observe(8, means(0.5, 0.5, 0.97), EQUAL).best_step == 7  # a new best to fall from


@settings(max_examples=60, deadline=None)
@given(noise=st.lists(st.tuples(*[st.floats(-0.07, 0.07)] * 3), min_size=1, max_size=20))
def test_noise_below_the_threshold_is_none(noise):
    series = [(0.7 + a, 0.5 + b, 0.8 + c) for a, b, c in noise]
    assert not any(observe_all(watch(), series))


@pytest.mark.parametrize(("drop", "total_drop", "seen"), [(0.15, 0.05, True), (0.25, 0.05, False), (0.15, 0.10, False)])
def test_both_thresholds_must_be_met(drop, total_drop, seen):
    found = observe_all(watch(drop, total_drop), [(0.8, 0.5, 0.8), (0.6, 0.5, 0.8)])[-1]  # total falls by 0.067
    assert (found is not None) == seen


def test_a_small_fall_of_a_heavy_objective_hides_no_large_one():
    """Clarity falls by half its range; accuracy's 0.1 weighs more in the total, and is no collapse by itself."""
    found = observe_all(watch(), [(0.8, 0.5, 0.9), (0.7, 0.5, 0.4)], means(0.8, 0.1, 0.1))[-1]
    assert found is not None
    assert found.objective == "clarity"


def test_an_objective_that_nobody_asked_for_does_not_collapse():
    assert observe_all(watch(), [(0.8, 0.9, 0.8), (0.7, 0.1, 0.7)], means(0.5, 0.0, 0.5))[-1] is None


def test_state_round_trip_continues_identically():
    one, other = watch(), watch()
    observe_all(one, LATE_COLLAPSE[:3])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rest = LATE_COLLAPSE[3:]
    assert observe_all(other, rest, start=3) == observe_all(one, rest, start=3)
    assert other.state_dict() == one.state_dict()

    fresh = watch()
    fresh.load_state_dict(json.loads(json.dumps(watch().state_dict())))
    assert observe_all(fresh, LATE_COLLAPSE)[-1] is not None
