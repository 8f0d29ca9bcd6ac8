"""Training rollouts that are kept to be looked at: JOB/rollouts/NNNNNN.jsonl, a file for a step, a row for a rollout.

They hold the job's prompts and completions, so they stay on disk and never go to Redis. A file is put in place whole,
after its step is committed; a step that is run again after a crash replaces its file, unless a higher fence wrote it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.spec import JobSpec

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.figures import Update
    from orchestrator.rollouts.batch import Batch
    from orchestrator.rollouts.prompts import Prompt
    from orchestrator.steering import Steering

Row = dict[str, Any]
FOLDER = "rollouts"


class SampleKeeper:
    """Writes the first groups of a step's batch, at the steps that the spec names."""

    def __init__(self, spec: JobSpec, directory: Path, *, fence: int) -> None:
        self.spec = spec
        self.directory = directory
        self.fence = fence
        for leftover in directory.glob(".*.jsonl-*"):  # of a kill in the middle of a write
            leftover.unlink(missing_ok=True)

    def due(self, step: int) -> bool:
        every = self.spec.samples.every
        return every > 0 and step % every == 0

    def rows(
        self,
        step: int,
        batch: Batch,
        prompts: Sequence[Prompt],
        update: Update,
        steering_version: int,
        steering: Steering,
    ) -> list[Row]:
        """Of the first groups of the batch that was learned from.

        `scales` is what multiplied each signal, and `choice` what the strategy said and the preference that it
        was given, for a preview.
        """
        names = self.spec.objective_names
        weights = update.weights
        scales = {name: update.signs[name] * weights.reward_scale for name in names}
        choice = {
            field: None if values_K is None else values_K.tolist()
            for field, values_K in (
                ("weights", weights.weights_K),
                ("signs", weights.signs_K),
                ("directions", weights.directions_K),
            )
        }
        preference = [steering.weights[name] for name in names]
        rows: list[Row] = []
        first = 0
        for p, count in enumerate(batch.counts[: self.spec.samples.prompts]):
            for g, rollout in enumerate(batch.rollouts[first : first + count]):
                rows.append(
                    {
                        "step": step,
                        "fence": self.fence,
                        "policy_version": rollout.policy_version,
                        "steering_version": steering_version,
                        "group": p,
                        "prompt_index": batch.prompt_index[p],
                        "prompt": _storable(prompts[batch.prompt_index[p]].text),
                        "completion": _storable(rollout.text),
                        "tokens": len(rollout.tokens),
                        "truncated": rollout.truncated,
                        "rewards": _by_name(names, batch.rewards_PGK[p, g]),
                        "signal": _by_name(names, batch.signal_PGK[p, g]),
                        "scales": scales,
                        "choice": {**choice, "reward_scale": weights.reward_scale, "preference": preference},
                        "advantage": _finite(float(update.advantages_PG[p, g])),
                    }
                )
            first += count
        return rows

    def write(self, step: int, rows: Sequence[Row]) -> None:
        """Raises OSError where the disk does not take it; what was there before stays."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = shard(self.directory, step)
        before = _rows(path)
        if before and before[0]["fence"] > self.fence:
            return
        hidden = path.with_name(f".{path.name}-{self.fence}")
        try:
            with hidden.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
            hidden.replace(path)
            shard(self.directory, step - self.spec.samples.every * self.spec.samples.keep).unlink(missing_ok=True)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise


def shard(directory: Path, step: int) -> Path:
    return directory / f"{step:06d}.jsonl"


def kept_steps(directory: Path, *, up_to: int) -> list[int]:
    """Steps with a file, in order. Those above `up_to`, the last committed step, were undone by a crash."""
    try:
        names = [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [int(match.group(1)) for name in names if (match := re.fullmatch(r"(\d{6,})\.jsonl", name))]
    return sorted(step for step in steps if step <= up_to)


def read_samples(directory: Path, step: int) -> list[Row]:
    """The rows of a step as they were written; none where nothing whole is kept."""
    return _rows(shard(directory, step))


def _rows(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, ValueError):
        return []


def _by_name(names: Sequence[str], values_K: Tensor) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in zip(names, values_K.tolist(), strict=True)}


def _finite(value: float) -> float | None:
    """None for a reward that was not measured."""
    return value if math.isfinite(value) else None


def _storable(text: str) -> str:
    """Half of a surrogate pair, which UTF-8 cannot carry, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
