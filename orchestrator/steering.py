"""A person's hand on the weights: what a change may say, and what it makes of the strategy's choice.

The document that is stored and logged is `Steering` in JSON; weights and bounds are keyed by objective name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.spec import JobSpec, scaled
from orchestrator.spec_errors import nearest
from orchestrator.specs import guardrails as guardrail_rules
from orchestrator.specs.guardrails import GuardrailSpec
from orchestrator.specs.reward_job import RewardJobSpec

if TYPE_CHECKING:
    from policies.types import Weights

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
End = Literal["floor", "ceiling"]
SAME = 1e-9  # a smaller change of the weights is none
MAX_OVER = 1_000_000  # as many steps as a job may have


class SteeringError(ValueError):
    """A change that can't be applied; `field` is its dotted path."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Steering(BaseModel):
    """Who decides, and within which bounds.

    auto: the strategy alone, starting from `weights` as its preference. blend: (1 - blend) strategy + blend weights.
    manual: `weights`. Then floors and ceilings, by the nearest point on the bounded simplex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["auto", "blend", "manual"]
    blend: Share
    weights: dict[str, Weight]
    bounds: dict[str, tuple[Share, Share]]
    guardrails: Annotated[tuple[GuardrailSpec, ...], Field(max_length=64)] | None = Field(
        None, exclude_if=lambda rules: rules is None, description="instead of the spec's; absent until they are changed"
    )
    over: Annotated[int, Field(ge=1, le=MAX_OVER)] = Field(
        1,
        exclude=True,
        description="steps in which this version takes effect; it is no part of what later ones begin with",
    )

    @property
    def share(self) -> float:
        """Of the weights that is the person's."""
        return {"auto": 0.0, "blend": self.blend, "manual": 1.0}[self.mode]


def initial_steering(spec: JobSpec | RewardJobSpec) -> Steering:
    """What the spec asks for: version 1. A job without objectives has nothing to steer."""
    if isinstance(spec, RewardJobSpec):
        return Steering(mode="auto", blend=0.0, weights={}, bounds={})
    return Steering(
        mode=spec.steering.mode,
        blend=spec.steering.blend,
        weights=spec.preference,
        bounds={objective.name: objective.bounds for objective in spec.objectives},
    )


def merge(
    current: Mapping[str, Any], change: Mapping[str, Any], objectives: tuple[str, ...], *, has_gold: bool = False
) -> Steering:
    """The steering after a change; what it does not mention stays. Raises SteeringError, naming the field.

    Weights must name every objective and are scaled to sum to 1; bounds may name some, and must leave a solution.
    Guardrails take the place of all that were there.
    """
    for key in change:
        if key not in Steering.model_fields:
            fields = list(Steering.model_fields)
            raise SteeringError(str(key), f"unknown field{nearest(str(key), fields)}; fields are {', '.join(fields)}")
    for key in ("weights", "bounds"):
        if not isinstance(change.get(key, {}), Mapping):
            raise SteeringError(key, "expected a mapping from objectives to values")
        for name in change.get(key, {}):
            if name not in objectives:
                hint = nearest(str(name), objectives)
                raise SteeringError(f"{key}.{name}", f"no such objective{hint}; objectives are {', '.join(objectives)}")
    document = {**current, **change, "bounds": {**current.get("bounds", {}), **change.get("bounds", {})}}
    try:
        steering = Steering.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SteeringError(
            ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        ) from None
    missing = [name for name in objectives if name not in steering.weights]
    if missing:
        raise SteeringError("weights", f"expected a weight for each objective; {', '.join(missing)} is missing")
    try:
        weights = scaled({name: steering.weights[name] for name in objectives})
    except ValueError as error:
        raise SteeringError("weights", str(error)) from None
    _check_bounds(steering.bounds, objectives)
    for path, message in guardrail_rules.problems(steering.guardrails or (), objectives, has_gold=has_gold):
        raise SteeringError(f"guardrails.{path}", message)
    before = current.get("weights", {})
    if all(abs(weights[name] - before.get(name, -1.0)) <= SAME for name in objectives):
        weights = {name: before[name] for name in objectives}  # sent again: scaling may move a last digit
    return steering.model_copy(update={"weights": weights})


def cut_short(over: int, effective_step: int, steps: int) -> list[str]:
    """A line for a ramp that is none, or that does not end within the job's `steps`."""
    if over == 1:
        return []
    if effective_step == 1:
        return ["over: nothing is applied before step 1, which begins at the end of the ramp"]
    if (last := effective_step + over - 1) > steps:
        return [f"over: the ramp would end at step {last}, and the job ends at step {steps}"]
    return []


def idle_parts(
    spec: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], sent: Collection[str]
) -> list[str]:
    """A line for each part of a change (the fields `sent`) that moves no step's weights, and why.

    `spec` is the job's document; `before` and `after` are the steering's.
    """
    if all(alike(before.get(field), after.get(field)) for field in sent):
        return ["nothing changes: the steering stood like this already"]
    found, mode = [], after["mode"]
    if "blend" in sent and "mode" not in sent and mode != "blend" and not alike(before.get("blend"), after["blend"]):
        found.append(f"blend: counts in mode blend alone, and the mode is {mode}")
    if "weights" in sent and mode == "auto" and not alike(before.get("weights"), after["weights"]):
        found += _unmoved(spec)
    return found


def _unmoved(spec: Mapping[str, Any]) -> list[str]:
    """Which weights do not follow the preference in mode auto, by the strategy's own nature."""
    instead = "mode manual or blend brings yours in"
    if spec["weighting"]["name"] == "schedule":
        return [f"weights: in mode auto they are the schedule's at every step; {instead}"]
    aimed = [objective["name"] for objective in spec["objectives"] if objective.get("target") is not None]
    if spec["weighting"]["name"] == "lagrangian" and aimed:
        names = ", ".join(aimed)
        return [f"weights: in mode auto those of objectives with a target ({names}) are their multipliers'; {instead}"]
    return []


def alike(one: Any, other: Any) -> bool:
    """Equal but for the last digits of numbers, which scaling moves."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, abs_tol=1e-9)
    return bool(one == other)


def _check_bounds(bounds: Mapping[str, tuple[float, float]], objectives: tuple[str, ...]) -> None:
    for name, (floor, ceiling) in bounds.items():
        if floor > ceiling:
            raise SteeringError(
                f"bounds.{name}", f"expected [floor, ceiling] with floor <= ceiling, got {floor, ceiling}"
            )
    pairs = [bounds.get(name, (0.0, 1.0)) for name in objectives]
    floors, ceilings = math.fsum(floor for floor, _ in pairs), math.fsum(ceiling for _, ceiling in pairs)
    if floors > 1 + 1e-9 or ceilings < 1 - 1e-9:
        raise SteeringError(
            "bounds", f"leave no weights that sum to 1 (floors sum to {floors:g}, ceilings to {ceilings:g})"
        )


def apply_steering(steering: Steering, strategy: Mapping[str, float]) -> dict[str, float]:
    """The weights of a step, by objective name, from the strategy's own."""
    import torch

    from policies.weighting.simplex import project

    names = list(strategy)
    share = steering.share
    mixed = [(1 - share) * strategy[name] + share * steering.weights[name] for name in names]
    mixed_K = torch.tensor(mixed, dtype=torch.float64)
    bounds = torch.tensor([steering.bounds.get(name, (0.0, 1.0)) for name in names], dtype=torch.float64)
    # A sum that is off by rounding would be spread over all, and a weight of 0 must stay 0.
    applied_K = project(mixed_K / mixed_K.sum(), bounds[:, 0], bounds[:, 1])
    return dict(zip(names, applied_K.tolist(), strict=True))


def apply_directions(
    steering: Steering, names: Sequence[str], choice: Weights
) -> tuple[dict[str, float], dict[str, float]]:
    """(the weights of a step, the sign of each objective) from a strategy that may push objectives down.

    A person's own weight pushes an objective where its target lies. A mix is one of signed weights: what the strategy
    pushes down and the person pushes up cancels.
    """
    strategy_K = choice.weights_K.double()
    if choice.signs_K is None:
        applied = apply_steering(steering, dict(zip(names, strategy_K.tolist(), strict=True)))
        return applied, dict.fromkeys(names, 1.0)
    signs_K = choice.signs_K.double()
    directions_K = signs_K.abs() if choice.directions_K is None else choice.directions_K.double()
    share = steering.share
    own = [(1 - share) * weight for weight in (strategy_K * signs_K).tolist()]
    theirs = [share * steering.weights[name] * way for name, way in zip(names, directions_K.tolist(), strict=True)]
    mixed = {name: one + other for name, one, other in zip(names, own, theirs, strict=True)}
    total = math.fsum(abs(value) for value in mixed.values())
    if total < 1e-12:  # they cancel altogether: the person decides
        mixed, total = {name: steering.weights[name] for name in names}, 1.0
    amounts = {name: abs(value) / total for name, value in mixed.items()}
    ways = zip(names, directions_K.tolist(), strict=True)
    signs = {name: way if mixed[name] == 0 else math.copysign(1.0, mixed[name]) for name, way in ways}
    return apply_steering(steering.model_copy(update={"mode": "auto"}), amounts), signs


def clamped(steering: Steering, names: Sequence[str], choice: Weights, applied: Mapping[str, float]) -> dict[str, bool]:
    """For each objective, whether its floor or ceiling holds its applied weight away from what it would be."""
    ends = held(steering, applied, unbounded(steering, names, choice))
    return {name: name in ends for name in names}


def unbounded(steering: Steering, names: Sequence[str], choice: Weights) -> dict[str, float]:
    """The weights of a step, were there no floors and ceilings."""
    return apply_directions(steering.model_copy(update={"bounds": {}}), names, choice)[0]


def held(steering: Steering, applied: Mapping[str, float], free: Mapping[str, float]) -> dict[str, End]:
    """Which end of its bounds holds an objective's applied weight away from the `free` one, where one does."""
    found: dict[str, End] = {}
    for name, weight in applied.items():
        floor, ceiling = steering.bounds.get(name, (0.0, 1.0))
        if abs(weight - free[name]) > 1e-9 and min(abs(weight - floor), abs(weight - ceiling)) < 1e-9:
            found[name] = "floor" if abs(weight - floor) < 1e-9 else "ceiling"
    return found
