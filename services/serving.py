"""How vLLM serves an exported policy, so that it draws as it did when it was evaluated."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from policies.models import ADAPTER_CONFIG, ModelError, adapter_base

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for; 16 unless it is told
_GENERATION_CONFIG = "generation_config.json"


def serve_command(directory: Path) -> str | None:
    """One line for a shell; None of what is no language model, or can't be read."""
    try:
        base = adapter_base(directory)
    except ModelError:
        return None
    if base is None:
        causal = "ForCausalLM" in str(_read(directory / "config.json").get("architectures"))
        return whole_command(str(directory)) if causal else None
    rank = _read(directory / ADAPTER_CONFIG).get("r")
    if not isinstance(rank, int):
        return None
    drawing = str(directory) if (directory / _GENERATION_CONFIG).is_file() else "vllm"
    return adapter_command(str(directory), base=base.model, revision=base.revision, rank=rank, drawing=drawing)


def whole_command(directory: str) -> str:
    return shlex.join(["vllm", "serve", directory])


def adapter_command(directory: str, *, base: str, revision: str | None, rank: int, drawing: str) -> str | None:
    """`drawing`: whose generation_config.json counts. None where the rank is more than vLLM has room for."""
    room = next((each for each in _RANKS if rank <= each), None)
    if room is None:
        return None
    words = ["vllm", "serve", base, *(["--revision", revision] if revision else [])]
    words += ["--generation-config", drawing, "--enable-lora", "--max-lora-rank", str(room)]
    return shlex.join([*words, "--lora-modules", f"{Path(directory).name}={directory}"])


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
