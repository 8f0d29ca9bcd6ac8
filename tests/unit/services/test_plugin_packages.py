"""The packages that `equipoise plugins new` writes work as they are."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.plugin_packages import Kind, write_package
from tests.support import install

PROJECT = Path(__file__).parents[3]
NAMES = {Kind.REWARD: "very_polite", Kind.RULE: "lowest_first"}


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)]), "COLUMNS": "200"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", Kind)
def test_a_package_passes_its_test_and_is_a_plugin_that_can_be_used(kind: Kind, tmp_path: Path) -> None:
    name, folder = NAMES[kind], tmp_path / "new" / "it"
    made = CliRunner().invoke(app, ["plugins", "new", name, "--kind", kind.value, "--to", str(folder)])
    assert made.exit_code == 0, made.output
    module = f"equipoise_{name}"
    files = {"pyproject.toml", "README.md", f"{module}.py", f"test_{module}.py"}
    assert {path.name for path in folder.iterdir()} == files
    code, output, errors = run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert code == 0, output + errors
    assert "1 passed" in output
    assert not any("$" in path.read_text() for path in folder.glob("*.*"))

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    source = (folder / f"{module}.py").read_text()
    install(tmp_path / "site", project["name"], {module: source}, project["entry-points"])
    code, listed, errors = run(tmp_path / "site", "services.cli", "plugins", "--json")
    assert code == 0, errors
    (found,) = json.loads(listed)
    shown = {"reward": "reward", "rule": "weighting"}[kind.value]
    assert (found["kind"], found["name"], found["problem"]) == (shown, name, None)


def test_a_package_is_clean_code(tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        write_package(tmp_path / name, name, kind)
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", str(PROJECT / "pyproject.toml")]
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("Worst-First", "rule", "NAME: expected a name such as worst_first: small letters, digits and _"),
        ("none", "reward", "NAME: expected a name such as"),
        ("x" * 61, "reward", "at most 60"),
        ("hypervolume", "rule", "NAME: there is a rule 'hypervolume' already; give it another name"),
        ("math", "reward", "NAME: there is a reward 'math' already; give it another name"),
        ("mine", "judge", "'judge' is not one of 'reward', 'rule'"),
    ],
)
def test_what_can_be_no_plugin_is_refused(name: str, kind: str, says: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["plugins", "new", name, "--kind", kind, "--to", str(tmp_path / "new")])
    assert made.exit_code != 0
    assert says in " ".join(made.output.replace("│", " ").split())
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    made = CliRunner().invoke(app, ["plugins", "new", "polite", "--kind", "reward", "--to", str(tmp_path)])
    assert made.exit_code != 0
    assert f"{tmp_path} is there already, and nothing is overwritten; give another --to" in made.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
