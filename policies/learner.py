"""The learner: scores tokens, differentiates, steps the optimiser. A plain class; the Ray actor around it is thin.

Weights are kept in float32 and used in the policy's dtype (autocast), so that small updates are not rounded away.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.batching import Rows, make_rows, microbatches, minibatches, pad
from policies.losses import Aggregation, ClippedSurrogate, k3, token_weights
from policies.models import load_model
from policies.types import LearnStats, Rollout


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Plain constants of the learner; see the job spec for their meaning."""

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    temperature: float = 1.0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    total_updates: int = 1000
    max_grad_norm: float = 1.0
    minibatches: int = 1
    tokens_per_microbatch: int = 16_384
    surrogate: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    aggregation: Aggregation = "token_mean"
    max_tokens: int = 1024
    kl_coef: float = 0.0
    gradient_checkpointing: bool = False


@dataclass(kw_only=True)
class _Held:
    """What `gramian` leaves for `learn`: the first minibatch's gradients and figures."""

    order: list[int]
    first: list[int]
    gradients: list[list[Tensor]]  # K objectives, every parameter
    penalty: list[Tensor] | None = None  # gradient of the KL penalty
    scored: list[tuple[Rows, Tensor, Tensor, Tensor | None]] = field(default_factory=list)


class Learner:
    """A causal language model, its optimiser, and how a batch of rollouts changes it."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.settings = settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.device = torch.device(settings.device)
        # transformers wraps `to`, which hides its signature from the checker
        self.model: Any = load_model(settings.model, revision=settings.revision).to(settings.device)  # type: ignore[arg-type]
        self.model.train()
        for module in self.model.modules():  # dropout would make the ratio differ from 1 on fresh rollouts
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):  # no module of its own in most models
                module.attention_dropout = 0.0
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.reference = self._load_reference() if settings.kl_coef > 0 else None
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate(settings))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self._held: _Held | None = None

    def _load_reference(self) -> torch.nn.Module:
        reference: Any = load_model(self.settings.model, revision=self.settings.revision)
        return reference.to(self.device).eval().requires_grad_(False)

    # ------------------------------------------------------------------ learn

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        """gramian_KK of the objectives' gradients g_k (of the loss under A_k alone), on the first minibatch.

        One shared forward, K vector-Jacobian products. The gradients are kept, and `learn` with weights makes its
        first update of them: sum_k w_k g_k, no second pass.
        """
        order = self._shuffled(len(rollouts))
        first = minibatches(len(rollouts), count=self.settings.minibatches, order=order)[0]
        held = _Held(order=order, first=first, gradients=[self._zeros() for _ in range(advantages_BK.shape[1])])
        if self.reference is not None:
            held.penalty = self._zeros()
        weights_BT = self._token_weights(rollouts, first)
        for rows in self._microbatches(rollouts, first):
            logprobs_bT, entropy_bT = self._logprobs(rows)
            kl_bT = None if self.reference is None else k3(logprobs_bT, self._reference_logprobs(rows))
            targets = [
                (sums, self._surrogate(rows, logprobs_bT, None, advantages_BK[:, k]))
                for k, sums in enumerate(held.gradients)
            ]
            if kl_bT is not None and held.penalty is not None:
                targets.append((held.penalty, self.settings.kl_coef * kl_bT))
            for i, (sums, losses_bT) in enumerate(targets):
                loss = (losses_bT * weights_BT(rows)).sum()
                _accumulate(sums, loss, self.parameters, retain_graph=i + 1 < len(targets))
            held.scored.append((rows, logprobs_bT.detach(), entropy_bT, None if kl_bT is None else kl_bT.detach()))
        self._held = held
        flat = [torch.cat([part.flatten() for part in parts]) for parts in held.gradients]
        return torch.tensor([[float(row @ column) for column in flat] for row in flat], dtype=torch.float64)

    def learn(
        self, rollouts: Sequence[Rollout], advantages_B: Tensor, *, gradient_weights_K: Tensor | None = None
    ) -> LearnStats:
        """One pass over the batch in minibatches, an update after each.

        advantages_B are the combined advantages. With gradient_weights_K (after `gramian` on the same batch) the first
        minibatch's update is sum_k w_k g_k of the gradients kept; w_k includes the factor of the whitening.
        Raises ValueError where an advantage or the gradient is not finite: that update is not made.
        """
        held, self._held = self._held, None
        if not bool(torch.isfinite(advantages_B).all()):
            raise ValueError("advantages are not finite; nothing was learned from this batch")
        order = held.order if held is not None else self._shuffled(len(rollouts))
        parts = minibatches(len(rollouts), count=self.settings.minibatches, order=order)
        old = self._score(rollouts) if len(parts) > 1 else None
        meter = _Meter()
        for i, part in enumerate(parts):
            if i == 0 and held is not None and gradient_weights_K is not None:
                self._combine(rollouts, held, gradient_weights_K, advantages_B, meter)
            else:
                self._backward(rollouts, part, advantages_B, old, meter)
            self._step(meter)
        return meter.result()

    def _backward(
        self,
        rollouts: Sequence[Rollout],
        part: list[int],
        advantages_B: Tensor,
        old: list[Tensor] | None,
        meter: _Meter,
    ) -> None:
        """Gradients of the minibatch's loss into .grad."""
        weights_BT = self._token_weights(rollouts, part)
        for rows in self._microbatches(rollouts, part):
            logprobs_bT, entropy_bT = self._logprobs(rows)
            old_bT = None if old is None else pad([old[i] for i in rows.index], rows.mask_bT.shape[1]).to(self.device)
            losses_bT = self._surrogate(rows, logprobs_bT, old_bT, advantages_B)
            kl_bT = None
            if self.reference is not None:
                kl_bT = k3(logprobs_bT, self._reference_logprobs(rows))
                losses_bT = losses_bT + self.settings.kl_coef * kl_bT
            loss = (losses_bT * weights_BT(rows)).sum()
            loss.backward()
            clipped_bT = self._clipped(rows, logprobs_bT, old_bT, advantages_B)
            meter.add(rows, loss, logprobs_bT if old_bT is None else old_bT, clipped_bT, entropy_bT, kl_bT)

    def _combine(
        self,
        rollouts: Sequence[Rollout],
        held: _Held,
        weights_K: Tensor,
        advantages_B: Tensor,
        meter: _Meter,
    ) -> None:
        """sum_k w_k g_k, and the penalty's gradient, into .grad; the figures from the forward that made them."""
        for j, parameter in enumerate(self.parameters):
            parameter.grad = torch.zeros_like(parameter) if held.penalty is None else held.penalty[j]
            for weight, parts in zip(weights_K, held.gradients, strict=True):
                parameter.grad.add_(parts[j], alpha=float(weight))
        weights_BT = self._token_weights(rollouts, held.first)
        for rows, logprobs_bT, entropy_bT, kl_bT in held.scored:
            losses_bT = self._surrogate(rows, logprobs_bT, None, advantages_B)
            if kl_bT is not None:
                losses_bT = losses_bT + self.settings.kl_coef * kl_bT
            clipped_bT = self._clipped(rows, logprobs_bT, None, advantages_B)
            meter.add(rows, (losses_bT * weights_BT(rows)).sum(), logprobs_bT, clipped_bT, entropy_bT, kl_bT)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]

    def _step(self, meter: _Meter) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad()
            raise ValueError("the gradient is not finite; the policy was left as it was")
        meter.lr = float(self.scheduler.get_last_lr()[0])  # of this update; the schedule then moves to the next one's
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        meter.grad_norms.append(float(norm))

    # ---------------------------------------------------------------- forward

    def _surrogate(self, rows: Rows, logprobs_bT: Tensor, old_bT: Tensor | None, advantages_B: Tensor) -> Tensor:
        old_bT = logprobs_bT.detach() if old_bT is None else old_bT
        advantages_b = advantages_B[rows.index].to(self.device, torch.float32)
        return self.settings.surrogate.token_losses(logprobs_bT, old_bT, rows.sampler_logprobs_bT, advantages_b)

    @torch.no_grad()
    def _clipped(self, rows: Rows, logprobs_bT: Tensor, old_bT: Tensor | None, advantages_B: Tensor) -> Tensor:
        old_bT = logprobs_bT if old_bT is None else old_bT
        return self.settings.surrogate.clipped(logprobs_bT, old_bT, advantages_B[rows.index].to(self.device))

    def _logprobs(self, rows: Rows, model: torch.nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """(log-probabilities_bT with gradient, entropy_bT without) of the completions at the sampling temperature."""
        with self._precision():
            logits = (model or self.model)(
                input_ids=rows.input_ids_bt,
                attention_mask=rows.attention_bt,
                logits_to_keep=rows.keep,
                use_cache=False,
            ).logits
        index_bT1 = rows.position_bT.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        logits_bTV = logits.gather(1, index_bT1).float() / (self.settings.temperature or 1.0)
        logprobs_bTV = torch.log_softmax(logits_bTV, dim=-1)
        with torch.no_grad():
            entropy_bT = -(logprobs_bTV.exp() * logprobs_bTV).sum(dim=-1)
        logprobs_bT = logprobs_bTV.gather(2, rows.target_bT.unsqueeze(-1)).squeeze(-1)
        # Padding gets the sampler's own value, 0, so that every ratio there is 1 whatever the model says.
        return torch.where(rows.mask_bT, logprobs_bT, 0.0), entropy_bT

    def _reference_logprobs(self, rows: Rows) -> Tensor:
        with torch.no_grad():
            return self._logprobs(rows, self.reference)[0]

    @torch.no_grad()
    def _score(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The policy's log-probabilities before the first update, one tensor for each rollout."""
        scores: list[Tensor] = [torch.empty(0)] * len(rollouts)
        for rows in self._microbatches(rollouts, list(range(len(rollouts)))):
            logprobs_bT, _ = self._logprobs(rows)
            for i, row, mask in zip(rows.index, logprobs_bT.cpu(), rows.mask_bT.cpu(), strict=True):
                scores[i] = row[mask]
        return scores

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probability of each completion token under the policy as it is now."""
        return [scores.tolist() for scores in self._score(rollouts)]

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            yield

    def _microbatches(self, rollouts: Sequence[Rollout], part: list[int]) -> Iterator[Rows]:
        lengths = [len(rollouts[i].prompt_tokens) + len(rollouts[i].tokens) for i in part]
        for group in microbatches(lengths, token_budget=self.settings.tokens_per_microbatch):
            index = sorted(part[i] for i in group)
            yield make_rows([rollouts[i] for i in index], index, self.device)

    def _token_weights(self, rollouts: Sequence[Rollout], part: list[int]) -> Callable[[Rows], Tensor]:
        """For a microbatch, the share of each token in the aggregated loss of the whole minibatch."""
        lengths = torch.tensor([len(rollouts[i].tokens) for i in part])
        mask_BT = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        weights_BT = token_weights(mask_BT, self.settings.aggregation, max_tokens=self.settings.max_tokens)
        row_of = {i: row for row, i in enumerate(part)}

        def of(rows: Rows) -> Tensor:
            kept = weights_BT[[row_of[i] for i in rows.index], : rows.mask_bT.shape[1]]
            return kept.to(self.device)

        return of

    def _shuffled(self, size: int) -> list[int]:
        if self.settings.minibatches == 1:
            return list(range(size))
        return torch.randperm(size, generator=self.generator).tolist()

    # ------------------------------------------------------------------ state

    def weights(self) -> dict[str, Tensor]:
        """What an engine loads: the Hugging Face names, in the policy's dtype, tied tensors once."""
        dtype = getattr(torch, self.settings.dtype)
        return {name: p.detach().to(dtype).contiguous() for name, p in self.model.named_parameters()}

    def save_policy(self, directory: Path) -> None:
        """A plain Hugging Face directory without the tokenizer."""
        dtype = getattr(torch, self.settings.dtype)
        tied = self.model.all_tied_weights_keys  # converted copies would no longer be seen as one tensor
        state = {name: tensor.to(dtype) for name, tensor in self.model.state_dict().items() if name not in tied}
        with _disk_errors():
            self.model.save_pretrained(directory, state_dict=state)
        self.model.config.dtype = self.settings.dtype  # save_pretrained writes that of the float32 weights
        self.model.config.save_pretrained(directory)

    def save_state(self, directory: Path) -> None:
        """What the next update depends on: float32 weights, optimiser, schedule, random states."""
        tensors = {f"weights.{name}": p.detach().cpu() for name, p in self.model.named_parameters()}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value).detach().cpu().clone()
        tensors["schedule.updates"] = torch.tensor(self.scheduler.last_epoch)
        tensors["random.torch"] = torch.get_rng_state()
        tensors["random.order"] = self.generator.get_state()
        with _disk_errors():
            save_file(tensors, directory / "learner.safetensors")

    def load_state(self, directory: Path) -> None:
        """Continue exactly where `save_state` was. Raises KeyError where it is of another model."""
        tensors = load_file(directory / "learner.safetensors")
        names = {f"weights.{name}" for name, _ in self.model.named_parameters()}
        if names != {key for key in tensors if key.startswith("weights.")}:
            raise KeyError(f"{directory} holds the state of another model")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"weights.{name}"])
        self.optimizer.state.clear()  # a state saved before the first update has no moments
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            state: dict[str, Any] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                moved = {k: v if k == "step" else v.to(self.device) for k, v in state.items()}
                self.optimizer.state[parameter] = moved
        updates = int(tensors["schedule.updates"])
        self.scheduler.last_epoch = updates
        rates = [learning_rate(self.settings)(updates) * base for base in self.scheduler.base_lrs]
        self.scheduler._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        torch.set_rng_state(tensors["random.torch"])
        self.generator.set_state(tensors["random.order"])
        self._held = None


class _Meter:
    """Sums over the tokens of a batch."""

    def __init__(self) -> None:
        self.lr = self.loss = self.kl = self.entropy = self.clipped = self.importance = self.gap = 0.0
        self.tokens = self.slots = self.real = 0
        self.grad_norms: list[float] = []

    @torch.no_grad()
    def add(
        self, rows: Rows, loss: Tensor, old_bT: Tensor, clipped_bT: Tensor, entropy_bT: Tensor, kl_bT: Tensor | None
    ) -> None:
        mask_bT = rows.mask_bT
        difference_bT = old_bT.detach() - rows.sampler_logprobs_bT
        self.loss += float(loss.detach())
        self.kl += 0.0 if kl_bT is None else float((kl_bT.detach() * mask_bT).sum())
        self.entropy += float((entropy_bT * mask_bT).sum())
        self.clipped += float((clipped_bT & mask_bT).sum())
        self.importance += float((difference_bT.exp() * mask_bT).sum())
        self.gap += float((difference_bT.abs() * mask_bT).sum())
        self.tokens += int(mask_bT.sum())
        self.slots += rows.input_ids_bt.numel()
        self.real += int(rows.attention_bt.sum())

    def result(self) -> LearnStats:
        tokens = max(self.tokens, 1)
        return LearnStats(
            loss=self.loss / len(self.grad_norms),
            grad_norm=sum(self.grad_norms) / len(self.grad_norms),
            lr=self.lr,
            entropy=self.entropy / tokens,
            kl=self.kl / tokens,
            clip_share=self.clipped / tokens,
            importance_mean=self.importance / tokens,
            sampler_gap=self.gap / tokens,
            padding_share=1 - self.real / max(self.slots, 1),
            updates=len(self.grad_norms),
        )


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """safetensors has an error of its own for what the disk refuses."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def learning_rate(settings: LearnerSettings) -> Callable[[int], float]:
    """Factor on the peak rate after n updates: linear warm-up from 1/warmup, then the schedule down to 0."""

    def factor(update: int) -> float:
        if update < settings.warmup_steps:
            return (update + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        done = (update - settings.warmup_steps) / max(1, settings.total_updates - settings.warmup_steps)
        done = min(1.0, done)
        return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _accumulate(sums: list[Tensor], loss: Tensor, parameters: list[Tensor], *, retain_graph: bool) -> None:
    parts = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    for total, part in zip(sums, parts, strict=True):
        if part is not None:
            total += part
