"""The reward of tests/examples as an installed package: listed unimported, run by the CLI, driving a loop."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewards import registry, routed
from rewards.base import RewardBatch
from rewards.pool import local_pool
from tests.loop_fakes import make_spec, start
from tests.support import REWARD_EXAMPLE, install, install_reward_example

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install_reward_example(folder)
    install(folder, "broken", {"broken": "raise KeyError('x')"}, {registry.ENTRY_POINT_GROUP: {"broken": "broken:X"}})
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For this process."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(site)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()
    sys.modules.pop("polite_package", None)


def equipoise(site: Path, *words: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PROJECT)]), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "services.cli", "rewards", *words],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_example_is_as_short_as_the_readme_says() -> None:
    code = REWARD_EXAMPLE.read_text().partition("from pydantic")[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15


def test_plugins_are_listed_without_being_imported(site: Path) -> None:
    code, listed, imports = equipoise(site, "list", "--json")
    assert code == 0, imports
    rewards = {reward["name"]: reward for reward in json.loads(listed)}
    assert rewards["politeness"] == {
        "name": "politeness", "summary": None, "range": None, "options": None, "plugin": "polite_package:Politeness",
    }  # fmt: skip
    assert {"broken", "math"} <= rewards.keys()
    assert rewards["math"]["plugin"] is None
    assert "polite_package" not in imports
    assert " torch" not in imports


def test_the_cli_runs_an_installed_reward(site: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "Thank you"}, {"prompt": "p", "completion": "x", "domain": "code"}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", "politeness", "--options", "words=[thank]", "--input", str(source), "--output", str(target)]
    code, output, errors = equipoise(site, *words)
    assert (code, output) == (0, f"{target}\n"), errors
    assert [json.loads(line)["rewards"] for line in target.read_text().splitlines()] == [
        {"politeness": 1.0},
        {"politeness": None},
    ]


@pytest.mark.usefixtures("installed")
def test_one_that_is_asked_for_is_described_and_a_broken_one_named() -> None:
    info = registry.describe_one("politeness")
    assert (info.summary, info.plugin) == (
        "Share of polite words that occur; prompts of code need none.",
        "polite_package:Politeness",
    )
    assert {one.name: one.info for one in registry.listed()}["politeness"] == info
    with pytest.raises(RuntimeError, match=r"the plugin for reward 'broken' \(broken:X\) does not load: KeyError"):
        registry.describe_one("broken")


@pytest.mark.usefixtures("installed")
def test_it_drives_a_loop(tmp_path: Path) -> None:
    """The loop's own pool over the installed reward; its engines write numbers, so `0.` is what is polite here."""
    objectives: list[dict[str, Any]] = [
        {"name": name, "reward": {"name": "politeness", "options": {"words": words}}}
        for name, words in (("accuracy", ["0.3", "0.31"]), ("brevity", ["1", "2", "3"]))
    ]
    spec = make_spec(objectives=objectives, steps=2)
    run = start(tmp_path / "job", spec)
    pool = local_pool({o.name: partial(routed.build, o.reward.name, o.reward.options) for o in spec.objectives})
    object.__setattr__(run.loop.parts, "rewards", pool)
    assert run.loop.run() == "succeeded"
    for record in run.journal.records.values():
        assert 0 < record["objectives"]["brevity"]["mean"] <= 1
    batch = RewardBatch(
        prompts=("p",), completions=("0.3",), answers=(None,), completion_tokens=(1,), truncated=(False,), max_tokens=9
    )
    assert pool.score(batch).scores == {"accuracy": [0.5], "brevity": [pytest.approx(1 / 3)]}
