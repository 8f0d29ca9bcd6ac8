"""Which settings would make a job fit: each is tried on the estimate itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any

from orchestrator.actors.placement import engines_that_fit
from orchestrator.checks.layout import GIB, Layout, readable
from orchestrator.checks.reward_models import hosted_models
from orchestrator.spec import JobSpec
from orchestrator.specs.policy import LoraSpec
from orchestrator.specs.rollout import OWN_GPU_SHARE

Change = tuple[str, Any]  # dotted path of a setting, and its value
_ADAPTER: Change = ("policy.lora", LoraSpec())


def remedies(layout: Layout, about: str) -> list[str]:
    """What to do about one misfit: settings that are enough alone, else all of them, else what costs most."""
    changes = list(_CANDIDATES[about](layout))
    alone = [change for change in changes if not _misfits(layout, [change], about)]
    if alone or about not in ("learner", "memory"):
        return [_said(change) for change in alone]
    if changes and not _misfits(layout, changes, about):
        return [" together with ".join(_said(change) for change in changes)]
    if about == "memory":
        return [f"a machine with {readable(_with(layout, changes).bytes)} of memory at the least"]
    resorts = list(_last_resorts(layout))
    for beside in ([], changes):
        tried = [[*beside, resort] for resort in resorts if not _misfits(layout, [*beside, resort], about)]
        if tried:
            return [" together with ".join(_said(change) for change in together) for together in tried]
    smallest = _with(layout, [*changes, *resorts])
    needed = f"{readable(max(smallest.learner.bytes, smallest.kept_bytes))} at the least"
    return [f"a larger GPU, or a smaller policy: each rank of the learner is on one GPU, and needs {needed}"]


def _transport(_: Layout) -> Iterator[Change]:
    yield "rollout.transport", "auto"


def _fewer_gpus(layout: Layout) -> Iterator[Change]:
    rollout = layout.spec.rollout
    if (fewer := engines_that_fit(layout.spec, layout.machine.gpus or 0)) > 0:
        yield "rollout.engines", fewer
    left = math.floor((layout.machine.gpus or 0) - layout.reward_gpus) - layout.spec.resources.learner_ranks
    if left >= rollout.engines:
        yield "rollout.tensor_parallel", left // rollout.engines
    else:
        yield "rollout.tensor_parallel", 1  # such engines may share
    if rollout.tensor_parallel == layout.spec.resources.learner_ranks == 1:
        yield "rollout.transport", "auto" if rollout.transport == "nccl" else "ipc"  # on one GPU


def _engine(layout: Layout) -> Iterator[Change]:
    rollout = layout.spec.rollout
    if not layout.shared and rollout.memory_share(is_shared=False) < OWN_GPU_SHARE:
        yield "rollout.gpu_memory_utilization", OWN_GPU_SHARE
    size = next((n for n in (2, 4, 8) if n > rollout.tensor_parallel and _holds_one(layout, n)), None)
    if size is not None:
        yield "rollout.tensor_parallel", size
    if layout.spec.policy.dtype == "float32":
        yield "policy.dtype", "bfloat16"


def _holds_one(layout: Layout, tensor_parallel: int) -> bool:
    larger = _with(layout, [("rollout.tensor_parallel", tensor_parallel)])
    return larger.cache_bytes > 0 and larger.sequences != 0


def _cache(layout: Layout) -> Iterator[Change]:
    if layout.token_bytes is None or layout.sequence_tokens is None:
        return
    if layout.on_gpu:
        yield from _engine(layout)
    else:
        tenths = -(-layout.token_bytes * layout.sequence_tokens * 10 // GIB)
        yield "rollout.kv_cache_gib", tenths / 10 if tenths < 10**6 else tenths // 10
    shorter = layout.cache_bytes // layout.token_bytes // 16 * 16
    if shorter > layout.spec.rollout.max_tokens:
        yield "policy.max_model_len", shorter


def _memory(layout: Layout) -> Iterator[Change]:
    """On CPU, from what costs least. An engine's cache holds a sequence at the least."""
    spec, over = layout.spec, layout.bytes - (layout.memory_bytes or 0)
    tenths = (layout.cache_bytes - math.ceil(over / spec.rollout.engines)) * 10 // GIB
    if tenths >= 1:
        yield "rollout.kv_cache_gib", tenths / 10
    fewer = spec.rollout.engines - math.ceil(over / layout.engine.bytes)
    if fewer >= 1:
        yield "rollout.engines", fewer
    if spec.checkpoints.asynchronous:
        yield "checkpoints.asynchronous", False
    if not spec.policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing", True
    yield "optimizer.tokens_per_microbatch", min(layout.update.tokens, spec.rollout.max_tokens + 1)
    if spec.loss.kl_coef > 0:
        yield "loss.kl_coef", 0.0
    if spec.policy.lora is None:
        yield _ADAPTER


def _learner(layout: Layout) -> Iterator[Change]:
    """From what costs least."""
    spec = layout.spec
    if not spec.policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing", True
    budget = layout.update.tokens
    smallest = min(budget, spec.rollout.max_tokens + 1)  # a completion is not cut
    while budget > smallest:
        budget = max(smallest, budget // 2)
        if budget == smallest or not _misfits(layout, [("optimizer.tokens_per_microbatch", budget)], "learner"):
            yield "optimizer.tokens_per_microbatch", budget
            break
    if layout.update.gramian == "exact":
        yield "gramian.mode", "sketch"
    if layout.shared and layout.spec.rollout.mode == "sync" and not layout.spec.rollout.sleep:
        yield "rollout.sleep", True
    yield from _share(layout)
    if layout.rewards_beside_bytes:
        yield from _smaller_rewards(layout)
    yield from _more_ranks(layout)
    if spec.loss.kl_coef > 0:
        yield "loss.kl_coef", 0.0


def _last_resorts(layout: Layout) -> Iterator[Change]:
    """A much slower training, and another one."""
    spec = layout.spec
    if not spec.policy.cpu_offload and (not spec.measures_gradients or spec.gramian.mode == "step_response"):
        yield "policy.cpu_offload", True
    if spec.policy.lora is None:
        yield _ADAPTER


def _more_ranks(layout: Layout) -> Iterator[Change]:
    """The fewest that are enough: each is a GPU more."""
    if layout.shared:
        return
    ranks = (n for n in (2, 4, 8, 16) if n > layout.spec.resources.learner_ranks)
    enough = next((n for n in ranks if not _misfits(layout, [("resources.learner_ranks", n)], "learner")), None)
    if enough is not None:
        yield "resources.learner_ranks", enough


def _share(layout: Layout) -> Iterator[Change]:
    """What the learner leaves of a GPU, for each of the engines on it."""
    free = layout.machine.gpu_bytes - layout.rewards_beside_bytes
    free -= layout.kept_bytes if layout.sleeps else layout.learner.bytes
    left = free * 100 // (layout.machine.gpu_bytes * layout.spec.rollout.engines)
    if layout.shared and left >= 1:
        yield "rollout.gpu_memory_utilization", left / 100


def _sharing(layout: Layout) -> Iterator[Change]:
    yield from _share(layout)
    yield from _smaller_rewards(layout)


def _smaller_rewards(layout: Layout) -> Iterator[Change]:
    """Of each model on a GPU; of one that several objectives share, all of them have to say it."""
    for hosted in hosted_models(layout.spec):
        if hosted.on_gpu and hosted.options.dtype == "float32":
            yield " and ".join(f"{field}.options.dtype" for field in hosted.fields), "bfloat16"


_CANDIDATES: dict[str, Callable[[Layout], Iterator[Change]]] = {
    "transport": _transport,
    "gpus": _fewer_gpus,
    "engine": _engine,
    "sharing": _sharing,
    "rewards": _smaller_rewards,
    "learner": _learner,
    "memory": _memory,
    "kv_cache": _cache,
}


def _misfits(layout: Layout, changes: list[Change], about: str) -> bool:
    """Whether it still does not fit, or something else does not any more."""
    before = {found for found, _ in layout.misfits()}
    return any(found == about or found not in before for found, _ in _with(layout, changes).misfits())


def _with(layout: Layout, changes: list[Change]) -> Layout:
    return replace(layout, spec=reduce(_changed, changes, layout.spec))


def _changed(spec: JobSpec, change: Change) -> JobSpec:
    path, value = change
    if path.endswith(".options.dtype"):
        return reduce(lambda found, field: _with_option(found, field, value), path.split(" and "), spec)
    branch, name = path.split(".")
    return spec.model_copy(update={branch: getattr(spec, branch).model_copy(update={name: value})})


def _with_option(spec: JobSpec, field: str, value: Any) -> JobSpec:
    """Of a reward: objectives.I.reward.options.NAME or gold.reward.options.NAME."""
    *place, _, _, name = field.split(".")

    def changed(owner: Any) -> Any:
        options = {**owner.reward.options, name: value}
        return owner.model_copy(update={"reward": owner.reward.model_copy(update={"options": options})})

    if place == ["gold"]:
        return spec.model_copy(update={"gold": changed(spec.gold)})
    objectives = [changed(each) if i == int(place[1]) else each for i, each in enumerate(spec.objectives)]
    return spec.model_copy(update={"objectives": type(spec.objectives)(objectives)})


def _said(change: Change) -> str:
    path, value = change
    if isinstance(value, LoraSpec):
        return f"{path}: {{rank: {value.rank}}}"
    return f"{path}: {str(value).lower() if isinstance(value, bool) else value}"
