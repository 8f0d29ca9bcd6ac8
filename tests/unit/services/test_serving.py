"""What `export` says of serving: the command that draws as the policy was evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.serving import serve_command


def write(directory: Path, **files: Any) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_a_whole_policy_is_served_by_its_directory(tmp_path: Path) -> None:
    chosen = write(tmp_path / "my model", config={"architectures": ["Qwen2ForCausalLM"]})
    assert serve_command(chosen) == f"vllm serve '{chosen}'"


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (16, 16), (17, 32), (320, 320)])
def test_an_adapter_is_served_beside_its_base_with_room_for_its_rank(tmp_path: Path, rank: int, room: int) -> None:
    config = {"base_model_name_or_path": "org/base", "revision": "abc", "r": rank}
    chosen = write(tmp_path / "chosen", adapter_config=config)
    found = f"vllm serve org/base --revision abc --generation-config vllm --enable-lora --max-lora-rank {room}"
    assert serve_command(chosen) == f"{found} --lora-modules chosen={chosen}"
    (chosen / "generation_config.json").write_text("{}")  # as it was evaluated, not as its base wants it
    assert f"--generation-config {chosen} " in (serve_command(chosen) or "")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config": "\0\0"},
        {"config": [1]},
        {"config": {"architectures": ["Qwen3ForSequenceClassification"]}},
        {"adapter_config": {"r": 4}},
        {"adapter_config": {"base_model_name_or_path": "org/base", "r": 513}},
        {"adapter_config": {"base_model_name_or_path": "org/base"}},
    ],
)
def test_nothing_is_said_of_what_it_would_not_serve(tmp_path: Path, files: dict[str, Any]) -> None:
    assert serve_command(write(tmp_path / "chosen", **files)) is None
    assert serve_command(tmp_path / "elsewhere") is None
