"""The training of a reward model: updates of backbone and heads, then of the gate. A plain class without Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rewards.models.runners import PAD, pad, pick_device
from rewards.training.batches import Order, Pairs, RatedTexts
from rewards.training.losses import preference_losses, squared_errors
from rewards.training.modules import ClassifierModule, RegressionModule, chunks
from rewards.training.settings import TrainSettings

Figures = dict[str, Any]


class Trainer:
    """Minimises squared errors of ratings, Bradley-Terry losses of pairs, or their sum.

    Which rows an update sees, and at which rate, depends on its number alone; what else the next update depends on is
    in weights, optimiser and torch's generator.
    """

    def __init__(
        self,
        settings: TrainSettings,
        module: RegressionModule | ClassifierModule,
        rated: RatedTexts | None,
        pairs: Pairs | None,
    ) -> None:
        self.settings, self.module = settings, module
        self._rated, self._pairs = rated, pairs
        self._device = pick_device(settings.device)
        self._rated_order = Order(len(rated.tokens), settings.batch_size, 2 * settings.seed) if rated else None
        self._pair_order = Order(len(pairs.chosen), settings.batch_size, 2 * settings.seed + 1) if pairs else None
        orders = [order for order in (self._rated_order, self._pair_order) if order]
        self.total_steps = min(max(o.steps(settings.epochs) for o in orders), settings.max_steps or 2**62)
        self.epoch_steps = max(order.steps(1) for order in orders)
        self.step = 0
        heads = list(module.head_parameters())
        body = [p for p in module.parameters() if p.requires_grad and all(p is not head for head in heads)]
        for parameter in body if settings.freeze_backbone else ():
            parameter.requires_grad_(False)
        groups: list[dict[str, Any]] = [{"params": heads, "peak_lr": settings.head_lr or settings.lr}]
        if not settings.freeze_backbone:
            groups.append({"params": body, "peak_lr": settings.lr})
        self.parameters: list[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)

    def update(self) -> Figures:
        """One update. Raises FloatingPointError where its loss or gradient is not finite: nothing is changed then."""
        started = time.monotonic()
        self.module.train(not self.settings.freeze_backbone)
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        rating_loss = self._backward_ratings() if self._rated else None
        pair_loss, pair_accuracy = self._backward_pairs() if self._pairs else (None, None)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        loss = (rating_loss or 0.0) + self._pair_weight * (pair_loss or 0.0)
        if not abs(loss) + norm < float("inf"):
            raise FloatingPointError(f"update {self.step + 1}: the loss or its gradient is not finite; lower lr")
        self.optimizer.step()
        self.step += 1
        orders = (self._rated_order, self._pair_order)
        return {
            "loss": loss,
            "rating_loss": rating_loss,
            "pair_loss": pair_loss,
            "pair_accuracy": pair_accuracy,
            "lr": self.settings.lr * rate,
            "grad_norm": norm,
            "epoch": self.step / self.epoch_steps,
            "rows": sum(len(order.batch(self.step - 1)) for order in orders if order),
            "duration_s": time.monotonic() - started,
        }

    @property
    def _pair_weight(self) -> float:
        return self.settings.pair_weight if self._rated else 1.0

    def _rate(self) -> float:
        """Share of the peak learning rate: up to 1 over the warm-up, then down to 0 in a line."""
        warmup = int(self.settings.warmup_share * self.total_steps)
        if self.step < warmup:
            return (self.step + 1) / (warmup + 1)
        return (self.total_steps - self.step) / max(1, self.total_steps - warmup)

    def _backward_ratings(self) -> float:
        assert self._rated
        assert self._rated_order
        index = self._rated_order.batch(self.step)
        targets_NK = self._targets(index)
        rated = max(1, int((~torch.isnan(targets_NK)).sum()))
        total = 0.0
        for part in chunks(range(len(index)), self.settings.microbatch_size):
            outputs_BK = self._outputs([self._rated.tokens[index[i]] for i in part])[:, : targets_NK.shape[1]]
            loss = squared_errors(outputs_BK, targets_NK[list(part)]).sum() / rated
            loss.backward()
            total += loss.item()
        return total

    def _targets(self, index: Sequence[int]) -> Tensor:
        """Ratings in units of the heads' scales."""
        assert self._rated
        assert isinstance(self.module, RegressionModule)
        targets_NK = self._rated.targets_NK[list(index)]
        heads = self.module.readout.config.heads[: targets_NK.shape[1]]
        offset_K = targets_NK.new_tensor([head.offset for head in heads])
        scale_K = targets_NK.new_tensor([head.scale for head in heads])
        return ((targets_NK - offset_K) / scale_K).to(self._device)

    def _backward_pairs(self) -> tuple[float, float]:
        """The pairs' loss before its weight, and the share in which the chosen one scores higher."""
        assert self._pairs
        assert self._pair_order
        index = self._pair_order.batch(self.step)
        total, right = 0.0, 0
        for part in chunks(index, self.settings.microbatch_size):
            rows = [self._pairs.chosen[i] for i in part] + [self._pairs.rejected[i] for i in part]
            scores_B = self._outputs(rows)[:, -1]  # the last head is the pairs' own
            chosen_B, rejected_B = scores_B.chunk(2)
            margins_B = self._pairs.margins_N[list(part)].to(self._device)
            loss = preference_losses(chosen_B, rejected_B, margins_B, self.settings.pair_loss).sum() / len(index)
            (self._pair_weight * loss).backward()
            total += loss.item()
            right += int((chosen_B > rejected_B).sum())
        return total, right / len(index)

    def _outputs(self, rows: Sequence[list[int]]) -> Tensor:
        ids_BT, mask_BT = pad(rows, self.module.pad or PAD)
        with self._arithmetic():
            outputs_BK: Tensor = self.module(ids_BT.to(self._device), mask_BT.to(self._device))
        return outputs_BK.float()

    def _arithmetic(self) -> Any:
        if self.settings.dtype == "bfloat16":
            return torch.autocast(self._device.partition(":")[0], torch.bfloat16)
        return contextlib.nullcontext()


@contextlib.contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Torch's generators start from the seed inside, and are the caller's again behind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def run(
    trainer: Trainer,
    on_update: Callable[[Figures], None],
    should_stop: Callable[[], str | None],
    save: Callable[[], None],
) -> str | None:
    """Updates until all are made, or until there is a reason to stop, which is returned."""
    while trainer.step < trainer.total_steps:
        on_update(trainer.update())
        reason = should_stop()
        if (
            reason is not None
            or trainer.step % trainer.settings.checkpoint_every == 0
            or trainer.step == trainer.total_steps
        ):
            save()
        if reason is not None:
            return reason
    return None
