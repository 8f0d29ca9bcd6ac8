"""A whole policy of an adapter and its base: to the last bit what engines were sent."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from policies.disk import flush
from policies.learner_state import GENERATION_CONFIG, disk_errors, save_sampling, save_whole
from policies.lora import base_digest, merged, read_adapter
from policies.models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ModelError,
    adapter_base,
    load_model,
    load_tokenizer,
    processor_files,
)

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def merge_adapter(directory: Path, target: Path, *, base: str | None = None) -> Path:
    """A plain Hugging Face directory at `target`, with W + s B A in each adapted layer's place.

    `base` is a directory or hub id, where what the adapter names is elsewhere now. Raises ModelError where the base is
    not to be had or not the one that the adapter was trained on, and where `target` is taken or can't be written.
    """
    named = adapter_base(directory)
    if named is None:
        found = "has no adapter, or a whole policy beside it" if directory.is_dir() else "is no directory"
        raise ModelError(f"{directory} {found}; name what `export` or `download` made of a job with policy.lora")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists already; name a new directory")
    adapter, digest = read_adapter(directory)
    kinds = {tensor.dtype for tensor in adapter.values() if tensor.dim()}
    dtype = _DTYPES.get(kinds.pop()) if len(kinds) == 1 else None
    if dtype is None:
        raise ModelError(f"{directory}: expected an adapter in float32 or bfloat16")
    where, revision = (named.model, named.revision) if base is None else (base, None)
    try:
        model = load_model(where, revision=revision, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"the adapter's base: {error}; say where it is now (--base)") from None
    if digest is not None and base_digest(model) != digest:
        raise ModelError(f"{where} is not the base that the adapter was trained on; say where that is now (--base)")
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    try:
        whole = dict(merged(state.items(), adapter))
    except (ValueError, RuntimeError) as error:  # a layer that is not there, or of another shape
        raise ModelError(f"{where} is not the base that the adapter was trained on: {error}") from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            made = Path(scratch) / target.name
            shutil.copytree(directory, made, ignore=shutil.ignore_patterns(ADAPTER_CONFIG, ADAPTER_WEIGHTS))
            if not any(made.glob("tokenizer*")):
                load_tokenizer(where, revision=revision).save_pretrained(made)
            for name, content in processor_files(
                where, revision=revision
            ).items():  # an adapter of an older job has none
                if not (made / name).exists():
                    (made / name).write_bytes(content)
            with disk_errors():
                save_whole(model, whole, made, dtype)
                if (directory / GENERATION_CONFIG).is_file():
                    shutil.copyfile(directory / GENERATION_CONFIG, made / GENERATION_CONFIG)
                else:  # an adapter of an older job
                    save_sampling(model, made, temperature=1.0, top_p=1.0)
            for path in (*made.iterdir(), made):  # a name that is there after a crash has its files
                flush(path)
            if target.exists():
                target.rmdir()
            made.rename(target)
    except OSError as error:
        raise ModelError(f"can't write {target}: {error.strerror or error}; free space or name another") from error
    return target
