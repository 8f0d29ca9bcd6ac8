"""Scores a few pairs under a few rewards, as a process of its own: a reward that hangs is killed with it.

A JSON document on stdin, one on stdout: {"scores": [[...], ...], "heads": [{}, ...]}, by reward, or {"reward": index,
"error": text}; both with `cost`, of judges at their profiles' prices. What a reward prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from rewards import registry
from rewards.base import Reward, RewardBatch, RewardError, check_scores

_LONGEST_S = 60  # whoever asked has killed us long before, unless it died itself


Column = list[float | None]


def score(
    name: str, options: Mapping[str, object], reward: Reward, batch: RewardBatch
) -> tuple[Column, dict[str, Column]]:
    """(scores, every head's where there are heads), in one pass where the options pick a head."""
    size = len(batch)
    if not hasattr(reward, "score_heads"):
        return check_scores(name, reward.score(batch), size), {}
    heads = {head: check_scores(f"{name}.{head}", column, size) for head, column in reward.score_heads(batch).items()}
    picked = getattr(registry.parse_options(name, options), getattr(reward, "head_option", ""), None)
    return (heads[picked] if picked in heads else check_scores(name, reward.score(batch), size)), heads


def run(question: dict[str, Any]) -> dict[str, Any]:
    """`question`: rewards (name, options) and the columns of a RewardBatch. `heads` are empty where there are none."""
    columns = {name: tuple(values) for name, values in question["batch"].items()}
    batch = RewardBatch(**columns, max_tokens=question["max_tokens"])
    scores: list[Column] = []
    heads: list[dict[str, Column]] = []
    cost = 0.0
    for i, wanted in enumerate(question["rewards"]):
        reward: Reward | None = None
        try:
            reward = registry.build(wanted["name"], wanted["options"])
            found = score(wanted["name"], wanted["options"], reward, batch)
            scores.append(found[0])
            heads.append(found[1])
        except Exception as error:  # whatever a reward raises: the person who asked must hear which one
            return {"reward": i, "error": _reason(wanted["name"], error), "cost": cost + _cost(reward)}
        cost += _cost(reward)
    return {"scores": scores, "heads": heads, "cost": cost}


def _cost(reward: Reward | None) -> float:
    figures = getattr(reward, "figures", None)
    return 0.0 if figures is None else float(figures().get("cost", 0.0))


def _reason(name: str, error: Exception) -> str:
    """A plugin's own words may repeat what it was given, so they stay here."""
    ours = registry.resolve(name).__module__.startswith("rewards.") or type(error).__module__ == "rewards.base"
    if not ours:
        return f"it raised {type(error).__name__}"
    for_people = isinstance(error, ValueError | RewardError)  # others' words say little without their kind
    return (str(error) if for_people else f"{type(error).__name__}: {error}")[:500]


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.alarm(_LONGEST_S)
    answer = run(json.load(sys.stdin))
    json.dump(answer, answers)
    answers.close()


if __name__ == "__main__":
    _main()
