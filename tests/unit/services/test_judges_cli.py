"""`equipoise judges` as the operator runs it: no server is asked, but one call of `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rewards.judges.profiles import VARIABLE
from services.cli import app
from tests.judge_server import answers, says, serving, write_profiles

KEY = "sk-canary-0123456789"


def run(*words: str) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["judges", *words])
    assert KEY not in result.output
    return result


def test_without_a_file_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "no judges: EQUIPOISE_JUDGES names no file" in run().stderr
    assert json.loads(run("--json").stdout) == []
    assert "no such judge; there are none" in run("check", "x").stderr


def test_a_list_says_which_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"base_url": "https://judges.example.com/v1"}
    file = write_profiles(tmp_path, good=good, bad={**good, "api_key_file": str(tmp_path / "missing")})
    monkeypatch.setenv(VARIABLE, str(file))
    lines = run().stdout.splitlines()
    assert "good" in lines[2]
    assert lines[2].rstrip().endswith("ready")
    assert lines[1].rstrip().endswith("api_key_file: No such file or directory")
    assert json.loads(run("--json").stdout) == ["bad", "good"]
    file.write_text(f"judges: {{good: {{model: x, api_key: {KEY}}}}}")
    result = run()
    assert result.exit_code == 2
    assert "judges.good.base_url: Field required; judges.good.api_key: Extra inputs are not permitted" in result.stderr


def test_a_check_makes_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(KEY)
    with serving(says('{"reason": "right", "score": 10}')) as judge:
        profile = {"base_url": judge.url, "allow_private": True, "api_key_file": str(tmp_path / "key")}
        file = write_profiles(tmp_path, strict=profile, broken={**profile, "api_key_file": "/no/such"})
        monkeypatch.setenv(VARIABLE, str(file))
        result = run("check", "strict")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("strict: scored 1.00 in ")
        assert result.stdout.endswith(" s, 100 tokens in, 10 out, cost 0.000000\n")
        assert len(judge.bodies) == 1
        judge.script = answers(401, KEY)
        result = run("check", "strict")
        assert result.exit_code == 2
        assert "judge 'strict': it answered 401" in result.stderr
        assert "api_key_file: No such file or directory" in run("check", "broken").stderr
        assert len(judge.bodies) == 2
