"""On what is compared: four tasks of running sums, each an ordinary job but for the rule.

sums3     the quickstart's own: accuracy, conciseness, clarity
sums4     a policy that prefers words, and a band of lengths that words do not fit in: fixed weights give the band up
sums5     five objectives on scales from 1 to 64: one sparse, one soon saturated, one noisy; words cost length
held_out  brevity against lines and a noisy rating of words, from a policy of its own; never looked at while rules are
          made, but seen when hv_gradient became the default. sums4 was the held-out task until rules were compared on
          it: from then on it may be tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from orchestrator.arena.entries import Entry
from orchestrator.arena.protocol import Preset
from orchestrator.spec import JobSpec, parse_spec
from policies.quickstart import Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """Objectives, without weights, and the policy that is to be aligned."""

    name: str
    objectives: tuple[Mapping[str, Any], ...]
    what: str  # for a reader of the report
    recipe: Recipe = field(default_factory=Recipe)
    held_out: bool = False

    def spec(self, *arguments: Any, **options: Any) -> JobSpec:
        """The document's job. Raises SpecError where the entry does not fit the task."""
        return parse_spec(self.document(*arguments, **options))

    def document(
        self,
        entry: Entry,
        preset: Preset,
        *,
        seed: int,
        steps: int,
        targets: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """An ordinary job, as a person would write it."""
        ruled = self.ruled(entry, seed, targets)
        return {"name": ruled["name"], "seed": seed, **preset.sections(steps), **ruled, **entry.sections}

    def ruled(self, entry: Entry, seed: int, targets: Mapping[str, float]) -> dict[str, Any]:
        """Of a document, what is the entry's own."""
        proportions = entry.proportions or (1,) * len(self.objectives)
        objectives = []
        for objective, weight in zip(self.objectives, proportions, strict=True):
            target = targets.get(objective["name"])
            extra = {} if target is None else {"target": {"op": ">=", "value": target}}
            objectives.append({**objective, "weight": weight, **extra})
        return {
            "name": f"arena {self.name} {entry.name} seed {seed}",
            "seed": seed,
            "objectives": objectives,
            "estimator": {"name": entry.estimator},
            "weighting": dict(entry.weighting),
        }

    def digest(self, policy_seed: int) -> str:
        """Of what decides a run and is not in its spec: how its policy is made."""
        return self.recipe.digest(policy_seed)


def _objective(name: str, reward: str, span: tuple[float, float] = (0.0, 1.0), **options: Any) -> dict[str, Any]:
    return {"name": name, "reward": {"name": reward, "options": options}, "range": list(span), "reference": span[0]}


ACCURACY = _objective("accuracy", "math")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="sums3",
                what="the quickstart's own: right, brief and clear answers, which hardly conflict",
                objectives=(
                    ACCURACY,
                    _objective("conciseness", "conciseness"),
                    _objective("clarity", "clarity"),
                ),
            ),
            Task(
                name="sums4",
                what="a policy that prefers words, a band of lengths that they do not fit in: equal weights give it up",
                objectives=(
                    ACCURACY,
                    _objective("band", "length_within", min_tokens=12, max_tokens=24),
                    _objective("steps", "clarity", min_steps=4),
                    _objective("words", "worded", (0.0, 10.0)),
                ),
                recipe=Recipe(short_share=0.2, compact_share=0.3, max_greedy_accuracy=1.0),
            ),
            Task(
                name="sums5",
                what="five objectives on scales from 1 to 64, one sparse, one soon saturated, one noisy",
                objectives=(
                    ACCURACY,
                    _objective("length", "length", (-64.0, 0.0)),  # tokens
                    _objective(
                        "clarity", "clarity"
                    ),  # the first to saturate: .43, .65, .84, .96 at steps 0, 10, 20, 40
                    # .07 at first; only sums of three operations can be worked out in 20 tokens.
                    _objective("brief", "right_within", (0.0, 0.5), max_tokens=20),
                    # About as noisy as it varies. A corner at 0 would make the mean's own noise that of the volume.
                    _objective("words", "worded", (-3.0, 10.0), noise=6.0),
                ),
            ),
            Task(
                name="held_out",
                what="brevity against lines and a noisy rating of words; never tuned on, but seen before the default "
                "was chosen",
                objectives=(
                    ACCURACY,
                    _objective("brevity", "conciseness", free_tokens=8, max_tokens=40),  # most answers in words: 0
                    _objective("lines", "clarity", min_steps=3),
                    _objective("words", "worded", (-2.0, 12.0), noise=4.0),
                ),
                recipe=Recipe(short_share=0.4, compact_share=0.3, max_greedy_accuracy=1.0),
                held_out=True,
            ),
        )
    }
)
