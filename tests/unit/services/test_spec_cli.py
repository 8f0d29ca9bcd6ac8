"""`equipoise spec`: every field of a spec, told to people and to editors."""

import json

import pytest
from typer.testing import CliRunner

from orchestrator.spec import JobSpec
from orchestrator.spec_fields import sections
from orchestrator.specs.reward_job import RewardJobSpec
from services.cli import app


def run(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["spec", *words], env={"COLUMNS": "160"})
    return found.exit_code, found.stdout, found.stderr


@pytest.mark.parametrize("model", [JobSpec, RewardJobSpec])
def test_every_part_says_what_it_is_and_nearly_every_field_what_it_takes(model: type) -> None:
    found = sections(model)
    assert all(part.description for part in found)
    for part in found:
        assert part.options, part.path
        assert all(option.allowed != "anything" or option.name == "hosting" for option in part.options), part.path
    assert {"", "resources"} <= {part.path for part in found}


def test_parts_within_lists_and_choices_are_told() -> None:
    paths = [part.path for part in sections(JobSpec)]
    assert {"objectives[].reward.hosting", "data.columns", "policy.lora", "guardrails[]"} <= set(paths)
    assert paths.count("data") == 2  # generated, and of files
    assert not [path for path in paths if path.startswith("weighting")]  # `equipoise rules` has those


@pytest.mark.parametrize("words", [("objectives.reward",), ("objectives[].reward",)])
def test_a_part_comes_with_those_in_it(words: tuple[str, ...]) -> None:
    code, output, _ = run(*words)
    assert code == 0
    assert "objectives[].reward.hosting" in output
    assert "num_gpus" in output
    assert "prompts_per_step" not in output


def test_an_implied_bound_is_told_once() -> None:
    (optimizer,) = [part for part in sections(JobSpec) if part.path == "optimizer"]
    assert {option.name: option.allowed for option in optimizer.options}["lr"] == "number > 0, <= 1"


def test_a_part_that_is_not_there_is_told_with_those_that_are() -> None:
    code, _, errors = run("hosting")
    assert code == 2
    assert "objectives.reward.hosting" in errors
    code, _, errors = run("rolout")
    assert "rollout" in errors


def test_the_schema_is_printed_for_editors() -> None:
    code, output, _ = run("--json")
    assert (code, json.loads(output)["title"]) == (0, "JobSpec")
    assert run("--json", "rollout")[0] == 2
