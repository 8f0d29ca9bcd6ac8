"""Rollouts in an order, in groups, and by how much two objectives disagree about them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from services.client.types import Rollout


def prompt_text(prompt: Any) -> str:
    """A prompt is text, or chat messages."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        parts = [f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, Mapping) else str(m) for m in prompt]
        return "\n".join(parts)
    return str(prompt)


def by_group(rollouts: Sequence[Rollout], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each prompt. The spread is that of the objective whose rollouts differ most."""
    rows = []
    for group, members in itertools.groupby(
        sorted(rollouts, key=lambda row: row["group"]), key=lambda row: row["group"]
    ):
        found = list(members)
        values = {name: [v for row in found if (v := row["rewards"].get(name)) is not None] for name in names}
        spreads = [max(known) - min(known) for known in values.values() if known]
        rows.append(
            {
                "id": group + 1,
                "name": f"group {group + 1}",
                "group": group + 1,
                "prompt": prompt_text(found[0]["prompt"]),
                "count": len(found),
                "spread": max(spreads, default=None),
                **{f"r.{name}": statistics.fmean(known) if known else None for name, known in values.items()},
            }
        )
    return rows


def ordered(rollouts: Sequence[Rollout], sort: str, pair: str, names: Sequence[str]) -> list[Rollout]:
    """By a column (`r.` before an objective's name), or by how much two objectives disagree; unmeasured ones last."""
    if pair:
        one, _, other = pair.partition("|")
        if one not in names or other not in names:
            return list(rollouts)
        scores = conflict(rollouts, one, other)
        known = sorted((row for row in rollouts if row["number"] in scores), key=lambda row: -scores[row["number"]])
        return known + [row for row in rollouts if row["number"] not in scores]
    if not sort:
        return list(rollouts)
    key = sort.removeprefix("-")

    def value(row: Rollout) -> float | None:
        found: Any = row["rewards"].get(key[2:]) if key.startswith("r.") else row.get(key)
        return None if found is None else float(found)

    measured = sorted(
        (r for r in rollouts if value(r) is not None), key=lambda r: value(r) or 0.0, reverse=sort.startswith("-")
    )
    return measured + [row for row in rollouts if value(row) is None]


def conflict(rollouts: Sequence[Rollout], one: str, other: str) -> dict[int, float]:
    """-z_a z_b of each rollout's standard scores in this step: high where it is good by one and bad by the other."""
    known = [r for r in rollouts if r["rewards"].get(one) is not None and r["rewards"].get(other) is not None]
    if len(known) < 2:
        return {}
    scores = []
    for name in (one, other):
        values = [float(row["rewards"][name] or 0.0) for row in known]
        spread = statistics.pstdev(values)
        mean = statistics.fmean(values)
        scores.append([(value - mean) / spread if spread > 1e-12 else 0.0 for value in values])
    return {row["number"]: -a * b for row, a, b in zip(known, *scores, strict=True)}
