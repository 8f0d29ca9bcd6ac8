"""What a dry run says of a job: GPUs and memory by process, what does not fit, and which settings would help."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from orchestrator.checks.disk import disk_taken
from orchestrator.checks.hub import hub_size
from orchestrator.checks.layout import Layout, Machine
from orchestrator.checks.remedies import remedies
from orchestrator.checks.reward_models import Model, hosted_models
from orchestrator.spec import JobSpec
from policies.models import ModelError, adapter_base
from policies.sizes import ModelSize, parameters_of, quickstart_size, size_of

_NOTHING_KNOWN: dict[str, Any] = {
    "processes": [],
    "bytes": None,
    "host_bytes": None,
    "kv_cache": None,
}  # of a model of unknown size
_MOST_REWARD_MODELS = 4  # that are looked up: each may be a question to the hub
_REVISION = re.compile(r"[\w.-]{1,255}", re.ASCII)


def estimate(spec: JobSpec, machine: Machine | None = None, *, hub_token: bool = True) -> dict[str, Any]:
    """The document: `layouts` has one for each device that the job may run on.

    Without `hub_token` it tells of the hub's models what everybody may know.
    """
    machine = machine or Machine()
    try:
        size, unknown = model_size(spec, hub_token=hub_token), ""
    except ModelError as error:
        size, unknown = ModelSize(shapes={}, dimensions=None), str(error)
    reward_sizes, unknown_reward = reward_model_sizes(spec, hub_token=hub_token)
    layouts = []
    for device in devices(spec, machine):
        layout = Layout(spec=spec, size=size, device=device, machine=machine, reward_sizes=reward_sizes)
        problems = [
            {"about": about, "message": message, "remedies": remedies(layout, about)}
            for about, message in layout.misfits()
        ]
        document = _document(layout) | {
            "problems": problems,
            "fits": None if unknown_reward and not problems else _fits(layout, problems),
        }
        layouts.append(document | (_NOTHING_KNOWN if unknown else {}))
    why = unknown or size.no_dimensions or unknown_reward or None
    if size.has_experts and spec.policy.lora is not None:
        why = f"{why}; policy.lora adapts none of its experts" if why else "policy.lora adapts none of its experts"
    taken = None if unknown else disk_taken(spec, size, machine.disk_bytes)
    return {"parameters": None if unknown else size.parameters, "unknown": why, "disk": taken, "layouts": layouts}


def _fits(layout: Layout, problems: list[Any]) -> bool | None:
    """None where it can't be told."""
    if problems:
        return False
    known = layout.size.dimensions is not None and (layout.on_gpu or layout.memory_bytes is not None)
    return True if known else None


def _document(layout: Layout) -> dict[str, Any]:
    processes = [
        {
            "name": process.name,
            "count": process.count,
            "gpus": process.gpus,
            "parts": {name: size for name, size in process.parts.items() if size},
            "bytes": process.bytes,
        }
        for process in layout.processes
    ]
    return {
        "device": layout.device,
        "gpus": layout.gpus,
        "reward_gpus": layout.reward_gpus,
        "gpu_bytes": layout.machine.gpu_bytes if layout.on_gpu else None,
        "memory_bytes": layout.memory_bytes,
        "host_bytes": layout.host_bytes,
        "shared": layout.shared,
        "transport": layout.transport,
        "processes": processes,
        "bytes": layout.bytes,
        "kv_cache": {
            "bytes": layout.cache_bytes,
            "token_bytes": layout.token_bytes,
            "sequence_tokens": layout.sequence_tokens,
            "sequences": layout.sequences,
        },
    }


def devices(spec: JobSpec, machine: Machine) -> list[str]:
    """Where nobody has said which, both."""
    if spec.resources.device != "auto":
        return [spec.resources.device]
    return ["cuda", "cpu"] if machine.gpus is None else ["cuda" if machine.gpus else "cpu"]


def model_size(spec: JobSpec, *, hub_token: bool = True) -> ModelSize:
    """Of the policy that the job starts from. Raises ModelError where nobody can tell, or it can't be read."""
    name, revision = spec.policy.model, spec.policy.revision
    if spec.init_checkpoint is not None:
        start = Path(spec.init_checkpoint).expanduser()
        base = adapter_base(start)
        if base is None:
            return size_of(start)
        name, revision = base
    elif name == "quickstart":
        return quickstart_size()
    path = Path(name).expanduser()
    return size_of(path) if path.is_dir() else _of_hub_id(name, revision, hub_token)


def reward_model_sizes(spec: JobSpec, *, hub_token: bool = True) -> tuple[dict[Model, int], str]:
    """(parameters of each, what can't be told of the first that is not known)."""
    sizes: dict[Model, int] = {}
    unknown = ""
    for hosted in hosted_models(spec):
        if hosted.model in sizes:
            continue
        field = f"{hosted.fields[0]}.options.model"
        if len(sizes) == _MOST_REWARD_MODELS:
            return sizes, unknown or f"{field}: more than {_MOST_REWARD_MODELS} reward models are not looked up"
        try:
            path = Path(hosted.model[0]).expanduser()
            is_here = path.is_dir()
            sizes[hosted.model] = parameters_of(path) if is_here else _of_hub_id(*hosted.model, hub_token).parameters
        except ModelError as error:
            unknown = unknown or f"{field}: {error}"
    return sizes, unknown


def _of_hub_id(hub_id: str, revision: str | None, hub_token: bool) -> ModelSize:
    """From an earlier download, which may have been made with the token, else as the hub says. Raises ModelError."""
    try:
        from huggingface_hub import is_offline_mode, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:  # an API server's own image
        raise ModelError("hub ids can't be looked up here; name the model's directory for an estimate") from None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ModelError("the model is not on this machine, and its revision can't be looked up")
    if not (hub_token or is_offline_mode()):
        return hub_size(hub_id, revision, token=False)
    try:
        found: Any = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except HFValidationError:
        raise ModelError("the model is not on this machine, and is no hub id") from None
    if isinstance(found, str):
        with contextlib.suppress(ModelError):  # a download that did not end
            return size_of(Path(found).parent)
    return hub_size(hub_id, revision)
