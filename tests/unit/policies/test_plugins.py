"""A rule from an installed package: listed without being imported, checked with the spec, built like one of ours."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from policies import plugins
from policies.estimators import Gdpo
from policies.plugins import (
    ESTIMATOR_GROUP,
    WEIGHTING_GROUP,
    build_plugin,
    find_estimator,
    find_weighting,
    load_plugin,
    plugin_names,
)
from policies.types import Objectives, StepStats
from policies.weighting import Fixed, Weighting
from tests.support import install, install_example, install_reward_example

PROJECT = Path(__file__).parents[3]
BROKEN = """
from policies.weighting import Weighting

class Loose:
    pass

class Fragile(Weighting):
    def __init__(self, size):
        raise KeyError("no such\\nthing")

class Measuring(Weighting):
    needs = frozenset({"gramian"})
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The example, and a package in which little is right."""
    folder = tmp_path / "site"
    install_example(folder)
    wrong = {
        "absent": "no_such_module:Rule",
        "exits": "exiting_package:Rule",
        "loose": "their_package:Loose",
        "crossed": "my_package:PlainSum",
        "fragile": "their_package:Fragile",
        "measuring": "their_package:Measuring",
        "fixed": "their_package:Measuring",
    }
    modules = {"their_package": BROKEN, "exiting_package": "raise SystemExit(2)"}
    install(folder, "their-package", modules, {WEIGHTING_GROUP: wrong})
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For this process."""

    def forget() -> None:
        plugins._entry_points.cache_clear()
        plugins.load_plugin.cache_clear()

    monkeypatch.syspath_prepend(site)
    forget()
    yield
    forget()
    for module in ("my_package", "their_package"):
        sys.modules.pop(module, None)


def run(site: Path, code: str) -> Any:
    """What a new process prints, as JSON: specs know the plug-ins that are there when they are first imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PROJECT)])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DOCUMENT = """
import json, sys
from orchestrator.spec import parse_spec
from orchestrator.spec_errors import SpecError

def document(**changes):
    return {
        "name": "small", "steps": 4, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
        "objectives": [{"name": name, "reward": {"name": "math"}} for name in ("accuracy", "brevity")], **changes,
    }

def said(**changes):
    try:
        parse_spec(document(**changes))
    except (SpecError, RuntimeError) as error:
        return str(error)
"""


# ---------------------------------------------------------------------- in this process


@pytest.mark.usefixtures("installed")
def test_names_are_known_before_anything_is_imported() -> None:
    assert "worst_first" in plugin_names(WEIGHTING_GROUP)
    assert plugin_names(ESTIMATOR_GROUP) == ["plain_sum"]
    assert not {"my_package", "their_package"} & sys.modules.keys()


@pytest.mark.usefixtures("installed")
def test_rules_are_found_by_name_and_ours_are_never_replaced() -> None:
    assert find_weighting("worst_first").__module__ == "my_package"
    assert find_estimator("plain_sum").__module__ == "my_package"
    assert find_weighting("fixed") is Fixed
    assert find_estimator("gdpo") is Gdpo
    assert "their_package" not in sys.modules


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("name", "hint"), [("wurst_first", "did you mean 'worst_first'"), ("zzz", "there are fixed")])
def test_an_unknown_rule_gets_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        find_weighting(name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"'absent' \(no_such_module:Rule\) does not load: ModuleNotFoundError"),
        ("exits", r"'exits' \(exiting_package:Rule\) does not load: SystemExit: 2"),
        ("loose", r"'loose' \(their_package:Loose\) is not a subclass of policies\.weighting\.Weighting"),
        ("crossed", r"'crossed' \(my_package:PlainSum\) is not a subclass"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_with_its_module(name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        load_plugin(WEIGHTING_GROUP, name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpnes": 1}, r"unexpected keyword argument 'sharpnes'.*; its parameters are sharpness \(4\.0\)"),
        ({"sharpness": -1}, r"must be at least 0, got -1; its parameters"),
        ({"sharpness": "x"}, "not supported"),
    ],
)
def test_options_that_it_refuses_are_one_line_with_its_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_plugin(WEIGHTING_GROUP, "worst_first", options)


@pytest.mark.usefixtures("installed")
def test_a_plugin_that_breaks_while_it_is_built_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"'fragile' \(their_package:Fragile\) can't be built: KeyError"):
        build_plugin(WEIGHTING_GROUP, "fragile", {"size": 1})


@pytest.mark.usefixtures("installed")
def test_two_packages_with_one_name_are_told_apart(site: Path) -> None:
    install(site, "other-package", {}, {WEIGHTING_GROUP: {"worst_first": "their_package:Measuring"}})
    plugins._entry_points.cache_clear()
    with pytest.raises(RuntimeError, match="more than one installed package"):
        find_weighting("worst_first")


@pytest.mark.usefixtures("installed")
def test_the_example_does_what_it_says() -> None:
    objectives = Objectives(
        names=("a", "b"),
        ranges_K2=torch.tensor([[0.0, 1.0], [0.0, 10.0]]),
        targets_K=torch.full((2,), torch.nan),
        target_signs_K=torch.ones(2),
    )
    rewards_PGK = torch.tensor([[[0.9, 2.0], [0.7, torch.nan]]])
    stats = StepStats(
        step=1,
        objectives=objectives,
        rewards_PGK=rewards_PGK,
        advantages_PGK=torch.zeros(1, 2, 2),
        preference_K=torch.tensor([0.5, 0.5]),
    )

    def weights(**options: float) -> torch.Tensor:
        rule: Weighting = build_plugin(WEIGHTING_GROUP, "worst_first", options)
        return rule.update(stats).weights_K

    torch.testing.assert_close(weights(), torch.softmax(torch.tensor([-3.2, -0.8]), dim=0))
    torch.testing.assert_close(weights(sharpness=0), torch.tensor([0.5, 0.5]))
    assert bool(torch.isfinite(weights(sharpness=1e6)).all())
    estimator = build_plugin(ESTIMATOR_GROUP, "plain_sum", {})
    torch.testing.assert_close(estimator(rewards_PGK, torch.tensor([1.0, 1.0])), torch.tensor([[2.9, 0.7]]))


# ---------------------------------------------------------------------- in a spec


def test_a_plugin_is_listed_without_being_imported(site: Path) -> None:
    found = run(
        site,
        """
        import json, sys
        from orchestrator.rules import rules
        import orchestrator.spec
        print(json.dumps({
            "rules": {rule.name: [rule.kind, rule.source] for rule in rules() if "plug-in" in rule.source},
            "imported": sorted({"my_package", "their_package", "torch"} & set(sys.modules)),
        }))
        """,
    )
    assert found["imported"] == []
    assert found["rules"]["worst_first"] == ["weighting", "plug-in my_package:WorstFirst"]
    assert found["rules"]["plain_sum"] == ["estimator", "plug-in my_package:PlainSum"]
    assert "fixed" not in found["rules"]


def test_a_plugin_is_described_when_it_is_asked_for(site: Path) -> None:
    found = run(
        site,
        """
        import dataclasses, json
        from orchestrator.rules import find_rules
        found = [rule for name in ("worst_first", "measuring") for rule in find_rules(name)]
        print(json.dumps([dataclasses.asdict(rule) for rule in found]))
        """,
    )
    assert found[0]["summary"].startswith("Weight to the objectives whose mean is lowest")
    assert [(option["name"], option["default"]) for option in found[0]["options"]] == [("sharpness", 4.0)]
    assert found[0]["example"] == "weighting:\n  name: worst_first\n  options: {sharpness: 4.0}\n"
    assert found[1]["needs"] == ["gramian"]


def test_a_spec_with_plugins_is_parsed_survives_json_and_builds(site: Path) -> None:
    found = run(
        site,
        DOCUMENT
        + """
from policies.plugins import find_estimator, find_weighting
spec = parse_spec(document(
    weighting={"name": "worst_first", "options": {"sharpness": 2}},
    estimator={"name": "plain_sum"}, rollout={"rollouts_per_prompt": 1},
))
again = parse_spec(json.loads(spec.to_json()))
weighting = find_weighting(spec.weighting.name)(**spec.weighting.arguments(spec.objective_names))
estimator = find_estimator(spec.estimator.name)(**spec.estimator.arguments(spec.objective_names))
needy = parse_spec(document(weighting={"name": "measuring"}))
ours = parse_spec(document(weighting={"name": "fixed"}))
print(json.dumps({
    "same": again == spec, "sharpness": weighting.sharpness, "estimator": type(estimator).__name__,
    "saved": json.loads(spec.to_json())["weighting"], "needs": sorted(needy.weighting.needs),
    "none": sorted(spec.weighting.needs), "fixed": type(ours.weighting).__name__,
    "schema": "worst_first" in json.dumps(type(spec).model_json_schema()),
}))
""",
    )
    assert found == {
        "same": True,
        "sharpness": 2,
        "estimator": "PlainSum",
        "saved": {"name": "worst_first", "options": {"sharpness": 2}},
        "needs": ["gramian"],
        "none": [],
        "fixed": "FixedSpec",
        "schema": True,
    }


def test_what_is_wrong_with_a_plugin_in_a_spec_is_one_clear_line(site: Path) -> None:
    found = run(
        site,
        DOCUMENT
        + """
one = [{"name": "accuracy", "reward": {"name": "math"}}]
print(json.dumps({
    "misspelt": said(weighting={"name": "worst_frist"}),
    "unknown": said(estimator={"name": "zzz"}),
    "option": said(weighting={"name": "worst_first", "options": {"sharp": 1}}),
    "value": said(weighting={"name": "worst_first", "options": {"sharpness": -1}}),
    "nan": said(weighting={"name": "worst_first", "options": {"sharpness": float("nan")}}),
    "beside": said(weighting={"name": "worst_first", "sharpness": 1}),
    "kind": said(weighting={"name": "worst_first", "options": 3}),
    "missing": said(weighting={"name": "fragile"}),
    "absent": said(weighting={"name": "absent"}),
    "loose": said(weighting={"name": "loose"}),
    "single": said(estimator={"name": "gdpo"}, weighting={"name": "measuring"}, objectives=one),
    "response": said(weighting={"name": "measuring"}, gramian={"mode": "step_response"}),
}))
""",
    )
    starts = {
        "misspelt": "weighting.name: expected one of fixed, schedule",
        "unknown": "estimator.name: expected one of cond_gdpo",
        "option": "weighting.options: 'worst_first' refuses them: ",
        "value": "weighting.options: 'worst_first' refuses them: sharpness must be at least 0, got -1; its parameters",
        "nan": "weighting.options.sharpness.float: Input should be a finite number",
        "beside": "weighting.sharpness: unknown field; fields are name, options",
        "kind": "weighting.options: Input should be a valid dictionary",
        "missing": "weighting.options: 'fragile' refuses them: ",
        "absent": "the plug-in for weighting 'absent' (no_such_module:Rule) does not load: ModuleNotFoundError",
        "loose": "the plug-in for weighting 'loose' (their_package:Loose) is not a subclass of",
        "single": "weighting.name: 'measuring' compares the objectives' gradients and needs at least 2",
        "response": "gramian.mode: 'measuring' needs all inner products",
    }
    for case, start in starts.items():
        assert found[case].startswith(start), (case, found[case])
        assert "\n" not in found[case]
    assert found["misspelt"].endswith("did you mean 'worst_first'?")
    assert found["unknown"].endswith("softmin, plain_sum")
    assert found["option"].endswith("its parameters are sharpness (4.0)")
    assert found["missing"].endswith("its parameters are size")


def test_what_a_job_uses_of_packages_is_told_with_a_digest_of_its_code(site: Path) -> None:
    """Also of a package whose version stays, as one that is installed for editing."""
    install_reward_example(site)
    found = run(
        site,
        DOCUMENT
        + """
from pathlib import Path
import polite_package
from orchestrator.software import plugins

polite = {"name": "manners", "reward": {"name": "politeness"}}
spec = parse_spec(document(weighting={"name": "worst_first"}, objectives=[polite, *document()["objectives"]]))
ours, told = plugins(parse_spec(document())), plugins(spec)
file = Path(polite_package.__file__)
file.write_text(file.read_text() + "# edited")
print(json.dumps([ours, told, plugins(spec)]))
""",
    )
    ours, before, after = found
    assert ours == {}
    assert before["weighting worst_first"].startswith("my-package ")
    assert before["reward politeness"].startswith("polite-package ")
    assert {what for what in before if before[what] != after[what]} == {"reward politeness"}


def test_without_torch_a_plugin_is_taken_by_name_and_its_options_are_the_drivers_to_check(site: Path) -> None:
    """As in the API server's own image."""
    found = run(
        site,
        """
import sys
sys.modules["torch"] = None  # as if it were not installed
"""
        + DOCUMENT
        + """
from services.spec_checks import strict_spec
from services.api.rules import get_rule
wanted = {"name": "worst_first", "options": {"sharp": 1}}
spec = strict_spec(document(weighting=wanted, estimator={"name": "plain_sum"}, rollout={"rollouts_per_prompt": 1}))
rule = json.loads(get_rule("worst_first").body)["data"][0]
print(json.dumps({
    "spec": spec.model_dump(mode="json")["weighting"], "needs": sorted(spec.weighting.needs),
    "misspelt": said(weighting={"name": "worst_frist"}), "rule": [rule["name"], rule["summary"], rule["options"]],
}))
""",
    )
    assert found["spec"] == {"name": "worst_first", "options": {"sharp": 1}}
    assert found["needs"] == []
    assert found["misspelt"].endswith("did you mean 'worst_first'?")
    name, summary, options = found["rule"]
    assert (name, options) == ("worst_first", [])
    assert "no torch here" in summary


# --------------------------------------------------------------------- the arena, and the list


ARENA = """
import json
from orchestrator.arena.plan import digest, plan
from orchestrator.arena.protocol import PRESETS

def planned(*rules):
    return plan(PRESETS["full"], tasks=["sums3"], rules=list(rules), seeds=1)

def said(*rules):
    try:
        planned(*rules)
    except ValueError as error:
        return str(error)

def mark(*rules):
    (one,) = planned(*rules)
    return digest(one.spec(()), one.task, one.policy_seed)
"""


def test_the_arena_takes_plugins_that_are_named(site: Path) -> None:
    found = run(
        site,
        ARENA
        + """
left_out = []
every = plan(PRESETS["full"], tasks=["sums3"], rules=["gdpo/*", "*/aggregate"], seeds=1, on_left_out=left_out.append)
theirs = [[one.entry.name, one.entry.role] for one in every if one.entry.plugin]
usual = [one.entry.name for one in plan(PRESETS["full"], tasks=["sums3"], seeds=1) if one.entry.plugin]
spec = planned("worst_first")[0].spec(())
print(json.dumps({
    "theirs": theirs, "left out": left_out, "usual": usual, "weighting": spec.weighting.name,
    "estimator": planned("plain_sum/aggregate")[0].spec(()).estimator.name,
    "broken": said("gdpo/absent"), "unknown": said("worst_frist"),
}))
""",
    )
    assert found["theirs"] == [
        ["gdpo/measuring", "strategy"], ["gdpo/worst_first", "strategy"], ["plain_sum/aggregate", "aggregator"],
    ]  # fmt: skip
    assert [line.split()[0] for line in found["left out"]] == [
        "gdpo/absent", "gdpo/crossed", "gdpo/exits", "gdpo/fragile", "gdpo/loose",
    ]  # fmt: skip
    assert (found["usual"], found["weighting"], found["estimator"]) == ([], "worst_first", "plain_sum")
    assert "--rules: gdpo/absent can't take part in sums3" in found["broken"]
    assert "No module named 'no_such_module'" in found["broken"]
    assert "no entry 'worst_frist', did you mean 'gdpo/worst_first'?" in found["unknown"]


def test_another_version_of_a_package_has_runs_of_its_own(site: Path) -> None:
    code = ARENA + 'print(json.dumps([mark("worst_first"), mark("plain_sum/aggregate"), mark("gdpo/fixed")]))'
    before = run(site, code)
    metadata = site / "my_package-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    after = run(site, code)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_what_is_installed_is_listed_with_what_is_wrong(site: Path) -> None:
    rewards = {"polite": "polite:Absent", "shared": "polite:Shared"}
    install(site, "polite", {"polite": "x = 1"}, {"equipoise.rewards": rewards})
    install(site, "politer", {"politer": "x = 1"}, {"equipoise.rewards": {"shared": "politer:Shared"}})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PROJECT)]), "COLUMNS": "250"}
    command = [sys.executable, "-m", "services.cli", "plugins"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    found = {(one["kind"], one["name"]): one for one in json.loads(done.stdout)}
    assert found["weighting", "worst_first"] | {"kind": ""} == {
        "kind": "", "name": "worst_first", "module": "my_package:WorstFirst", "package": "my-package 1.0",
        "problem": None,
    }  # fmt: skip
    problems = {name: one["problem"] for (_, name), one in found.items() if one["problem"]}
    assert sorted(problems) == ["absent", "crossed", "exits", "fixed", "loose", "polite", "shared"]
    assert problems["exits"].endswith("does not load: SystemExit: 2")
    assert "is offered by more than one installed package" in problems["shared"]
    assert "No module named 'no_such_module'" in problems["absent"]
    assert problems["fixed"] == "there is a weighting of that name already; give it another"
    table = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    assert all(name in table for _, name in found)
