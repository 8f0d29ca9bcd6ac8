"""Which way each objective of a job is better on held-out prompts, from its spec's document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.places import Scale, read_scales

Json = dict[str, Any]


def directions(spec: Mapping[str, Any], *, reads_targets: bool | None = None) -> dict[str, Json]:
    """By objective: `larger` is better, but where the rule that weighs trains towards a target from above.

    Other rules raise every objective, whatever its target says. `reads_targets` says it of the job's rule; without it
    ours is known.
    """
    weighting = spec.get("weighting") or {}
    reads = weighting.get("name") == "lagrangian" if reads_targets is None else reads_targets
    return {
        objective["name"]: _direction(objective.get("target") if reads else None, weighting.get("form"))
        for objective in spec["objectives"]
    }


def _direction(target: Mapping[str, Any] | None, form: str | None) -> Json:
    if target is not None and form == "equality":
        return {"better": "nearer", "target": target["value"]}
    return {"better": "smaller" if target is not None and target.get("op") == "<=" else "larger", "target": None}


def scales(spec: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> dict[str, Scale]:
    """By objective, in the spec's order. `told`: the directions that the job's front has, where it has some."""
    ranges = {objective["name"]: objective.get("range", (0.0, 1.0)) for objective in spec["objectives"]}
    return read_scales(ranges, told or directions(spec))


def better_words(front: Mapping[str, Any], name: str) -> str:
    """Beside an objective's name, where larger is not better: ` (smaller is better)`."""
    direction = (front.get("directions") or {}).get(name) or {}
    if direction.get("better") == "nearer":
        return f" (nearer to {direction['target']:g} is better)"
    return " (smaller is better)" if direction.get("better") == "smaller" else ""
