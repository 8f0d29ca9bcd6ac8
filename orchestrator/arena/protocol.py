"""What is the same for every run of the arena, so that nothing but the rule differs.

Whoever changes what a run does, here or in the tasks, raises VERSION: runs of another one are never taken for the same.
Whoever changes what one rule does in these runs raises that rule's in RULES, and keeps the others' runs.
What hv_gradient learned after its first runs, its `least` and what an equal place is worth, left its version as it was:
the runs whose weights the second would have changed are no longer among those that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

VERSION = 1
RULES: Mapping[str, int] = MappingProxyType({"covariance": 2})
"""Versions above 1, by the name of a weighting or an estimator."""


def rule_version(*names: str) -> int:
    """Of an entry with these weighting and estimator; it rises with either."""
    return 1 + sum(RULES.get(name, 1) - 1 for name in names)


FIRST: Mapping[str, int | bool] = MappingProxyType(
    {
        "protocol version": 1,
        "prompts a step": 32,
        "rollouts a prompt": 8,
        "validation prompts": 200,
        "steps between evaluations": 5,
        "a policy for each seed": True,
    }
)
"""The conditions of records from before they told them: those of the full preset then."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything a run gets."""

    steps: int
    seeds: int
    prompts_per_step: int = 32
    rollouts_per_prompt: int = 8
    validation: int = 200
    test: int = 500
    evaluate_every: int = 5
    policy_for_each_seed: bool = True  # otherwise all start from that of seed 0
    rules: tuple[str, ...] = ("*",)
    tasks: tuple[str, ...] = ("sums3", "sums4", "sums5")

    @property
    def conditions(self) -> dict[str, int | bool]:
        """What a record tells beside its steps: runs whose conditions differ are not compared."""
        return {
            "protocol version": VERSION,
            "prompts a step": self.prompts_per_step,
            "rollouts a prompt": self.rollouts_per_prompt,
            "validation prompts": self.validation,
            "steps between evaluations": self.evaluate_every,
            "a policy for each seed": self.policy_for_each_seed,
        }

    def sections(self, steps: int) -> dict[str, Any]:
        """Of a job's spec. Every point counts: a collapse is seen in the figures, not taken out of them."""
        return {
            "steps": steps,
            "policy": {"model": "quickstart", "dtype": "float32"},
            "data": {
                "type": "quickstart",
                "train": max(64, steps * self.prompts_per_step),
                "validation": self.validation,
                "test": self.test,
            },
            "rollout": {
                "prompts_per_step": self.prompts_per_step,
                "rollouts_per_prompt": self.rollouts_per_prompt,
                "max_tokens": 64,
                "kv_cache_gib": 0.5,
            },
            # Rows as the first runs had them: all runs of an arena cost alike, and round alike.
            "optimizer": {"lr": 1e-4, "warmup_steps": 5, "tokens_per_microbatch": 2048, "share_prompts": False},
            "gramian": {"response_share": 1.0},  # what there was before there was a share
            "evaluation": {"every": self.evaluate_every, "greedy": False, "test_points": 6},
            "checkpoints": {"every": steps},
            "collapse": {"action": "off"},
            "samples": {"every": 0},
        }


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "full": Preset(steps=40, seeds=5),
        "smoke": Preset(
            steps=15,
            seeds=2,
            prompts_per_step=6,
            rollouts_per_prompt=4,
            validation=24,
            test=48,
            policy_for_each_seed=False,
            rules=("gdpo/fixed", "gdpo/gradient", "grpo/static(4,1,1)"),
            tasks=("sums3",),
        ),
    }
)
