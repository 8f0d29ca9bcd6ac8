"""What a change of the weights would have made of rollouts that are kept: nothing is applied, no policy is asked.

The job's estimator is run on the kept groups alone, under the weights of their step and under the candidate's. A rule
that normalises over the whole batch sees fewer groups here than it did at the step, so both sides are computed anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.rollouts.samples import Row
from orchestrator.spec import JobSpec
from orchestrator.steering import Steering, apply_directions, clamped

if TYPE_CHECKING:
    from torch import Tensor

    from policies.estimators import Estimator
    from policies.types import Weights

SMALL = 1e-9  # an advantage below this has no sign


def preview(spec: JobSpec, rows: Sequence[Row], applied: Mapping[str, float], wanted: Steering) -> Row:
    """`rows`: the kept rollouts of one step; `applied`: that step's weights, as recorded.

    Where the strategy can tell, its choice is what it would have been under the wanted weights as its preference; else
    it is taken as it was at the step.
    """
    import torch

    names = list(spec.objective_names)
    choice = _choice(spec, rows[0]["choice"], wanted)
    before = {name: applied[name] for name in names}
    after, signs = apply_directions(wanted, names, choice)
    scales_before = [rows[0]["scales"][name] for name in names]
    scales_after = [signs[name] * choice.reward_scale for name in names]

    groups = _groups(rows)
    step = rows[0]["step"]
    estimator = _estimator(spec).at((step - 1) / max(1, spec.steps - 1))
    signal_PGK = _by_group(groups, names)
    present_PG = torch.tensor([[g < len(group) for g in range(signal_PGK.shape[1])] for group in groups])

    def learned(weights: Mapping[str, float], scales: Sequence[float]) -> tuple[list[float], dict[str, float]]:
        """Each rollout's advantage, and each objective's share of them."""
        weights_K, scales_K = (torch.tensor(row, dtype=torch.float64) for row in ([weights[n] for n in names], scales))
        advantages_B = estimator(signal_PGK * scales_K, weights_K)[present_PG]
        summands_BK = estimator.summands(signal_PGK * scales_K, weights_K)[present_PG]
        return advantages_B.tolist(), _shares(torch.nan_to_num(summands_BK, nan=0.0), weights)

    advantages_BK = torch.nan_to_num(estimator.per_objective(signal_PGK)[present_PG].double(), nan=0.0)
    (advantages_before, shares_before), (advantages_after, shares_after) = (
        learned(before, scales_before),
        learned(after, scales_after),
    )
    pairs = list(zip(advantages_before, advantages_after, strict=True))
    flips = [
        {
            "number": number,
            "group": row["group"],
            "prompt_index": row["prompt_index"],
            "before": old,
            "after": new,
        }
        for number, (row, (old, new)) in enumerate(zip(rows, pairs, strict=True), start=1)
        if old * new < 0 and min(abs(old), abs(new)) > SMALL
    ]
    return {
        "step": step,
        "rollouts": len(rows),
        "sign_changes": {"count": len(flips), "share": len(flips) / len(rows), "rollouts": flips},
        "weights": {"before": before, "after": after},
        "clamped": clamped(wanted, names, choice, after),
        "effective_share": {"before": shares_before, "after": shares_after},
        "pairs": _pairs(advantages_BK, names),
    }


def _choice(spec: JobSpec, kept: Row, wanted: Steering) -> Weights:
    """What the strategy said at the step, or would have said under another preference."""
    import torch

    from policies.plugins import find_weighting
    from policies.types import Weights
    from policies.weighting.tilt import under_preference

    asked = [wanted.weights[name] for name in spec.objective_names]
    given = kept.get("preference", asked)  # rollouts of older jobs do not tell
    choice_K, preference_K, wanted_K = torch.tensor([kept["weights"], given, asked], dtype=torch.float64)
    chosen_K = under_preference(find_weighting(spec.weighting.name), choice_K, preference_K, wanted_K)
    signs, directions = kept["signs"], kept["directions"]
    return Weights(
        weights_K=chosen_K,
        signs_K=None if signs is None else torch.tensor(signs, dtype=torch.float64),
        directions_K=None if directions is None else torch.tensor(directions, dtype=torch.float64),
        reward_scale=kept["reward_scale"],
    )


def _estimator(spec: JobSpec) -> Estimator:
    """The job's own, as build.py makes it, without what build.py imports."""
    from policies.estimators.copo import Copo
    from policies.plugins import find_estimator

    names, zero_signal = spec.objective_names, spec.sampling.zero_signal
    estimator: Estimator = find_estimator(spec.estimator.name)(**spec.estimator.arguments(names))
    return Copo(estimator, **zero_signal.arguments(names)) if zero_signal.name == "copo" else estimator


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["group"])]


def _by_group(groups: Sequence[Sequence[Row]], names: Sequence[str]) -> Tensor:
    """signal_PGK; NaN where it was not measured, or a group has fewer rollouts than another."""
    import torch

    size = max(len(group) for group in groups)
    signal_PGK = torch.full((len(groups), size, len(names)), torch.nan, dtype=torch.float64)
    for p, group in enumerate(groups):
        for g, row in enumerate(group):
            values = [row["signal"][name] for name in names]
            signal_PGK[p, g] = torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)
    return signal_PGK


def _shares(summands_BK: Tensor, weights: Mapping[str, float]) -> dict[str, float]:
    """sum |w_k v_k| of each objective, as a share of all; 0 everywhere where nothing has an advantage."""
    sums = summands_BK.abs().sum(dim=0).tolist()
    parts = {name: abs(weight) * total for (name, weight), total in zip(weights.items(), sums, strict=True)}
    whole = math.fsum(parts.values())
    return {name: part / whole if whole > SMALL else 0.0 for name, part in parts.items()}


def _pairs(advantages_BK: Tensor, names: Sequence[str]) -> list[Row]:
    """Of every two objectives: correlation of their advantages (none without spread), and how often they disagree."""
    import torch

    found = []
    for i, j in itertools.combinations(range(len(names)), 2):
        one_B, other_B = advantages_BK[:, i], advantages_BK[:, j]
        centred = one_B - one_B.mean(), other_B - other_B.mean()
        norm = float(centred[0].norm() * centred[1].norm())
        found.append(
            {
                "objectives": [names[i], names[j]],
                "correlation": float(torch.dot(*centred)) / norm if norm > SMALL else None,
                "conflicting_share": float((one_B * other_B < -(SMALL**2)).double().mean()),
            }
        )
    return found
