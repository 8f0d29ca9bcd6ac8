"""`equipoise rules` as a person runs it: a process of its own, without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.rules import RuleKind, rules

PROJECT = Path(__file__).parents[3]


def run(tmp_path: Path, *words: str, columns: int = 200) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EQUIPOISE_")}
    environment |= {"EQUIPOISE_STATE_DIR": str(tmp_path), "COLUMNS": str(columns), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "rules", *words],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("columns", [80, 200])
def test_every_rule_is_listed_by_kind(tmp_path: Path, columns: int) -> None:
    code, output, errors = run(tmp_path, columns=columns)
    assert (code, errors) == (0, "")
    for kind in RuleKind:
        assert f"{kind.heading} ({kind.path})\n" in output
    listed = {line.split()[0] for line in output.splitlines() if line and not line.startswith(" ")}
    assert {rule.name for rule in rules()} <= listed
    assert "arXiv 2406.16232" in output


def test_a_kind_alone(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--kind", "budget")
    assert code == 0
    assert "knapsack" in output
    assert "gdpo" not in output


def test_json_is_the_catalogue(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, "--json", "--kind", "weighting")[1])
    assert [rule["name"] for rule in found] == [rule.name for rule in rules(RuleKind.WEIGHTING)]
    (one,) = json.loads(run(tmp_path, "gradient", "--json")[1])
    assert [option["name"] for option in one["options"]] == ["step_size", "decay", "floor", "ceiling"]
    assert yaml.safe_load(one["example"])["weighting"]["floor"] == 0.05


def test_one_rule_with_its_options_and_an_example(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "soft_overlong")
    assert code == 0
    for part in ("objectives[].transform", "2503.14476", "max_tokens     required", "integer >= 1"):
        assert part in output
    example = yaml.safe_load(output.partition("In a spec:")[2])
    assert example["objectives"][0]["transform"]["name"] == "soft_overlong"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gradent"], "no rule 'gradent', did you mean 'gradient'"),
        (["mgda"], "did you mean 'gramian:mgda'?"),
        (["fixed", "--kind", "budget"], "'fixed' is a rule of kind weighting"),
        (["--kind", "buget"], "'buget' is not one of"),
        (["a\x1b[31mb"], "no rule 'a [31mb'"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path: Path, words: list[str], line: str) -> None:
    code, output, errors = run(tmp_path, *words)
    assert (code, output) == (2, "")
    assert line in errors
    assert errors.startswith("equipoise: ")
    assert errors.count("\n") == 1


def test_help_has_an_example(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--help")
    assert code == 0
    assert "equipoise rules gramian:upgrad" in output


def test_nothing_heavy_is_loaded() -> None:
    script = "import sys\nfrom typer.testing import CliRunner\nfrom services.cli import app\n" + (
        "done = CliRunner().invoke(app, ['rules'])\n"
        "print(done.exit_code, *sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr
