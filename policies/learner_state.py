"""A learner's state on disk: what the next update depends on, beside the exported policy.

One rank alone writes a file; several write their parts side by side. Either is read by any number of ranks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from policies.lora import adapter_parameters, base_weights, merged, read_adapter, save_adapter
from policies.models import ADAPTER_CONFIG, load_model
from policies.ranks import like, whole

if TYPE_CHECKING:
    from policies.learner import Learner

log = logging.getLogger(__name__)

Writer = Callable[[], None]

FILE = "learner.safetensors"
PARTS = "learner"  # a directory of torch.distributed.checkpoint
BASE = "base.sha256"
NAMES = "optimizer.names"  # of the parameters, in the order by which their moments are numbered; a line each
GENERATION_CONFIG = "generation_config.json"
POLICY = "policy"
ADAPTER = "adapter"  # a directory beside the policy's


def policy_writer(learner: Learner, directory: Path, *, copy: bool = False) -> Writer:
    """A plain Hugging Face directory without the tokenizer: the policy, or where an adapter learns, that alone.

    With `lora.merge` the merged policy, and the adapter in a directory beside it.

    All ranks must ask; what is returned writes it, and waits for no other rank. With a `copy` the learner may learn
    before that is called, from any thread.
    """
    settings, ranks, adapter = learner.settings, learner.ranks, learner.adapter()
    alone = settings.lora is not None and not settings.lora.merge
    state = {} if alone else _plain_state(learner, copy=copy)
    if copy:
        adapter = {name: _copied(tensor) for name, tensor in adapter.items()}

    def write() -> None:
        if not ranks.first:
            return
        with disk_errors():
            if settings.lora is not None and learner.base_sha256 is not None:
                save_adapter(
                    adapter, settings.lora, directory if alone else directory.with_name(ADAPTER), base=settings.model,
                    revision=settings.revision, digest=learner.base_sha256,
                )  # fmt: skip
            if not alone:
                save_whole(learner.model, dict(merged(state.items(), adapter)), directory, settings.dtype)
            save_sampling(
                learner.model,
                directory,
                temperature=settings.evaluated_temperature,
                top_p=settings.evaluated_top_p,
                top_k=settings.evaluated_top_k,
                min_p=settings.evaluated_min_p,
            )

    return write


def save_whole(model: Any, state: dict[str, Tensor], directory: Path, dtype: str) -> None:
    """A model's weights under their plain names, and its configs. Raises what safetensors and the disk do."""
    model.save_pretrained(directory, state_dict=state)
    model.config.dtype = dtype  # save_pretrained writes that of the weights in memory
    model.config.save_pretrained(directory)


def save_sampling(
    model: Any, directory: Path, *, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> None:
    """What servers draw with unasked: as the front's figures were, without the base's penalties and cuts.

    Of the base's own generation_config.json the tokens that begin, end and pad stay. Greedy is the likeliest of one:
    transformers refuses to save a temperature of 0.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: value for name in names if (value := getattr(model.generation_config, name, None)) is not None}
    cut = {"top_p": top_p, "top_k": top_k} | ({"min_p": min_p} if min_p else {})
    drawn = {"temperature": temperature, **cut} if temperature > 0 else {"top_k": 1}
    text = json.dumps({**tokens, "do_sample": True, **drawn}, indent=2)
    (directory / GENERATION_CONFIG).write_text(text + "\n", encoding="utf-8")


def _plain_state(learner: Learner, *, copy: bool) -> dict[str, Tensor]:
    """The policy's weights without its adapter, in its dtype, tied ones once; the first rank's alone."""
    tied = learner.model.all_tied_weights_keys  # converted copies would no longer be seen as one tensor
    state: dict[str, Tensor] = {}
    for plain, shard, dtype in base_weights(learner.model, getattr(torch, learner.settings.dtype)):
        gathered = whole(shard)
        if learner.ranks.first and plain not in tied:
            converted = gathered.to(dtype)
            state[plain] = _copied(converted) if copy else converted
    return state


def state_writer(learner: Learner, directory: Path, *, copy: bool = False) -> Writer:
    """What the next update depends on: float32 weights, optimiser, schedule, random states.

    Of an adapter its own alone, with the sum of the base that it belongs to. All ranks must ask and write; `copy` as in
    `policy_writer`.
    """
    tensors = {f"weights.{name}": p.detach() for name, p in learner.trained.items()}
    for i, parameter in enumerate(learner.parameters):
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value).detach()
    tensors[NAMES] = torch.tensor(list("\n".join(learner.trained).encode()), dtype=torch.uint8)
    if learner.base_sha256 is not None:
        tensors[BASE] = torch.tensor(list(learner.base_sha256), dtype=torch.uint8)
    tensors["schedule.updates"] = torch.tensor(learner.scheduler.last_epoch)
    tensors["random.torch"] = torch.get_rng_state()
    tensors["random.order"] = learner.generator.get_state()
    if learner.ranks.size == 1:
        tensors = {name: whole(tensor) for name, tensor in tensors.items()}
    if copy:
        tensors = {name: _copied(tensor) for name, tensor in tensors.items()}

    def write() -> None:
        with disk_errors():
            if learner.ranks.size > 1:
                save(tensors, checkpoint_id=directory / PARTS, process_group=learner.ranks.files)
                missing = learner.ranks.of_first(_missing_part(directory / PARTS) if learner.ranks.first else None)
                if missing is not None:  # told to all ranks: what comes next, they do together
                    raise OSError(
                        f"{missing} of the learner's state is not there: see that the learner's machines share "
                        f"{directory.parent}"
                    )
            else:
                save_file(tensors if copy else {name: _copied(t) for name, t in tensors.items()}, directory / FILE)

    return write


def _missing_part(parts: Path) -> str | None:
    """A file that another rank says it wrote, and that is not here: every machine makes the directory for itself."""
    stored = FileSystemReader(parts).read_metadata().storage_data.values()
    return next(
        (name for name in sorted({info.relative_path for info in stored}) if not (parts / name).is_file()), None
    )


def _copied(tensor: Tensor) -> Tensor:
    """In the host's memory."""
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


def load_state(learner: Learner, directory: Path) -> None:
    """Continue exactly where `state_writer` was. Raises KeyError where it is of another model."""
    tensors = _read(learner, directory)
    base = bytes(tensors[BASE].tolist()) if BASE in tensors else None
    if base != learner.base_sha256:
        raise KeyError(
            f"{directory} holds an adapter of other base weights; start from the base that it was trained on"
        )
    with torch.no_grad():
        for name, parameter in learner.trained.items():
            parameter.copy_(tensors[f"weights.{name}"])
    learner.optimizer.state.clear()  # a state saved before the first update has no moments
    for i, parameter in _in_order_of(learner, tensors.get(NAMES)):
        prefix = f"optimizer.{i}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            if learner.optimizer.defaults["fused"]:  # whose kernel has the count beside the moments
                state["step"] = state["step"].to(parameter.device)
            learner.optimizer.state[parameter] = state
    updates = int(tensors["schedule.updates"])
    learner.scheduler.last_epoch = updates
    rates = [learner.scheduler.lr_lambdas[0](updates) * base for base in learner.scheduler.base_lrs]
    learner.scheduler._last_lr = rates
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    torch.set_rng_state(tensors["random.torch"])
    learner.generator.set_state(tensors["random.order"])


def load_policy(learner: Learner, directory: Path) -> None:
    """The weights that `policy_writer` wrote there, in what it rounded them to; engines are given the same.

    The optimiser's moments go: they belong to other weights. Raises ModelError, and KeyError where they are of another
    model.
    """
    learner.optimizer.state.clear()
    settings = learner.settings
    if settings.lora is not None:
        has_both = (directory / ADAPTER / ADAPTER_CONFIG).is_file()  # whatever `merge` says: a job may be older
        found, base = read_adapter(directory / (ADAPTER if has_both else POLICY))
        if base != learner.base_sha256:
            raise KeyError(f"{directory} holds an adapter of other base weights")
        targets = adapter_parameters(learner.model)
    else:
        found = dict(load_model(str(directory / POLICY), dtype=settings.dtype).named_parameters())
        targets = learner.trained
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(like(parameter.detach(), found[name]))


def _read(learner: Learner, directory: Path) -> dict[str, Tensor]:
    """The tensors by name, this rank's parts of those that are sharded. Nothing of the learner has changed yet."""
    parts = directory / PARTS
    if not parts.is_dir():
        found = load_file(directory / FILE)
        targets = _targets(learner, directory, found.keys(), found.get(NAMES))
        return {name: like(targets[name], value) if name in targets else value for name, value in found.items()}
    stored = FileSystemReader(parts).read_metadata().state_dict_metadata
    targets = _targets(learner, directory, stored.keys(), _names_in(learner, parts, stored.get(NAMES)))
    read: dict[str, Tensor] = {}
    for name, about in stored.items():
        assert isinstance(about, TensorStorageMetadata), "only tensors were saved"
        alike = name in targets and targets[name].shape == about.size
        read[name] = torch.empty_like(targets[name]) if alike else torch.empty(about.size, dtype=about.properties.dtype)
    _read_parts(learner, parts, read)
    return read


def _names_in(learner: Learner, parts: Path, about: Any) -> Tensor | None:
    """NAMES alone, before the rest is read; None of a version that did not keep them."""
    if about is None:
        return None
    read = {NAMES: torch.empty(about.size, dtype=about.properties.dtype)}
    _read_parts(learner, parts, read)
    return read[NAMES]


def _read_parts(learner: Learner, parts: Path, read: dict[str, Tensor]) -> None:
    """Into these tensors. All ranks must ask."""
    with disk_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank alone, as it is meant
        load(read, checkpoint_id=parts, no_dist=learner.ranks.size == 1)


def _in_order_of(learner: Learner, names: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Parameters with the numbers of their stored moments; without `names` of an earlier version, in their own order.

    Another transformers may have a block's layers in another order: those of one shape would take each other's.
    """
    stored = list(learner.trained) if names is None else bytes(names.tolist()).decode().split("\n")
    numbers = {name: i for i, name in enumerate(stored)}
    for name, parameter in learner.trained.items():
        yield numbers[name], parameter


def _targets(learner: Learner, directory: Path, names: Iterable[str], in_order: Tensor | None) -> dict[str, Tensor]:
    """The tensor that each stored one belongs to or is shaped like; steps, schedule and random states have none.

    `in_order`: what NAMES has.
    """
    targets = {f"weights.{name}": p.detach() for name, p in learner.trained.items()}
    if targets.keys() != {name for name in names if name.startswith("weights.")}:
        raise KeyError(f"{directory} holds the state of another model")
    for i, parameter in _in_order_of(learner, in_order):
        moments = (name for name in names if name.startswith(f"optimizer.{i}.") and not name.endswith(".step"))
        targets |= dict.fromkeys(moments, parameter.detach())
    return targets


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """OSError for what the disk refuses, its errno kept: safetensors and torch have errors of their own for it.

    Torch's is no Exception. Its writer hides a short write behind an error that does not say why, and of another rank's
    that is all there is.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise (OSError(code := int(number[1]), os.strerror(code)) if number else OSError(str(error))) from error
    except CheckpointException as error:
        causes = [cause for failure, _ in error.failures.values() for cause in _chain(failure)]
        if refused := next((cause for cause in causes if isinstance(cause, OSError)), None):
            raise refused from None
        if any("inline_container" in str(cause) for cause in causes):
            raise OSError(errno.EIO, "the disk took a checkpoint in part") from None
        raise RuntimeError(str(error)) from None


def without_frames(error: BaseException) -> BaseException:
    """The same error without the functions that it came through, which it would keep with all that they had at hand.

    The log has them.
    """
    log.warning("a save beside the updates failed: %s", "".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
