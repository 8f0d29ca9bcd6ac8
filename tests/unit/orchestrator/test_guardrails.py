import json
import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.guardrails import Breach, Guardrails
from orchestrator.specs.guardrails import GuardrailSpec, metrics, problems


def rail(metric: str = "kl", **fields: Any) -> GuardrailSpec:
    return GuardrailSpec.model_validate({"metric": metric, **fields})


def record(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "evaluation": None, **figures}


def steps_of_breaches(rails: Guardrails, values: list[float]) -> list[int]:
    return [breach.step for step, value in enumerate(values, 1) for breach in rails.observe(record(step, kl=value))]


def test_a_ceiling_is_breached_above_it_and_not_at_it() -> None:
    rails = Guardrails([rail(max=0.5)])
    assert rails.observe(record(1, kl=0.5)) == []
    assert rails.observe(record(2, kl=0.51)) == [
        Breach(step=2, metric="kl", value=0.51, limit="max", bound=0.5, for_steps=1, action="alert")
    ]


def test_a_floor_is_breached_below_it_and_not_at_it() -> None:
    rails = Guardrails([rail("objectives.accuracy.mean", min=0.2, action="pause")])
    assert rails.observe(record(1, objectives={"accuracy": {"mean": 0.2}})) == []
    (breach,) = rails.observe(record(2, objectives={"accuracy": {"mean": 0.1}}))
    assert (breach.limit, breach.action, breach.value) == ("min", "pause", 0.1)
    assert breach.describe() == "objectives.accuracy.mean is 0.1; wanted at least 0.2"


def test_a_breach_is_told_once_until_the_figure_was_back_inside() -> None:
    assert steps_of_breaches(Guardrails([rail(max=1)]), [2, 2, 2, 0, 2, 2]) == [1, 5]


def test_for_steps_counts_readings_in_a_row() -> None:
    assert steps_of_breaches(Guardrails([rail(max=1, for_steps=3)]), [2, 2, 0, 2, 2, 2, 2, 0, 2, 2, 2]) == [6, 11]


def test_a_streak_goes_on_where_one_limit_takes_over_from_the_other() -> None:
    rails = Guardrails([rail(min=-1, max=1, for_steps=2)])
    assert steps_of_breaches(rails, [2, -2]) == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "text"])
@pytest.mark.parametrize("limit", ["min", "max"])
def test_what_is_no_number_is_outside(value: Any, limit: str) -> None:
    (breach,) = Guardrails([rail("loss", **{limit: 0.0})]).observe(record(1, loss=value))
    assert (breach.value, breach.limit) == (None, limit)
    assert breach.describe().startswith("loss is not a finite number; wanted")
    json.dumps(breach.describe(), allow_nan=False)


def test_kl_that_nobody_measures_neither_breaks_nor_mends() -> None:
    rails = Guardrails([rail(max=0.5, for_steps=2)])
    assert [len(rails.observe(record(step, kl=kl))) for step, kl in enumerate((0.6, None, 0.6), 1)] == [0, 0, 1]
    assert len(Guardrails([rail(max=0.5)]).observe(record(1, kl=math.nan))) == 1


def test_a_step_without_the_figure_neither_breaks_nor_mends() -> None:
    rails = Guardrails([rail("evaluation.objectives.a", min=0.5, for_steps=2)])
    low = {"objectives": {"a": 0.1}}
    assert rails.observe(record(1, evaluation=low)) == []
    assert rails.observe(record(2)) == []
    assert rails.observe(record(3, evaluation={"objectives": {}})) == []
    assert [breach.step for breach in rails.observe(record(4, evaluation=low))] == [4]


def test_several_guardrails_are_watched_apart_in_their_order() -> None:
    rails = Guardrails([rail(max=1), rail("entropy", min=0.1), rail(max=5, action="pause")])
    breaches = rails.observe(record(1, kl=6.0, entropy=0.05))
    assert [(breach.metric, breach.bound) for breach in breaches] == [("kl", 1), ("entropy", 0.1), ("kl", 5)]
    assert rails.observe(record(2, kl=6.0, entropy=0.05)) == []


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_resumed_watch_tells_what_an_undisturbed_one_would(cut: int) -> None:
    specs = [rail(max=1, for_steps=3), rail(min=0)]
    values = [2.0, 2.0, 2.0, -1.0, -1.0, 2.0, 2.0, 2.0]
    whole = Guardrails(specs)
    expected = [whole.observe(record(step, kl=value)) for step, value in enumerate(values)]
    first, second = Guardrails(specs), Guardrails(specs)
    found = [first.observe(record(step, kl=value)) for step, value in enumerate(values[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.observe(record(step, kl=value)) for step, value in enumerate(values[cut:], cut)]
    assert found == expected


def test_a_total_that_is_above_its_limit_is_told_again_after_each_resume() -> None:
    rails = Guardrails([rail("cost", max=10, action="pause")])
    assert [len(rails.observe(record(step, cost=cost))) for step, cost in enumerate((5, 12, 13), 1)] == [0, 1, 0]
    resumed = Guardrails(rails.specs)
    resumed.load_state_dict(rails.state_dict())
    assert [breach.value for breach in resumed.observe(record(4, cost=14))] == [14]


def test_the_state_of_other_guardrails_is_refused() -> None:
    with pytest.raises(ValueError, match="1 guardrails in the checkpoint, 0 in the spec"):
        Guardrails([]).load_state_dict({"streaks": [0]})  # of before they could be changed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected min, max or both"),
        ({"min": 2, "max": 1}, "exceeds max"),
        ({"max": math.inf}, "finite"),
        ({"max": math.nan}, "finite"),
        ({"max": 1, "for_steps": 0}, "greater than or equal to 1"),
        ({"max": 1, "action": "stop"}, "'alert' or 'pause'"),
        ({"max": 1, "minimum": 1}, "Extra inputs"),
    ],
)
def test_a_guardrail_that_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        rail(**fields)


def test_an_unknown_metric_gets_the_nearest_name() -> None:
    rails = TypeAdapter(tuple[GuardrailSpec, ...]).validate_python(
        [
            {"metric": "kl", "max": 1},
            {"metric": "truncated_shar", "max": 1},
            {"metric": "objectives.accurac.mean", "min": 0},
            {"metric": "zzz", "min": 0},
        ]
    )
    found = dict(problems(rails, ("accuracy", "brevity")))
    assert found.keys() == {"1.metric", "2.metric", "3.metric"}
    assert "did you mean 'truncated_share'?" in found["1.metric"]
    assert "did you mean 'objectives.accuracy.mean'?" in found["2.metric"]
    assert "figures are kl, entropy" in found["3.metric"]


def test_every_metric_that_may_be_named_is_read_where_the_loop_writes_it() -> None:
    names = metrics(("accuracy",))
    document: dict[str, Any] = {"step": 1}
    for name in names:
        *branches, leaf = name.split(".")
        place = document
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = 7.0
    breaches = Guardrails([rail(name, max=1) for name in names]).observe(document)
    assert [breach.metric for breach in breaches] == list(names)


@pytest.mark.parametrize(
    ("metric", "meant"),
    [
        ("accuracy", "objectives.accuracy.mean"),
        ("acuracy", "objectives.accuracy.mean"),
        ("entropi", "entropy"),
        ("objectives.acuracy.mean", "objectives.accuracy.mean"),
    ],
)
def test_a_figure_that_there_is_not_gets_the_one_that_was_meant(metric: str, meant: str) -> None:
    assert list(problems((rail(metric, min=0.3),), ("accuracy", "kl"))) == [
        ("0.metric", f"no figure '{metric}', did you mean '{meant}'?")
    ]


def test_others_that_are_followed_keep_the_counts_of_those_that_stay() -> None:
    rails = Guardrails([rail(max=1, for_steps=3), rail("entropy", min=0.1, for_steps=2)])
    assert steps_of_breaches(rails, [2, 2]) == []
    again = Guardrails([])
    again.load_state_dict(rails.state_dict())
    for watch in (rails, again):
        watch.follow([rail("loss", max=1), rail(max=1, for_steps=3)])
        assert steps_of_breaches(watch, [2]) == [1]
        watch.follow([rail(max=3)])
        assert steps_of_breaches(watch, [2]) == []
        watch.follow([rail(max=1)])
        assert steps_of_breaches(watch, [2]) == [1], "another limit counts anew"
