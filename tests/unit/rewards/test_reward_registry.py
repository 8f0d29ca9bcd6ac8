from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field

from rewards import registry
from rewards.base import RewardOptions
from tests.judge_server import write_profiles

BUILTIN = [
    *("bradley_terry", "clarity", "conciseness", "exact", "format", "instructions", "json_schema", "judge"),
    *("judge_pairwise", "language", "length", "length_within", "math", "numeric", "process", "regex", "regression"),
    *("repetition", "right_within", "text", "tool_call", "worded"),
]
LEARNED = {"bradley_terry", "process", "regression"}  # built from a model's directory: test_reward_models
NEEDED = {
    "json_schema": {"column": "schema"},
    "judge": {"profile": "strict", "rubric": "style"},
    "judge_pairwise": {"profile": "strict"},
    "language": {"language": "en"},
    "regex": {"pattern": "a"},
}


class ShoutingOptions(RewardOptions):
    per_mark: float = Field(0.1, ge=0, le=1, description="score per exclamation mark, a fraction")


class Shouting:
    """Counts exclamation marks.

    Not in the summary.
    """

    name: ClassVar = "shouting"
    Options: ClassVar = ShoutingOptions
    range: ClassVar = (0.0, 1.0)

    def __init__(self, options):
        self._per_mark = options.per_mark

    def score(self, batch):
        return [min(1.0, self._per_mark * completion.count("!")) for completion in batch.completions]


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """A registry without the changes of other tests, and a function that installs entry points."""
    registry.names()  # loads the built-in ones
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(tmp_path)

    def install(*more: tuple[str, str], **targets: str) -> None:
        points = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in [*targets.items(), *more]]
        monkeypatch.setattr(registry, "entry_points", lambda **_: points)
        registry._plugins.cache_clear()

    yield install
    registry._plugins.cache_clear()


def test_the_built_in_rewards_are_known():
    assert set(BUILTIN) <= set(registry.names())
    assert [registry.resolve(name).name for name in BUILTIN] == BUILTIN


def test_importing_and_listing_needs_nothing_heavy():
    heavy = {"torch", "ray", "vllm", "math_verify", "sympy", "numpy", "py3langid", "jsonschema", "httpx"}
    script = "import sys; from rewards import registry; registry.describe(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not heavy & set(loaded.split())


@pytest.mark.parametrize(
    ("wrong", "hint"), [("mth", "did you mean 'math'"), ("Clarity", "'clarity'"), ("zzz", "; valid: bradley_terry")]
)
def test_an_unknown_name_is_told_the_nearest_and_all_valid_ones(wrong, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        registry.resolve(wrong)
    assert ", ".join(BUILTIN) in str(caught.value)


def test_a_long_unknown_name_is_not_echoed_in_full():
    with pytest.raises(ValueError, match="unknown reward") as caught:
        registry.resolve("x" * 10_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("math", {"require_boxd": True}, "'require_boxd': no such option; did you mean 'require_boxed'"),
        ("math", {"require_boxed": 1}, "option 'require_boxed': "),
        ("math", {"timeout_s": float("nan")}, "option 'timeout_s': .*finite"),
        ("conciseness", {"free_tokens": -1}, "option 'free_tokens': .*greater than or equal to 0"),
        ("conciseness", {"free_tokens": "5"}, "option 'free_tokens': .*integer"),
        ("conciseness", {"free_tokens": 9, "max_tokens": 9}, "must be below max_tokens"),
        ("clarity", {"step_pattern": "("}, "option 'step_pattern': not a regular expression"),
        ("regex", {}, "give one of `pattern` and `column`"),
        ("regex", {"pattern": "a", "column": "b"}, "give one of `pattern` and `column`"),
        ("regex", {"pattern": "(?=a)"}, "option 'pattern': not a regular expression that RE2 takes"),
        ("regex", {"pattern": "((a{900}){900}){900}"}, "option 'pattern': not a regular expression"),
        ("language", {"language": "xx"}, "option 'language': expected one of ace, "),
        ("json_schema", {"json_schema": {"type": 7}}, "option 'json_schema': .* found a fault at 'type'"),
        ("json_schema", {"json_schema": {"$ref": "http://x/y"}}, "option 'json_schema': .*references inside"),
        ("instructions", {"constraints": [{"id": "no"}]}, "option 'constraints': unknown constraint 'no'"),
        ("length_within", {"min_tokens": 9, "max_tokens": 8}, "must not exceed max_tokens"),
        ("clarity", {"min_steps": 0, "steps": 1}, "option 'min_steps': .*; option 'steps': no such option"),
        ("mth", {}, "did you mean 'math'"),
    ],
)
def test_bad_options_name_the_field(name, options, message):
    with pytest.raises(ValueError, match=message):
        registry.parse_options(name, options)


def test_a_bad_value_is_not_echoed():
    with pytest.raises(ValueError, match="free_tokens") as caught:
        registry.parse_options("conciseness", {"free_tokens": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", BUILTIN)
def test_options_are_frozen_closed_and_described_and_a_reward_is_built_from_what_it_needs(name, tmp_path, monkeypatch):
    judges = write_profiles(tmp_path, strict={"base_url": "https://judges.example.com/v1"})
    monkeypatch.setenv("EQUIPOISE_JUDGES", str(judges))
    schema = registry.resolve(name).Options
    assert schema.model_config["frozen"]
    assert schema.model_config["extra"] == "forbid"
    assert all(field.description for field in schema.model_fields.values())
    if name in LEARNED:
        with pytest.raises(ValueError, match="option 'model': Field required"):
            registry.build(name, {})
        return
    reward = registry.build(name, NEEDED.get(name, {}))
    assert reward.name == name
    getattr(reward, "close", lambda: None)()


def test_every_reward_is_described():
    described = {info.name: info for info in registry.describe()}
    assert list(described) == registry.names()
    for info in described.values():
        assert info.summary.endswith(".")
        assert "\n" not in info.summary
        assert info.range[0] < info.range[1]
        assert info.options["type"] == "object"
        json.dumps(info.options)


def test_a_registered_class_is_found_and_its_name_cannot_be_taken(plugins):
    plugins()
    assert registry.register(Shouting) is Shouting
    assert registry.register(Shouting) is Shouting
    assert registry.names() == sorted([*BUILTIN, "shouting"])
    assert isinstance(registry.parse_options("shouting", {"per_mark": 0.5}), BaseModel)

    class Other(Shouting):
        pass

    with pytest.raises(ValueError, match="'shouting' is already registered"):
        registry.register(Other)


@pytest.mark.parametrize("name", ["", "Shouting", "with space", "1st", "x" * 65])
def test_a_bad_name_is_refused(plugins, name):
    plugins()
    with pytest.raises(ValueError, match="lower-case"):
        registry.register(type("Bad", (Shouting,), {"name": name}))


def test_a_plugin_is_loaded_when_it_is_asked_for(plugins):
    plugins(shouting=f"{__name__}:Shouting", broken="no_such_module:Reward")
    assert registry.names() == sorted([*BUILTIN, "shouting", "broken"])
    assert "shouting" not in registry._registered
    assert registry.resolve("shouting") is Shouting
    assert registry.resolve("shouting") is Shouting


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("broken", "no_such_module:Reward", "ModuleNotFoundError"),
        ("broken", f"{__name__}:Missing", "AttributeError"),
        ("broken", f"{__name__}:Shouting", "is named 'shouting'"),
        ("broken", "exits_at_import:Reward", "does not load: SystemExit: 2"),
    ],
)
def test_a_plugin_that_does_not_load_is_named(plugins, tmp_path, name, target, message):
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(2)")
    plugins(**{name: target})
    with pytest.raises(RuntimeError, match=f"'broken' .*{message}"):
        registry.resolve(name)


class Handle(BaseModel):
    model_config = {"arbitrary_types_allowed": True}

    thread: EntryPoint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "Loose has no `name`"),
        ({"Options": None}, "Loose has no `Options`: give it a subclass of rewards.base.RewardOptions"),
        ({"Options": dict}, "Loose has no `Options`"),
        ({"Options": Handle}, "PydanticInvalidForJsonSchema"),
        ({"score": None}, r"Loose has no method score\(batch\)"),
        ({"range": 1.0}, r"the range of Loose must be two numbers, \(lo, hi\)"),
        ({"range": ("low", "high")}, "the range of Loose must be two numbers"),
        ({"range": (1.0, 0.0)}, "the range of Loose must be .* with lo at most hi"),
        ({"range": (0.0, math.nan)}, "the range of Loose must be .* with lo at most hi"),
    ],
)
def test_a_plugin_without_a_part_of_a_reward_is_named_and_breaks_no_list(plugins, monkeypatch, changes, message):
    parts = {"name": "loose", "Options": ShoutingOptions, "score": Shouting.score, "range": (0.0, 1.0), **changes}
    monkeypatch.setattr(sys.modules[__name__], "Loose", type("Loose", (), parts), raising=False)
    plugins(loose=f"{__name__}:Loose")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"'loose' .*{message}") as caught:
            registry.resolve("loose")
        assert "\n" not in str(caught.value)
    assert {one.name: one.info for one in registry.listed()}["loose"] is None


def test_a_plugin_that_is_no_class_is_told(plugins):
    plugins(broken=f"{__name__}:NEEDED")
    with pytest.raises(RuntimeError, match="expected a class with name, Options and score"):
        registry.resolve("broken")


def test_a_plugin_without_a_range_has_no_bound(plugins, monkeypatch):
    parts = {"name": "loose", "Options": ShoutingOptions, "score": Shouting.score}
    monkeypatch.setattr(sys.modules[__name__], "Loose", type("Loose", (), parts), raising=False)
    plugins(loose=f"{__name__}:Loose")
    assert registry.describe_one("loose").range == (-math.inf, math.inf) == registry.range_of("loose", {})
    assert {one.name for one in registry.listed() if one.info is not None} >= {"loose"}


def test_two_packages_with_one_name_are_told_apart(plugins):
    plugins(("shouting", "other_package:Shouting"), shouting=f"{__name__}:Shouting")
    with pytest.raises(RuntimeError, match=r"other_package:Shouting.* is offered by more than one installed package"):
        registry.resolve("shouting")
    listed = {one.name: one.plugin for one in registry.listed()}
    assert listed["shouting"] == f"{__name__}:Shouting and other_package:Shouting"
    plugins(("shouting", f"{__name__}:Shouting"), shouting=f"{__name__}:Shouting")  # one package, found twice
    assert registry.resolve("shouting") is Shouting


def test_a_plugin_does_not_replace_a_built_in(plugins):
    plugins(math=f"{__name__}:Shouting")
    assert registry.resolve("math").__module__ == "rewards.verifiers.math"
    assert registry.names() == BUILTIN
