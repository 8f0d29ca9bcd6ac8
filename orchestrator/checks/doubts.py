"""What a valid spec says that was probably not meant. A dry run tells it; nobody is stopped."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from orchestrator.actors.placement import engines_that_fit, shares_gpu
from orchestrator.checks.judge_calls import judge_calls, prompts_evaluated
from orchestrator.rollouts.prompts import BOX, Contents
from orchestrator.spec import JobSpec
from orchestrator.specs.data import FilesData
from orchestrator.specs.gold import GoldSpec
from orchestrator.specs.objectives import DEFAULT_RANGE, ObjectiveSpec
from orchestrator.specs.rollout import MAX_ENGINES
from rewards import registry
from rewards.judges import profiles

ADD_FIRST = frozenset({"grpo", "dr_grpo", "rloo", "dvao", "corr_grpo", "reinforce"})
"""Estimators that add the objectives' rewards as they are, so that the wider one counts for more."""

JUDGES = frozenset({"judge", "judge_pairwise"})  # rewards with an option `profile`
TRIAL_STEPS = 10  # of a job that is tried out, whose rhythm is that of the real one's
FEW_SEQUENCES = 0.25  # of those that an engine decodes together; most are shorter than the longest
LEAST_ADAPTER_LR = 1e-5
TOKENS_CLIP = 0.05  # from here on; a completion's mean ratio is some thousandths from 1
MUCH_WIDER = 10.0  # times the next; below it a person's weights may well have allowed for it


FEW_PROMPTS = 100  # that make a point of the front
REPEATED = 0.01  # share of a split; a few prompts recur in many published sets
OFTEN_TRAINED = 0.1  # share of the train split, where it does less harm
_LEARNT = "trained on too, so its figures also tell what was learnt by heart; hold some back"
_LUCKY = "in the validation split too, which picks the points, so its figures have the same luck; use other prompts"
_OFTEN = "in it before, so that an epoch asks them again; keep each once, unless you weigh them so"
_TWICE = "in it before, so its standard errors are too small; keep each once"


def doubts(
    spec: JobSpec, contents: Mapping[str, Contents] = MappingProxyType({}), *, gpus: int | None = None
) -> list[tuple[str, str]]:
    """(field, what follows from it and what would not) of each, in the order of a spec's fields.

    `contents` are those of its splits, as far as they were read; `gpus` those that there are, where that is said.
    """
    return [
        *_splits(spec, contents),
        *_ranges(spec),
        *_boxes(spec, contents),
        *_deadlines(spec),
        *_rewards_on_cpu(spec),
        *_rewards_in_float32(spec),
        *_scales(spec),
        *_engines(spec),
        *_idle_gpus(spec, gpus),
        *_sleep(spec, gpus),
        *_thoughts(spec),
        *_loss(spec),
        *_adapter(spec),
        *_rhythm(spec),
        *_few_prompts(spec, contents),
        *_judged_evaluations(spec, contents),
    ]


def estimated_doubts(spec: JobSpec, estimate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same of what a dry run reckons."""
    rollout = spec.rollout
    rollouts = spec.prompts_asked * rollout.rollouts_per_prompt
    together = min(rollout.max_num_seqs, math.ceil(rollouts / rollout.engines))
    for layout in estimate["layouts"]:
        cache = layout["kv_cache"]
        held = None if cache is None or layout["device"] == "cpu" or layout["problems"] else cache["sequences"]
        if held is not None and held < FEW_SEQUENCES * together:
            is_bounded = spec.policy.max_model_len is not None
            tokens = f"{cache['sequence_tokens']} tokens{'' if is_bounded else ', which is all of its context'}"
            field = "rollout.gpu_memory_utilization" if is_bounded else "policy.max_model_len"
            more = "give engines more of their GPUs, or a smaller policy.max_model_len"
            use = more if is_bounded else "give the length of the longest prompt and completion together"
            said = f"an engine's cache holds {held} sequences of {tokens}, of {together} to decode together"
            return [(field, f"{said}, so that long ones would wait for each other: {use}")]
    return []


def _splits(spec: JobSpec, contents: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    if not isinstance(spec.data, FilesData):
        return
    train = contents.get("train", Contents())
    if train.twice and train.twice >= OFTEN_TRAINED * train.rows:
        yield "data.train", f"{train.twice} of its {train.rows} prompts are {_OFTEN}"
    for split in ("validation", "test"):
        found, named = contents.get(split, Contents()), getattr(spec.data, split)
        is_validation = split == "test" and named == spec.data.validation
        for is_all, count, what in (
            (named == spec.data.train, found.repeated, _LEARNT),
            (is_validation, found.validated, _LUCKY),
            (False, found.twice, _TWICE),
        ):
            if is_all or (count and count >= REPEATED * found.rows):
                which = "these" if is_all else f"{count} of its {found.rows} prompts"
                yield f"data.{split}", f"{which} are {what}"


def _ranges(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Those that stayed at the default; a narrower one than the reward's is what a person can see to be reached."""
    for field, owner in _rewarded(spec).items():
        reward, chosen = owner.reward, owner.range
        low, high = registry.range_of(reward.name, reward.options)
        if chosen == DEFAULT_RANGE and not (chosen[0] <= low and high <= chosen[1]):
            has = "has no bounds" if math.inf in (-low, high) else f"goes from {low:g} to {high:g}"
            yield (
                f"{field}.range",
                f"[0, 1], and '{reward.name}' {has}: what lies outside counts as 0 or 1 where objectives are compared "
                "by their ranges; give the lowest and highest score that can be expected",
            )


def _boxes(spec: JobSpec, contents: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """Recipes of other trainers ask for `Answer: ...`, or for what follows `####`."""
    train = contents.get("train", Contents())
    if not train.rows or train.boxed or BOX in (spec.policy.chat.system or ""):
        return
    for field, owner in _rewarded(spec).items():
        reward = owner.reward
        if reward.name == "math" and registry.parse_options("math", reward.options).model_dump()["require_boxed"]:
            yield (
                f"{field}.reward.options.require_boxed",
                r"true, so that only what stands in a \boxed{} counts, and no train prompt asks for one: ask for it in "
                "policy.chat.system, or give false, by which the last line counts where there is no box",
            )


def _deadlines(spec: JobSpec) -> Iterator[tuple[str, str]]:
    for field, owner in _rewarded(spec).items():
        reward = owner.reward
        if reward.name not in JUDGES:
            continue
        deadline_s = reward.hosting.deadline_s or spec.resources.reward_timeout_s
        with contextlib.suppress(profiles.ProfileError):  # of which preflight tells
            judge = str(reward.options["profile"])
            if (needed_s := profiles.find(judge).deadline_s) >= deadline_s:
                yield (
                    f"{field}.reward.hosting.deadline_s",
                    f"a call is given up after {deadline_s:g} s, and '{judge}' may take {needed_s:g} s with its "
                    "retries; the process is then killed, and the whole batch asked for again: use more",
                )


def _rewards_on_cpu(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Models in a job that may be on GPUs, none of which they have."""
    for field, owner in _rewarded(spec).items():
        reward = owner.reward
        unreserved = spec.resources.device != "cpu" and not reward.hosting.num_gpus
        if unreserved and reward.options.get("device") != "cpu" and registry.named_models(reward.name, reward.options):
            yield (
                f"{field}.reward.hosting.num_gpus",
                f"0, so the model of '{reward.name}' scores on CPU even where the policy has GPUs; give it 1, or a "
                "share of one",
            )


def _rewards_in_float32(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Unasked, on a GPU."""
    for field, owner in _rewarded(spec).items():
        reward = owner.reward
        on_gpu = reward.hosting.num_gpus and spec.resources.device != "cpu" and reward.options.get("device") != "cpu"
        if on_gpu and "dtype" not in reward.options and registry.named_models(reward.name, reward.options):
            yield (
                f"{field}.reward.options.dtype",
                f"absent, so the model of '{reward.name}' is float32 on a GPU: twice the memory of bfloat16, which "
                "most are published in, and many times its time; give bfloat16",
            )


def _rewarded(spec: JobSpec) -> dict[str, ObjectiveSpec | GoldSpec]:
    """What has a reward, by field."""
    found: dict[str, ObjectiveSpec | GoldSpec] = {f"objectives.{i}": each for i, each in enumerate(spec.objectives)}
    return found | ({} if spec.gold is None else {"gold": spec.gold})


def _scales(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.estimator.name not in ADD_FIRST:
        return
    plain = [objective for objective in spec.objectives if objective.transform.name == "identity" and objective.weight]
    by_width = sorted(plain, key=_width, reverse=True)
    for wide, narrow in pairwise(by_width):
        if _width(wide) >= MUCH_WIDER * _width(narrow):
            yield (
                "estimator.name",
                f"{spec.estimator.name} adds rewards as they are, and by ranges and weights '{wide.name}' can move the "
                f"sum {_width(wide) / _width(narrow):,.0f} times as far as '{narrow.name}'; use gdpo, which "
                "normalises each first, or give the wider one a transform",
            )
            return


def _width(objective: ObjectiveSpec) -> float:
    low, high = objective.range
    return objective.weight * (high - low)


def _engines(spec: JobSpec) -> Iterator[tuple[str, str]]:
    rollout, prompts = spec.rollout, spec.prompts_asked * (1 + spec.rollout.most_stale)
    if rollout.engines > prompts:
        yield (
            "rollout.engines",
            f"a prompt's rollouts stay on one engine, and there are {prompts} prompts at a time for {rollout.engines} "
            "engines; use fewer, or more rollout.prompts_per_step",
        )
    if rollout.mode == "async" and rollout.max_staleness == 0:
        yield (
            "rollout.max_staleness",
            "0 lets no rollout begin before the update that it waits for, as mode: sync does; async gains from 1 on",
        )


def _idle_gpus(spec: JobSpec, gpus: int | None) -> Iterator[tuple[str, str]]:
    if not gpus or spec.resources.device == "cpu" or shares_gpu(spec, gpus):
        return
    fit, engines = engines_that_fit(spec, gpus), spec.rollout.engines
    if fit <= engines:
        return
    idle = (fit - engines) * spec.rollout.tensor_parallel
    useful = min(fit, spec.prompts_asked * (1 + spec.rollout.most_stale), MAX_ENGINES)
    use = f"rollout.engines: {useful}, or more " if useful > engines else ""
    yield "rollout.engines", f"{idle} of {gpus} GPUs would be idle; use {use}resources.learner_ranks"


def _sleep(spec: JobSpec, gpus: int | None) -> Iterator[tuple[str, str]]:
    may_share = spec.resources.device != "cpu" and gpus != 0 and shares_gpu(spec, gpus or 1)
    if spec.rollout.sleep and not may_share:
        yield (
            "rollout.sleep",
            "does nothing where engines do not share the learner's GPU: theirs has nobody who waits for its memory; "
            "leave it out",
        )


def _thoughts(spec: JobSpec) -> Iterator[tuple[str, str]]:
    end = spec.rollout.thoughts_end
    if end is not None and spec.policy.chat.template_kwargs.get("enable_thinking") is False:
        yield (
            "rollout.reasoning",
            "policy.chat tells the policy not to think, and rewards see an empty text where a completion has no "
            f"'{end}'; drop one of the two",
        )


def _loss(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.estimator.name == "dr_grpo" and spec.loss.aggregation != "constant":
        yield (
            "loss.aggregation",
            f"{spec.loss.aggregation} brings the bias by length back that dr_grpo is there to avoid; use constant",
        )
    if spec.loss.form == "cispo" and spec.optimizer.minibatches == 1:
        yield (
            "loss.form",
            "every ratio is 1 where a batch makes one update; raise optimizer.minibatches, or leave it out",
        )
    if spec.loss.ratio == "sequence":
        yield from _sequence_ratio(spec)


def _sequence_ratio(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.optimizer.minibatches == 1:
        yield (
            "loss.ratio",
            "every ratio is 1 where a batch makes one update; raise optimizer.minibatches, or leave it out",
        )
        return
    if spec.loss.aggregation != "sequence_mean":
        yield (
            "loss.aggregation",
            f"with loss.ratio: sequence, {spec.loss.aggregation} counts a completion's ratio once for each of its "
            "tokens; use sequence_mean",
        )
    if min(spec.loss.clip_low, spec.loss.clip_high) >= TOKENS_CLIP:
        yield (
            "loss.clip_low",
            f"{spec.loss.clip_low:g} is for ratios of tokens: the mean of a completion's hardly ever gets so far from "
            "1; use clip_low: 3e-4 and clip_high: 4e-4",
        )


def _adapter(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.policy.lora is not None and spec.optimizer.lr < LEAST_ADAPTER_LR:
        lost = ", and most of that is lost where engines get it rounded to bfloat16"
        yield (
            "optimizer.lr",
            f"{spec.optimizer.lr:g} is for whole policies: an adapter learns next to nothing at it"
            f"{lost if spec.policy.dtype == 'bfloat16' else ''}; use 1e-5 to 1e-4",
        )


def _rhythm(spec: JobSpec) -> Iterator[tuple[str, str]]:
    updates = spec.steps * spec.optimizer.minibatches
    if spec.optimizer.warmup_steps >= updates:
        yield (
            "optimizer.warmup_steps",
            f"the job ends after {updates} updates, while the learning rate still rises: at most "
            f"{updates / spec.optimizer.warmup_steps:.0%} of optimizer.lr; use fewer",
        )
    if spec.optimizer.min_lr_ratio > 0 and spec.optimizer.schedule == "constant":
        yield (
            "optimizer.min_lr_ratio",
            "does nothing with the schedule constant, which stays at optimizer.lr; use cosine or linear, or drop it",
        )
    if spec.evaluation.every >= spec.steps > TRIAL_STEPS:
        yield (
            "evaluation.every",
            f"the job has {spec.steps} steps: only its first and last policy are evaluated, and there is little to "
            "pick from; use less",
        )
    if spec.checkpoints.every >= spec.steps > TRIAL_STEPS:
        yield (
            "checkpoints.every",
            f"the job has {spec.steps} steps: a crash at any of them begins anew; use less",
        )


def _few_prompts(spec: JobSpec, contents: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """How well so many tell a mean: sqrt(p (1 - p) / n) of a 0/1 reward, at most .5 / sqrt(n)."""
    count = prompts_evaluated(spec, contents)
    if not count or count >= FEW_PROMPTS or spec.steps <= TRIAL_STEPS:
        return
    error = f"{0.5 / math.sqrt(count):.2f}".removeprefix("0")
    said = (
        "one prompt tells no mean"
        if count == 1
        else f"{count} prompts: a mean of a 0/1 reward is known to about ±{error}"
    )
    field = "evaluation.prompts" if spec.evaluation.prompts == count else "data.validation"
    yield field, f"{said}, and points of the front that are closer than that can't be told apart; use more of them"


def _judged_evaluations(spec: JobSpec, contents: Mapping[str, Contents]) -> Iterator[tuple[str, str]]:
    """A long validation split is asked about as a whole, at each evaluation."""
    found = judge_calls(spec, contents) if spec.steps > TRIAL_STEPS else []
    for calls in found:
        if calls.evaluation is not None and calls.evaluation > calls.training > 0 and calls.param != "gold.reward":
            yield (
                "evaluation.prompts",
                f"evaluations call judge '{calls.profile}' up to {calls.evaluation:,} times, training "
                f"{calls.training:,} times; use fewer prompts or evaluation.test_points, or a larger evaluation.every",
            )
