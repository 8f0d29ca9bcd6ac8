"""Directories of reward models: safetensors only, no code of their own. Read without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_ADAPTER = "adapter_config.json"  # as PEFT names it
# Their positions begin behind the padding token's: of RoBERTa's 514, two are never used.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
    | {"xlm-roberta-xl", "xmod"}
)
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]  # of a hub id; never code or pickles


class ModelError(ValueError):
    """A reward model that can't be used; the message says what was expected and what to do."""


def locate(model: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The model's directory on this machine and its config, checked. A hub id is downloaded at its commit.

    Raises ModelError where there is no safe, loadable model.
    """
    path = local(model) or _download(model, revision)
    return path, check_directory(path)


def problems(model: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """(option, what is wrong) as far as files of this machine tell; no message repeats the path."""
    path = local(model)
    if path is not None:
        try:
            check_directory(path)
        except (ModelError, OSError) as error:
            said = getattr(error, "strerror", None) or str(error)
            yield "model", f"this path{said.removeprefix(str(path))}" if said.startswith(str(path)) else said
    elif not _HUB_ID.fullmatch(model):
        yield "model", "no such directory; give a Hugging Face directory, or a hub id with a revision"
    elif revision is None or not _COMMIT.fullmatch(revision):
        yield "revision", "a hub id needs a commit of 40 hexadecimal digits (`model` is no directory here)"


def local(model: str) -> Path | None:
    """The directory of this machine; None where there is none."""
    try:
        path = Path(model).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name that is too long, no home directory, a NUL
        return None


def check_directory(path: Path) -> dict[str, Any]:
    """The config of a Hugging Face directory with safetensors and a tokenizer. Raises ModelError."""
    config = read_json(path / "config.json", "save a model there: model.save_pretrained(directory)")
    if "auto_map" in config:
        raise ModelError(f"{path} wants to run code of its own (auto_map in config.json), which is never allowed")
    if (path / _ADAPTER).exists():  # transformers would add it unseen, or take the base that it names
        raise ModelError(f"{path} has an adapter ({_ADAPTER}), expected whole weights alone; take one without it")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
        found = f"only pickled weights ({', '.join(pickled[:3])}), which can run code" if pickled else "no weights"
        raise ModelError(f"{path} has {found}; save it with safetensors: model.save_pretrained(directory)")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(f"{path} has no tokenizer; save it there: tokenizer.save_pretrained(directory)")
    return config


def read_json(file: Path, advice: str) -> dict[str, Any]:
    """A file that holds one JSON object. Raises ModelError, with `advice` where there is no file."""
    if not file.is_file():  # nor a pipe, which would be waited for
        raise ModelError(f"{file.parent} has no {file.name}; {advice}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"{file} is not valid JSON") from None
    if not isinstance(document, dict):
        raise ModelError(f"{file} is not a JSON object")
    return document


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens that the model was made for, where its config says so."""
    text = config.get("text_config") or config
    value = text.get("max_position_embeddings")
    if not value:
        return None
    padding = text.get("pad_token_id")
    unused = (1 if padding is None else int(padding)) + 1 if text.get("model_type") in _OFFSET_POSITIONS else 0
    return int(value) - unused


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _download(model: str, revision: str | None) -> Path:
    if not _HUB_ID.fullmatch(model):
        raise ModelError("model: no such directory; give a Hugging Face directory, or a hub id with a revision")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ModelError(f"model: no directory {model}; a hub id needs `revision`, a commit of 40 hexadecimal digits")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"can't download {model}: {first_line(error)}") from None
