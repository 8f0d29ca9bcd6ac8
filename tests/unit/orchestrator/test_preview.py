"""What a change of weights would have made of kept rollouts."""

import itertools
import random
from typing import Any

import pytest
import torch

from orchestrator.preview import preview
from orchestrator.steering import initial_steering
from policies.estimators import Gdpo
from policies.plugins import find_estimator
from tests.loop_fakes import make_spec

GROUPS = [  # (accuracy, brevity) of each rollout: they disagree in the first group and agree in the second
    [(1.0, 0.0), (0.0, 1.0), (1.0, 0.1), (0.0, 0.9)],
    [(1.0, 1.0), (0.0, 0.0), (1.0, 0.8), (0.0, 0.1)],
]
WEIGHTS = {"accuracy": 0.75, "brevity": 0.25}


def rows(groups: Any = GROUPS, scales: tuple[float, float] = (1.0, 1.0)) -> list[dict[str, Any]]:
    return [
        {
            "step": 2,
            "group": p,
            "prompt_index": 10 + p,
            "signal": {"accuracy": accuracy, "brevity": brevity},
            "scales": {"accuracy": scales[0], "brevity": scales[1]},
            "choice": {
                "weights": [0.75, 0.25],
                "signs": list(scales),
                "directions": [1.0, 1.0],
                "reward_scale": 1.0,
                "preference": [0.5, 0.5],
            },
        }
        for p, group in enumerate(groups)
        for accuracy, brevity in group
    ]


def changed(accuracy: float, groups: Any = GROUPS, **options: Any) -> dict[str, Any]:
    spec = options.pop("spec", make_spec())
    update = {"mode": "manual", "weights": {"accuracy": accuracy, "brevity": 1 - accuracy}, **options}
    return preview(spec, rows(groups), WEIGHTS, initial_steering(spec).model_copy(update=update))


def test_signs_change_where_the_objectives_disagree() -> None:
    flips = changed(0.2)["sign_changes"]
    assert [flip["number"] for flip in flips["rollouts"]] == [1, 2, 3, 4]
    assert (flips["count"], flips["share"]) == (4, 0.5)
    signal_PGK = torch.tensor(GROUPS, dtype=torch.float64)
    before, after = (Gdpo()(signal_PGK, torch.tensor([w, 1 - w])).flatten().tolist() for w in (0.75, 0.2))
    for flip in flips["rollouts"]:
        assert flip["prompt_index"] == 10
        assert flip["before"] == pytest.approx(before[flip["number"] - 1])
        assert flip["after"] == pytest.approx(after[flip["number"] - 1])
        assert flip["before"] * flip["after"] < 0


def test_the_same_weights_change_nothing() -> None:
    found = changed(0.75)
    assert found["sign_changes"] == {"count": 0, "share": 0.0, "rollouts": []}
    assert found["weights"]["before"] == pytest.approx(found["weights"]["after"])
    assert found["effective_share"]["before"] == pytest.approx(found["effective_share"]["after"])


def test_shares_are_of_the_weighted_advantages() -> None:
    found = changed(0.0)
    assert found["effective_share"]["after"] == {"accuracy": 0.0, "brevity": 1.0}
    before = found["effective_share"]["before"]
    advantages_BK = Gdpo().per_objective(torch.tensor(GROUPS, dtype=torch.float64)).flatten(0, 1).abs().sum(dim=0)
    parts_K = advantages_BK * torch.tensor([0.75, 0.25])
    assert list(before.values()) == pytest.approx((parts_K / parts_K.sum()).tolist())
    assert sum(before.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["grpo", "dvao", "rloo"])
@pytest.mark.parametrize("weight", [0.5, 0.9])
def test_shares_of_rules_that_add_rewards_first_are_of_the_sum(name: str, weight: float) -> None:
    """A right answer is worth 1 and a token 1 too: the slider moves nothing, and the shares say so."""
    chance = random.Random(0)
    groups = [[(float(chance.random() < 0.5), chance.gauss(200, 60)) for _ in range(8)] for _ in range(6)]
    found = changed(weight, groups, spec=make_spec(estimator={"name": name}))
    weights_K = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    rewards_PGK = torch.tensor(groups, dtype=torch.float64)
    advantages_B = find_estimator(name)()(rewards_PGK, weights_K).flatten().double()
    parts_BK = (rewards_PGK - rewards_PGK.mean(dim=1, keepdim=True)).flatten(0, 1) * weights_K
    correlation = torch.corrcoef(torch.stack([*parts_BK.T, advantages_B]))[2]
    assert correlation[1] > 0.95
    assert correlation[0].abs() < 0.3
    assert found["effective_share"]["after"]["brevity"] > 0.8
    assert found["effective_share"]["after"]["brevity"] == pytest.approx(
        float(parts_BK[:, 1].abs().sum() / parts_BK.abs().sum()), abs=0.05
    )


def test_conflicts_and_correlation() -> None:
    (pair,) = changed(0.5)["pairs"]
    assert pair["objectives"] == ["accuracy", "brevity"]
    assert pair["conflicting_share"] == 0.5
    assert abs(pair["correlation"]) < 0.2
    spec = make_spec()
    agreeing = preview(spec, rows(GROUPS[1:]), WEIGHTS, initial_steering(spec))["pairs"][0]
    assert (agreeing["conflicting_share"], agreeing["correlation"] > 0.9) == (0.0, True)


def test_no_spread_gives_no_correlation_and_no_share() -> None:
    spec = make_spec()
    found = preview(spec, rows([[(0.5, 0.5)] * 4]), WEIGHTS, initial_steering(spec))
    assert found["pairs"][0]["correlation"] is None
    assert found["effective_share"]["after"] == {"accuracy": 0.0, "brevity": 0.0}
    assert found["sign_changes"]["count"] == 0


def test_bounds_clamp() -> None:
    found = changed(0.1, bounds={"accuracy": (0.4, 1.0), "brevity": (0.0, 1.0)})
    assert found["weights"]["after"] == pytest.approx({"accuracy": 0.4, "brevity": 0.6})
    assert found["clamped"] == {"accuracy": True, "brevity": False}


@pytest.mark.parametrize(
    ("rule", "accuracy"),
    [
        ("fixed", 0.2),
        ("hypervolume", 0.2),  # scales the batch, not the weights
        ("gradient", 0.2),  # begins anew at another preference
        ("hv_gradient", 3 / 7),  # .75 / .5 is its factor of accuracy, .25 / .5 of brevity: .2 * 1.5 against .8 * .5
        ("tchebycheff", 0.75),  # can't tell
    ],
)
def test_in_auto_the_choice_follows_the_preference_where_the_rule_can_tell(rule: str, accuracy: float) -> None:
    spec = make_spec(weighting={"name": rule})
    after = changed(0.2, mode="auto", spec=spec)["weights"]["after"]
    assert after == pytest.approx({"accuracy": accuracy, "brevity": 1 - accuracy})
    blended = changed(0.2, mode="blend", blend=0.5, spec=spec)["weights"]["after"]["accuracy"]
    assert blended == pytest.approx((accuracy + 0.2) / 2)


def test_what_older_jobs_kept_is_taken_as_it_was() -> None:
    spec = make_spec(weighting={"name": "hv_gradient"})
    kept = rows()
    for row in kept:
        del row["choice"]["preference"]
    wanted = initial_steering(spec).model_copy(update={"weights": {"accuracy": 0.2, "brevity": 0.8}})
    assert preview(spec, kept, WEIGHTS, wanted)["weights"]["after"] == pytest.approx(WEIGHTS)


def test_an_objective_that_the_strategy_pushes_down_stays_so_in_auto_and_follows_the_person_in_manual() -> None:
    spec = make_spec(weighting={"name": "hypervolume"})
    auto = initial_steering(spec)
    turned = rows(scales=(1.0, -1.0))
    assert preview(spec, turned, WEIGHTS, auto)["sign_changes"]["count"] == 0
    manual = auto.model_copy(update={"mode": "manual", "weights": {"accuracy": 0.01, "brevity": 0.99}})
    found = preview(spec, turned, {"accuracy": 0.01, "brevity": 0.99}, manual)
    assert found["sign_changes"]["count"] == 8  # the same weight, the other way


ESTIMATORS = ["gdpo", "grpo", "dr_grpo", "mo_grpo", "rloo", "reinforce", "hvo", "dvao", "gd2po", "softmin"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unequal_groups_and_missing_rewards_stay_finite(name: str) -> None:
    spec = make_spec(estimator={"name": name})
    kept = rows([GROUPS[0], GROUPS[1][:2]])
    kept[1]["signal"]["brevity"] = None
    wanted = initial_steering(spec).model_copy(update={"mode": "manual", "weights": {"accuracy": 0.1, "brevity": 0.9}})
    found = preview(spec, kept, WEIGHTS, wanted)
    numbers = [found["sign_changes"]["share"], *found["effective_share"]["after"].values()]
    numbers += itertools.chain.from_iterable(
        (flip["before"], flip["after"]) for flip in found["sign_changes"]["rollouts"]
    )
    assert all(value == value and abs(value) < 1e6 for value in numbers)
    assert found["rollouts"] == 6
