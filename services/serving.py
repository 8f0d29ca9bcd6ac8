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
        return shlex.join(["vllm", "serve", str(directory)]) if causal else None
    rank = _read(directory / ADAPTER_CONFIG).get("r")
    room = next((each for each in _RANKS if isinstance(rank, int) and rank <= each), None)
    if room is None:
        return None
    drawing = str(directory) if (directory / _GENERATION_CONFIG).is_file() else "vllm"
    words = ["vllm", "serve", base.model, *(["--revision", base.revision] if base.revision else [])]
    words += ["--generation-config", drawing, "--enable-lora", "--max-lora-rank", str(room)]
    return shlex.join([*words, "--lora-modules", f"{directory.name}={directory}"])


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
