"""What a job will ask its judges, at most: calls, and what they cost at the prices of the judges' profiles.

Retries are not in it, nor what a cache answers. Where domains leave rows out, it is less.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from orchestrator.hosting import HostedReward, hosted_gold, hosted_rewards
from orchestrator.rollouts.prompts import Contents
from orchestrator.spec import JobSpec
from orchestrator.specs.data import SETS, FilesData
from rewards import registry
from rewards.judges import profiles
from rewards.judges.judge import JudgeOptions
from rewards.judges.pairwise import PairwiseOptions

ORDERS = 2  # in which a pairwise judge sees the two texts
SAMPLES = 10  # held-out prompts whose completions the report shows, of the start and of the end


@dataclass(frozen=True, kw_only=True)
class JudgeCalls:
    """Of one judge as it is hosted."""

    param: str  # of its reward in the spec
    profile: str
    training: int
    evaluation: int | None  # None where nobody can tell here how long a split is
    call_cost: float | None
    """Of a call whose completion and whose answer are as long as they may be; prompt and rubric are not in it."""

    def document(self) -> dict[str, Any]:
        return {
            "param": self.param,
            "profile": self.profile,
            "training": self._share(self.training),
            "evaluation": None if self.evaluation is None else self._share(self.evaluation),
        }

    def _share(self, calls: int) -> dict[str, Any]:
        return {"calls": calls, "cost": None if self.call_cost is None else calls * self.call_cost}


def judge_calls(spec: JobSpec, contents: Mapping[str, Contents]) -> list[JudgeCalls]:
    """Of every judge, in the order of the objectives, gold last. `contents` as in `doubts`."""
    of_step = spec.prompts_asked * spec.rollout.rollouts_per_prompt
    evaluated, compared = rows_evaluated(spec, contents), rows_compared(spec, contents)
    found = []
    for hosted in hosted_rewards(spec):
        first = min(spec.objective_names.index(name) for name in hosted.heads)
        found.append(_calls(spec, hosted, f"objectives.{first}.reward", spec.steps * of_step + compared, evaluated))
    for hosted in hosted_gold(spec):
        assert spec.gold is not None
        watched = spec.steps // spec.gold.every * min(spec.gold.samples, of_step)
        found.append(_calls(spec, hosted, "gold.reward", watched, 0))
    return [calls for calls in found if calls is not None]


def calls_of_a_row(options: BaseModel) -> int:
    """0 of what is no judge."""
    if isinstance(options, PairwiseOptions):
        return ORDERS
    return options.votes if isinstance(options, JudgeOptions) else 0


def evaluations(spec: JobSpec) -> int:
    """Of the validation split."""
    return math.ceil(spec.steps / spec.evaluation.every) + 1


def rows_compared(spec: JobSpec, contents: Mapping[str, Contents]) -> int:
    """Completions of the initial policy that are scored before the first step, where a transform compares with them."""
    if not any("references" in objective.transform.needs for objective in spec.objectives):
        return 0
    train = _prompts(spec, contents, "train")
    reached = spec.prompts_reached if train is None else min(train, spec.prompts_reached)
    return reached * spec.sampling.reference_rollouts


def rows_evaluated(spec: JobSpec, contents: Mapping[str, Contents]) -> int | None:
    """Held-out completions that are scored in all, at most; None where a split's length is not known."""
    validation, test = _prompts(spec, contents, "validation"), _prompts(spec, contents, "test")
    of_validation = prompts_evaluated(spec, contents)
    splits = spec.data.splits if isinstance(spec.data, FilesData) else ()
    of_sets = [prompts_evaluated(spec, contents, split) for split in splits if split.startswith(SETS)]
    if validation is None or of_validation is None or test is None or None in of_sets:
        return None
    wanted = spec.evaluation
    each = 1 if wanted.temperature == 0 else wanted.rollouts_per_prompt
    tested = min(1 + wanted.test_points, evaluations(spec) - 1)  # of the end: the last policy, and the front's
    shown = 2 * min(SAMPLES, test or validation)
    held_out = of_validation + sum(found or 0 for found in of_sets)
    return evaluations(spec) * held_out * each + (1 + tested) * test * (each + wanted.greedy) + shown


def prompts_evaluated(spec: JobSpec, contents: Mapping[str, Contents], split: str = "validation") -> int | None:
    """Of the validation split or of a further set, each time; None where its length is not known."""
    rows, most = _prompts(spec, contents, split), spec.evaluation.prompts
    return rows if rows is None or most is None else min(rows, most)


def _prompts(spec: JobSpec, contents: Mapping[str, Contents], split: str) -> int | None:
    if not isinstance(spec.data, FilesData):
        return int(getattr(spec.data, split))
    if split not in spec.data.splits:
        return 0
    return contents[split].rows if split in contents else None


def _calls(spec: JobSpec, hosted: HostedReward, param: str, trained: int, evaluated: int | None) -> JudgeCalls | None:
    """None of what is no judge."""
    options = registry.parse_options(hosted.name, hosted.options)
    if not isinstance(options, JudgeOptions | PairwiseOptions):
        return None
    asks = calls_of_a_row(options)
    cost = 0.0
    with contextlib.suppress(profiles.ProfileError):  # of which preflight tells
        profile = profiles.find(options.profile)
        read = spec.rollout.max_tokens * profile.price_per_million_input_tokens
        cost = (read + options.max_tokens * profile.price_per_million_output_tokens) / 1e6
    return JudgeCalls(
        param=param,
        profile=options.profile,
        training=asks * trained,
        evaluation=None if evaluated is None else asks * evaluated,
        call_cost=cost or None,
    )
