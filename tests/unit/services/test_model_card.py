"""The README.md of a policy that leaves the installation."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from services.model_card import model_card
from tests.toy_jobs import toy_spec

POINT = {
    "step": 40,
    "objectives": {"accuracy": 0.75, "brevity": 0.5},
    "standard_errors": {"accuracy": 0.0125},
    "mean_tokens": 31.5,
    "test": {
        "greedy": {
            "objectives": {"accuracy": 0.7, "brevity": 0.4},
            "standard_errors": {"accuracy": 0.02, "brevity": None},
        }
    },
}


def card_of(spec: dict[str, Any], **parts: Any) -> tuple[Any, str]:
    found = model_card("job-1", 40, spec, **{"point": None, "weights": None, "is_adapter": False, **parts})
    _, head, text = found.split("---\n", 2)
    return yaml.safe_load(head), text


def _spec(model: str, **parts: Any) -> dict[str, Any]:
    document: dict[str, Any] = toy_spec(steps=50).model_dump(mode="json") | parts
    document["policy"] |= {"model": model, "revision": "abc"}
    return document


def test_it_has_every_objective_with_its_error_and_weight_and_how_they_were_measured() -> None:
    spec = _spec("org/base")
    head, text = card_of(spec, point=POINT, weights={"accuracy": 0.3, "brevity": 0.7})
    assert head == {
        "base_model": "org/base", "base_model_relation": "finetune", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["equipoise"],
    }  # fmt: skip
    rewards = [objective["reward"]["name"] for objective in spec["objectives"]]
    assert "job `job-1`, step 40, from `org/base` (revision `abc`)." in text
    assert "| objective | reward | validation | test, greedy | weight |" in text
    assert f"| accuracy | `{rewards[0]}` | 0.75 ± 0.0125 | 0.7 ± 0.02 | 0.3 |" in text
    assert f"| brevity | `{rewards[1]}` | 0.5 | 0.4 | 0.7 |" in text
    assert "After ± is the standard error" in text
    assert f"temperature {spec['evaluation']['temperature']}" in text
    assert f"{spec['rollout']['max_tokens']} tokens at most; their mean length is 31.5 tokens" in text


def test_what_was_cut_off_in_sampling_is_said() -> None:
    spec = _spec("org/base")
    assert "and top_p 1.0, " + str(spec["rollout"]["max_tokens"]) in card_of(spec, point=POINT)[1]
    spec["rollout"] |= {"top_k": 50, "min_p": 0.1}
    assert "and top_p 1.0, top_k 50, min_p 0.1, " in card_of(spec, point=POINT)[1]
    spec["evaluation"] |= {"top_p": 0.7, "min_p": 0.0}
    assert "and top_p 0.7, top_k 50, " in card_of(spec, point=POINT)[1]


def test_a_collapsed_run_is_told_of() -> None:
    said = "The run had collapsed at this step"
    assert said in card_of(_spec("org/base"), point=POINT | {"collapsed": True})[1]
    assert said not in card_of(_spec("org/base"), point=POINT)[1]


@pytest.mark.parametrize(
    "spec", [_spec("/home/ann/base"), _spec("quickstart"), _spec("org/base", init_checkpoint="/state/jobs/job-0")]
)
def test_a_base_that_is_on_no_hub_is_not_named(spec: dict[str, Any]) -> None:
    head, text = card_of(spec)
    assert "base_model" not in head
    assert "from a model of its owner's." in text
    assert "/home" not in text
    assert "/state" not in text
    assert "This step was not evaluated." in text


def test_an_adapter_is_told_as_that_and_a_name_is_text() -> None:
    head, text = card_of(_spec("org/base", name="<b>a|b\n# c"), is_adapter=True)
    assert (head["library_name"], head["base_model_relation"]) == ("peft", "adapter")
    assert "# &lt;b&gt;a\\|b # c, step 40" in text
    assert "An adapter" in text
