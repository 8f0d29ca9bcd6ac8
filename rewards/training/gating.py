"""Behind the heads' training: verbosity is taken off, and the gate learns to mix them on pairs (arXiv 2406.12845)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rewards.models.readout import Gate, Readout
from rewards.models.runners import TransformersRunner
from rewards.training.correlation import verbosity_share
from rewards.training.settings import GatingSettings

REFERENCE_ROWS = 2048  # for the rank correlation with verbosity


@dataclass(frozen=True, kw_only=True)
class GateData:
    """What a gate is trained on, once the heads are fixed. K are the heads that are mixed."""

    prompts_NH: Tensor
    differences_NK: Tensor
    """n' of the chosen completion less that of the rejected one."""


def set_verbosity_shares(readout: Readout, ratings_NK: Tensor) -> None:
    """Sets every mixed head's lambda by these predicted ratings of a reference set."""
    config = readout.config
    if config.verbosity_head is None:
        return
    normalised_NK = readout.normalised(ratings_NK).double().numpy()
    names = [config.heads[k].name for k in readout.mixed]
    verbosity_N = normalised_NK[:, names.index(config.verbosity_head)]
    shares = {
        name: verbosity_share(np.ascontiguousarray(column_N), verbosity_N)
        for name, column_N in zip(names, normalised_NK.T, strict=True)
    }
    heads = tuple(h.model_copy(update={"verbosity_share": shares.get(h.name, 0.0)}) for h in config.heads)
    readout.config = config.model_copy(update={"heads": heads})


@torch.no_grad()
def gate_data(
    readout: Readout,
    runner: TransformersRunner,
    *,
    prompts: Sequence[list[int]],
    chosen: Sequence[list[int]],
    rejected: Sequence[list[int]],
) -> GateData:
    """Hidden states of N prompts and scaled ratings of N pairs."""
    parts = [readout.decorrelated(readout.ratings(runner(rows))) for rows in (chosen, rejected)]
    return GateData(prompts_NH=runner(prompts), differences_NK=parts[0] - parts[1])


def train_gate(
    readout: Readout,
    data: GateData,
    settings: GatingSettings,
    *,
    seed: int,
    on_update: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], str | None],
) -> str | None:
    """Gives the readout a gate that minimises -log sigmoid(scale * sum_k g_k (n'_k chosen - n'_k rejected)).

    Heads and backbone stay as they are. Returns the reason to stop, if there was one: the readout has no gate then.
    """
    pairs, heads = data.differences_NK.shape
    gate = Gate(data.prompts_NH.shape[1], settings.hidden_sizes, heads)
    with torch.no_grad():  # a mix of differences within [0, 1] that starts at a slope worth learning from
        gate.log_scale.fill_(1.0)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        started = time.monotonic()
        index_B = torch.randint(pairs, (min(settings.batch_size, pairs),), generator=generator)
        parts_BK = gate(data.prompts_NH[index_B]) * data.differences_NK[index_B]
        margins_B = gate.log_scale.exp() * parts_BK.sum(dim=-1)
        loss = -logsigmoid(margins_B).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(gate.parameters(), 1.0))
        if not loss.item() + norm < float("inf"):
            raise FloatingPointError(
                f"gating update {step + 1}: the loss or its gradient is not finite; lower gating.lr"
            )
        optimizer.step()
        schedule.step()
        on_update(
            {
                "loss": loss.item(),
                "rating_loss": None,
                "pair_loss": loss.item(),
                "pair_accuracy": float((margins_B > 0).float().mean()),
                "lr": schedule.get_last_lr()[0],
                "grad_norm": norm,
                "epoch": (step + 1) * len(index_B) / pairs,
                "rows": len(index_B),
                "duration_s": time.monotonic() - started,
            }
        )
        if (reason := should_stop()) is not None:
            return reason
    readout.config = readout.config.model_copy(update={"gating": settings.hidden_sizes})
    readout.gate = gate.eval()
    return None
