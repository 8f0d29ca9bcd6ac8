"""Scores a few pairs under a few rewards, as a process of its own: a reward that hangs is killed with it.

A JSON document on stdin, one on stdout: {"scores": [[...], ...]}, by reward, or {"reward": index, "error": text}.
What a reward prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from rewards import registry
from rewards.base import RewardBatch, check_scores

_LONGEST_S = 60  # whoever asked has killed us long before, unless it died itself


def run(question: dict[str, Any]) -> dict[str, Any]:
    """`question`: rewards (name, options) and the columns of a RewardBatch."""
    columns = {name: tuple(values) for name, values in question["batch"].items()}
    batch = RewardBatch(**columns, max_tokens=question["max_tokens"])
    scores = []
    for i, wanted in enumerate(question["rewards"]):
        try:
            reward = registry.build(wanted["name"], wanted["options"])
            scores.append(check_scores(wanted["name"], reward.score(batch), len(batch)))
        except Exception as error:  # whatever a reward raises: the person who asked must hear which one
            return {"reward": i, "error": _reason(wanted["name"], error)}
    return {"scores": scores}


def _reason(name: str, error: Exception) -> str:
    """A plugin's own words may repeat what it was given, so they stay here."""
    ours = registry.resolve(name).__module__.startswith("rewards.") or type(error).__module__ == "rewards.base"
    return f"{type(error).__name__}: {error}"[:500] if ours else f"it raised {type(error).__name__}"


def _main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.alarm(_LONGEST_S)
    answer = run(json.load(sys.stdin))
    json.dump(answer, answers)
    answers.close()


if __name__ == "__main__":
    _main()
