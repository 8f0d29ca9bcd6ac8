"""`equipoise prompts`: a job's prompts as its policy would read them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from policies.models import load_tokenizer
from services.cli import app
from tests.support import make_policy

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_policy(tmp_path_factory.mktemp("policy") / "policy", context=64)
    tokenizer = load_tokenizer(str(path))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def job(folder: Path, policy: Path, **data: Any) -> Path:
    rows = [{"prompt": "1+1=", "answer": 2}, {"prompt": "2</s>+2=", "answer": 4}, {"prompt": "9" * 50, "answer": 0}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    document = {
        "name": "shown",
        "steps": 1,
        "policy": {"model": str(policy), "chat": {"system": "be brief"}},
        "data": {"type": "files", **files, "overlong": "drop", **data},
        "objectives": [{"name": name, "reward": {"name": name}} for name in ("math", "conciseness")],
        "rollout": {"max_tokens": 20},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    env = {"EQUIPOISE_STATE_DIR": str(folder / "state"), "COLUMNS": "160"}
    found = CliRunner().invoke(app, ["prompts", *words], env=env)
    return found.exit_code, found.stdout, found.stderr


def test_prompts_are_shown_as_the_policy_reads_them(tmp_path: Path, policy: Path) -> None:
    spec = job(tmp_path, policy)
    code, told, _ = run(tmp_path, str(spec))
    assert code == 0
    first, second, figures = told.split("\n\n")
    assert first.splitlines()[1:4] == ["  <s>system:be brief", "  user:1+1=", "  a:"]
    assert "answer   2" in first
    assert "special tokens" not in first
    assert "the row's own text has special tokens, which the policy takes for its own: ['</s>']" in second
    assert "train        2 prompts, 1 more dropped as too long; " in figures
    assert "; 1 have special tokens in their own text" in figures
    assert "44 tokens, beside rollout.max_tokens" in figures


def test_scripts_get_one_split(tmp_path: Path, policy: Path) -> None:
    code, told, _ = run(tmp_path, str(job(tmp_path, policy)), "--split", "validation", "--json")
    found = json.loads(told)
    assert (code, found["split"], found["room"]) == (0, "validation", 44)
    assert found["splits"]["train"] | {"median_tokens": 0, "longest_tokens": 0} == {
        "prompts": 2, "dropped": 1, "median_tokens": 0, "longest_tokens": 0, "with_special_tokens": 1,
    }  # fmt: skip
    (row,) = found["rows"]
    assert (row["rendered"], row["text"], row["answer"]) == ("<s>system:be brief\nuser:1+1=\na:", "1+1=", "2")
    assert row["tokens"] == len(row["rendered"]) - 2


@pytest.mark.parametrize(
    ("data", "words", "told"),
    [
        ({}, ("--split", "test"), "no split 'test'; there is train, validation"),
        ({"overlong": "refuse"}, (), "row 3: the prompt has "),
    ],
)
def test_what_a_job_would_fail_with_is_told(
    tmp_path: Path, policy: Path, data: dict[str, Any], words: tuple[str, ...], told: str
) -> None:
    code, _, error = run(tmp_path, str(job(tmp_path, policy, **data)), *words)
    assert (code, told in error, error.count("\n")) == (2, True, 1)
