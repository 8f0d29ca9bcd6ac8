"""The learner: scores tokens, differentiates, steps the optimiser. A plain class; the Ray actor around it is thin.

Weights are kept in float32 and used in the policy's dtype (autocast), so that small updates are not rounded away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies import recompute
from policies.batching import Rows, minibatches, pad
from policies.capture import Capture, Sink, UnsupportedLayerError
from policies.gramian import (
    FullGradients,
    SketchedGradients,
    backward_passes,
    blocks,
    in_last_block,
    influence_of_response,
    inner_products,
    response,
    response_part,
    separable,
)
from policies.held import Held
from policies.learner_settings import LearnerSettings as LearnerSettings  # its users know it by this module
from policies.learner_settings import learning_rate
from policies.learner_state import load_policy, load_state, policy_writer, state_writer, without_frames
from policies.lora import adapter, attach, base_digest, base_weights, merged, switched_off
from policies.losses import k3
from policies.meter import Meter
from policies.models import check_positions, load_model
from policies.rank_rows import rank_rows, token_shares
from policies.ranks import Ranks, whole
from policies.saved_names import as_saved, kinds_as_saved
from policies.scorer import Scorer
from policies.types import LearnStats, ObjectiveAdvantages, Rollout

COMPILER = "inductor"
COMPILED_FORMS = 32  # of a block: with and without gradient, mask and adapter, of one row and of several


class Learner:
    """A causal language model, its optimiser, and how a batch of rollouts changes it.

    Where torch's default process group has several ranks, each has a Learner, all are called alike with the whole
    batch, and together they do what one would: in bfloat16 with more rounding (Ranks.shard).
    """

    def __init__(self, settings: LearnerSettings) -> None:
        self.settings = settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.device = torch.device(settings.device)
        self.ranks = Ranks(self.device, offload=settings.cpu_offload)
        self.model: Any = self._load()
        self.base_sha256: bytes | None = None  # of the frozen weights that an adapter belongs to
        if settings.lora is not None:
            attach(self.model, settings.lora)
            self.base_sha256 = base_digest(self.model)
        self._place(self.model)
        self.model.eval()  # dropout and a router's noise would make the ratio differ from 1 on fresh rollouts
        if settings.gradient_checkpointing:
            recompute.enable(self.model)
        self.scorer = self._scorer(self.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        self.reference = self._load_reference() if settings.kl_coef > 0 else None
        alone_on_gpu = self.device.type == "cuda" and self.ranks.size == 1 and not settings.cpu_offload
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=alone_on_gpu or None,  # None: torch's own choice
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate(settings))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self._held: Held | None = None
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._capture = self._instrument()
        if settings.compile:
            self._compile()

    def _instrument(self) -> Capture | None:
        """What reads the objectives' gradients off a backward pass; None for models with layers it does not know."""
        mode = self.settings.gramian
        if mode in (None, "step_response"):
            return None
        try:
            return Capture(self.model, only=in_last_block(self.model)) if mode == "last_block" else Capture(self.model)
        except UnsupportedLayerError as error:
            if mode in ("sketch", "last_block"):
                raise ValueError(f"gramian.mode: {mode} can't read this model: {error}; use exact") from None
            return None

    def _compile(self) -> None:
        """Fuses what the blocks do between their products, of those whose gradients nothing reads.

        A penalty needs the graph again after a backward pass, so that no buffer of it may be given away.
        """
        torch._dynamo.config.recompile_limit = COMPILED_FORMS
        torch._functorch.config.donated_buffer = False
        read = {id(parameter) for parameter in self._capture.parameters} if self._capture is not None else set()
        for block in blocks(self.model)[1]:
            if not any(id(parameter) in read for parameter in block.parameters()):
                block.compile(backend=COMPILER)

    def _scorer(self, model: Any) -> Scorer:
        """Sharded over the ranks."""
        settings = self.settings
        scorer = Scorer(
            model,
            temperature=settings.temperature,
            chunk_logits=settings.chunk_logits,
            share_prompts=settings.share_prompts and not settings.compile,  # each batch's parts are another form
            packing=settings.packing,
        )
        self.ranks.shard(scorer, blocks(model)[1], settings.dtype)
        return scorer

    def _load(self) -> Any:
        settings = self.settings
        dtype = settings.dtype if settings.lora is not None else "float32"  # what is frozen has nothing to round away
        model = load_model(settings.model, revision=settings.revision, dtype=dtype)
        check_positions(model.config, settings.max_model_len)
        return model

    def _load_reference(self) -> Scorer:
        if self.settings.lora is not None:
            return self.scorer  # with the adapter switched off
        return self._scorer(self._place(self._load()).eval().requires_grad_(False))

    def _place(self, model: Any) -> Any:
        """On the device, unless it is brought there block by block: of several ranks, none need have room for all."""
        return model if self.settings.cpu_offload or self.ranks.size > 1 else model.to(self.device)

    # ------------------------------------------------------------------ learn

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        """gramian_KK of the objectives' gradients g_k (of the loss under A_k alone), on the first minibatch.

        The gradients are kept, and `learn` makes its first update of them, sum_k v_k g_k, where it is given v.
        """
        order = self._shuffled(len(rollouts))
        try:
            return self._hold(rollouts, advantages_BK, order)
        except UnsupportedLayerError:  # shows only once the model runs
            self._capture = None
            self.optimizer.zero_grad()
            return self._hold(rollouts, advantages_BK, order)

    def _hold(self, rollouts: Sequence[Rollout], advantages_BK: Tensor, order: list[int]) -> Tensor:
        first = self._minibatches(order)[0]
        held = Held(order=order, first=first, gradients=[])
        sink = None if self._capture is None else FullGradients(self._capture.parameters, advantages_BK.shape[1])
        weights_BT = self._token_weights(rollouts, first)
        for rows in self._microbatches(rollouts, first, apart=sink is not None):
            if sink is not None:
                self._shared_backward(rows, advantages_BK, weights_BT(rows), sink, held)
            else:
                self._repeated_backward(rows, advantages_BK, weights_BT(rows), held)
        if sink is not None:
            held.gradients = sink.gradients
        self._held = held
        return inner_products(held.gradients)

    def _shared_backward(
        self, rows: Rows, advantages_BK: Tensor, weights_bT: Tensor, sink: FullGradients, held: Held
    ) -> None:
        """All objectives' gradients of a microbatch from one pass, made with advantage 1 everywhere."""
        assert self._capture is not None
        ratios_bK = advantages_BK[rows.index].to(self.device, torch.float32)
        reference_bT = self._reference_logprobs(rows)
        with self._capture.recording(sink, ratios_bK, owner_rt=rows.owner_rt, weight_gradients=False):
            logprobs_bT, entropy_bT = self._logprobs(rows)
            kl_bT, penalty = self._penalty(logprobs_bT, reference_bT, weights_bT)
            losses_bT = self._surrogate(rows, logprobs_bT, None, torch.ones(len(advantages_BK)))
            (losses_bT * weights_bT).sum().backward(retain_graph=penalty is not None)
            self.optimizer.zero_grad()
            if penalty is not None:
                with self._capture.muted():
                    held.add(penalty=backward_passes([penalty], self.parameters)[0])
        held.scored.append((rows, logprobs_bT.detach(), entropy_bT, None if kl_bT is None else kl_bT.detach()))

    def _repeated_backward(self, rows: Rows, advantages_BK: Tensor, weights_bT: Tensor, held: Held) -> None:
        """The same from one forward and K backward passes, for models with layers that can't be captured."""
        reference_bT = self._reference_logprobs(rows)
        logprobs_bT, entropy_bT = self._logprobs(rows)
        kl_bT, penalty = self._penalty(logprobs_bT, reference_bT, weights_bT)
        losses = [
            (self._surrogate(rows, logprobs_bT, None, advantages_B) * weights_bT).sum()
            for advantages_B in advantages_BK.T
        ]
        found = backward_passes(losses if penalty is None else [*losses, penalty], self.parameters)
        held.add(gradients=found[: len(losses)], penalty=None if penalty is None else found[-1])
        held.scored.append((rows, logprobs_bT.detach(), entropy_bT, None if kl_bT is None else kl_bT.detach()))

    def _penalty(
        self, logprobs_bT: Tensor, reference_bT: Tensor | None, weights_bT: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(k3 estimate per token, its part of the loss); None twice without a reference."""
        if reference_bT is None:
            return None, None
        kl_bT = k3(logprobs_bT, reference_bT)
        return kl_bT, (self.settings.kl_coef * kl_bT * weights_bT).sum()

    def learn(
        self, rollouts: Sequence[Rollout], advantages_B: Tensor, *, parts: ObjectiveAdvantages | None = None
    ) -> LearnStats:
        """One pass over the batch in minibatches, an update after each.

        advantages_B are the combined advantages. With their `parts`, the first minibatch's update is the weighted sum
        of the gradients that `gramian` kept, where it was asked; the other modes measure during this update.
        An update whose gradient or loss is not finite, on any rank, is not made, nor one for which `mask_truncated`
        leaves no rollout: weights, optimiser and schedule stay as they were on all ranks, and the other minibatches'
        are made. Raises ValueError where an advantage is not finite.
        """
        held, self._held = self._held, None
        if not bool(torch.isfinite(advantages_B).all()):
            raise ValueError("advantages are not finite; nothing was learned from this batch")
        order = held.order if held is not None else self._shuffled(len(rollouts))
        if parts is None or parts.weights_K is None:
            held = None  # K gradients that nobody will use
        minis = self._minibatches(order)
        old = self._score(rollouts) if len(minis) > 1 else None
        learned_B = torch.tensor([self.settings.learns_from(rollout) for rollout in rollouts])
        meter = Meter(learned_B, measures_kl=self.reference is not None)
        for i, mini in enumerate(minis):
            if held is not None and parts is not None and parts.weights_K is not None:
                self._combine(rollouts, held, parts.weights_K, advantages_B, meter)
                self._step(rollouts, mini, meter)
                held = None
            elif i == 0 and self.settings.gramian != "exact" and parts is not None:
                self._measured_step(rollouts, mini, advantages_B, parts, old, meter)
            else:
                self._backward(rollouts, mini, advantages_B, old, meter)
                self._step(rollouts, mini, meter)
        return meter.result(self.ranks)

    def _measured_step(
        self,
        rollouts: Sequence[Rollout],
        mini: list[int],
        advantages_B: Tensor,
        parts: ObjectiveAdvantages,
        old: list[Tensor] | None,
        meter: Meter,
    ) -> None:
        """An update, and beside it what the mode measures for the next step's weights."""
        if self.settings.gramian == "step_response":
            share, seed = self.settings.response_share, self._seed_of_update
            learned = [i for i in mini if self.settings.learns_from(rollouts[i])]  # what is masked has no response
            drawn = response_part(rollouts, learned, share=share, seed=seed)
            before = self._backward(rollouts, mini, advantages_B, old, meter, ahead=drawn)
            if self._step(rollouts, mini, meter):
                meter.influence_K = self._influence(rollouts, mini, drawn, before, parts, meter.grad_norms[-1])
            return
        assert self._capture is not None, "made sure of at the start"
        separated = separable(advantages_B, parts.advantages_BK)
        if separated is None:
            self._backward(rollouts, mini, advantages_B, old, meter)
            self._step(rollouts, mini, meter)
            return
        objectives = parts.advantages_BK.shape[1]
        sink: FullGradients | SketchedGradients = FullGradients(self._capture.parameters, objectives)
        if self.settings.gramian == "sketch":
            width, seed = self.settings.sketch_width, self._seed_of_update
            sink = SketchedGradients(self._capture.parameters, width=width, seed=seed)
        made_B, ratios_BK = separated
        self._backward(rollouts, mini, made_B, old, meter, sink=sink, ratios_BK=ratios_BK)
        if self._step(rollouts, mini, meter):
            meter.gramian_KK = sink.gramian()

    def _backward(
        self,
        rollouts: Sequence[Rollout],
        mini: list[int],
        advantages_B: Tensor,
        old: list[Tensor] | None,
        meter: Meter,
        *,
        sink: Sink | None = None,
        ratios_BK: Tensor | None = None,
        ahead: Sequence[int] = (),
    ) -> dict[int, Tensor]:
        """Gradients of the minibatch's loss into .grad; the log-probabilities of this rank's rollouts."""
        weights_BT = self._token_weights(rollouts, mini)
        scores: dict[int, Tensor] = {}
        for rows in self._microbatches(rollouts, mini, apart=sink is not None, ahead=ahead):
            old_bT = None if old is None else pad([old[i] for i in rows.index], rows.mask_bT.shape[1]).to(self.device)
            weights_bT, reference_bT = weights_BT(rows), self._reference_logprobs(rows)
            with self._recording(sink, ratios_BK, rows):
                logprobs_bT, entropy_bT = self._logprobs(rows)
                loss = (self._surrogate(rows, logprobs_bT, old_bT, advantages_B) * weights_bT).sum()
                kl_bT, penalty = self._penalty(logprobs_bT, reference_bT, weights_bT)
                if sink is not None and penalty is not None and self._capture is not None:
                    loss.backward(retain_graph=True)
                    with self._capture.muted():  # the penalty is not linear in the advantages
                        penalty.backward()
                    loss = loss.detach() + penalty.detach()
                else:
                    loss = loss if penalty is None else loss + penalty
                    loss.backward()
            clip = self._clip(rows, logprobs_bT, old_bT, advantages_B)
            meter.add(rows, loss, logprobs_bT, old_bT, clip, entropy_bT, kl_bT)
            if not rows.idle:
                scores.update(zip(rows.index, logprobs_bT.detach(), strict=True))
        return scores

    def _recording(
        self, sink: Sink | None, ratios_BK: Tensor | None, rows: Rows
    ) -> contextlib.AbstractContextManager[None]:
        if sink is None or ratios_BK is None or self._capture is None:
            return contextlib.nullcontext()
        ratios_bK = ratios_BK[rows.index].to(self.device, torch.float32)
        return self._capture.recording(sink, ratios_bK, owner_rt=rows.owner_rt)

    def _influence(
        self,
        rollouts: Sequence[Rollout],
        mini: list[int],
        drawn: list[int],
        before: dict[int, Tensor],
        parts: ObjectiveAdvantages,
        grad_norm: float,
    ) -> Tensor:
        """influence_K from how the log-probabilities of the minibatch's `drawn` moved in the update just made.

        They stand in the rows that they had before it: rounding depends on those, and may be more than the move.
        """
        weights_BT = self._token_weights(rollouts, mini)
        response_K = torch.zeros(parts.advantages_BK.shape[1], dtype=torch.float64)
        for rows in self._microbatches(rollouts, drawn):
            with torch.no_grad():
                after_bT, _ = self._logprobs(rows)
            if rows.idle:
                continue
            before_bT = torch.stack([before[i] for i in rows.index])
            weights_bT = weights_BT(rows) * self.settings.surrogate.importance(before_bT, rows.sampler_logprobs_bT)
            advantages_bK = parts.advantages_BK[rows.index].to(self.device)
            response_K += response(before_bT, after_bT, weights_bT, advantages_bK).cpu()
        response_K = self.ranks.sum(response_K)
        weights_K = torch.ones_like(response_K) / len(response_K) if parts.weights_K is None else parts.weights_K
        return influence_of_response(response_K, weights_K, grad_norm)

    def _combine(
        self,
        rollouts: Sequence[Rollout],
        held: Held,
        weights_K: Tensor,
        advantages_B: Tensor,
        meter: Meter,
    ) -> None:
        """sum_k v_k g_k, and the penalty's gradient, into .grad; the figures from the forward that made them."""
        for j, parameter in enumerate(self.parameters):
            parameter.grad = torch.zeros_like(parameter) if held.penalty is None else held.penalty[j]
            for weight, parts in zip(weights_K, held.gradients, strict=True):
                parameter.grad.add_(parts[j], alpha=float(weight))
        weights_BT = self._token_weights(rollouts, held.first)
        for rows, logprobs_bT, entropy_bT, kl_bT in held.scored:
            losses_bT = self._surrogate(rows, logprobs_bT, None, advantages_B)
            if kl_bT is not None:
                losses_bT = losses_bT + self.settings.kl_coef * kl_bT
            clip = self._clip(rows, logprobs_bT, None, advantages_B)
            meter.add(rows, (losses_bT * weights_BT(rows)).sum(), logprobs_bT, None, clip, entropy_bT, kl_bT)

    def _step(self, rollouts: Sequence[Rollout], mini: list[int], meter: Meter) -> bool:
        """Whether the update is made. All ranks see the same norm and sum of losses, and so agree."""
        meter.lr = float(self.scheduler.get_last_lr()[0])  # of this update; the schedule then moves to the next one's
        if not any(self.settings.learns_from(rollouts[i]) for i in mini):  # else momentum and decay would move it
            self.optimizer.zero_grad()
            meter.nothing_learned()
            return False
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        loss = self.ranks.sum(torch.tensor(meter.sums["loss"], dtype=torch.float64))
        if not (bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))):
            self.optimizer.zero_grad()
            meter.take_back()
            return False
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        meter.made(float(norm))
        return True

    # ---------------------------------------------------------------- forward

    def _surrogate(self, rows: Rows, logprobs_bT: Tensor, old_bT: Tensor | None, advantages_B: Tensor) -> Tensor:
        old_bT = logprobs_bT.detach() if old_bT is None else old_bT
        advantages_b = advantages_B[rows.index].to(self.device, torch.float32)
        return self.settings.surrogate.token_losses(
            logprobs_bT, old_bT, rows.sampler_logprobs_bT, advantages_b, rows.mask_bT
        )

    @torch.no_grad()
    def _clip(
        self, rows: Rows, logprobs_bT: Tensor, old_bT: Tensor | None, advantages_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(what clips leave of the ratio_bT, where they act)."""
        surrogate, old_bT = self.settings.surrogate, logprobs_bT if old_bT is None else old_bT
        ratio_bT, advantages_b = surrogate.ratios(logprobs_bT, old_bT, rows.mask_bT), advantages_B[rows.index]
        advantages_b = advantages_b.to(self.device)
        return surrogate.kept(ratio_bT, advantages_b), surrogate.clipped(ratio_bT, advantages_b)

    def _logprobs(self, rows: Rows, scorer: Scorer | None = None) -> tuple[Tensor, Tensor]:
        """(log-probabilities_bT with gradient, entropy_bT without) of the completions at the sampling temperature."""
        with self._precision():
            found: tuple[Tensor, Tensor] = (scorer or self.scorer)(rows)
        return found

    def _reference_logprobs(self, rows: Rows) -> Tensor | None:
        """None without a reference. Asked for before the policy's own, whose graph a switched adapter would disturb."""
        if self.reference is None:
            return None
        base = switched_off(self.model) if self.reference is self.scorer else contextlib.nullcontext()
        with torch.no_grad(), base:
            return self._logprobs(rows, self.reference)[0]

    @torch.no_grad()
    def _score(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The policy's log-probabilities before the first update, one tensor for each rollout."""
        lengths = [len(rollout.tokens) for rollout in rollouts]
        scores_BT = torch.zeros(len(rollouts), max(lengths, default=0))
        for rows in self._microbatches(rollouts, list(range(len(rollouts)))):
            logprobs_bT, _ = self._logprobs(rows)
            if not rows.idle:
                scores_BT[rows.index, : logprobs_bT.shape[1]] = logprobs_bT.cpu()
        scores_BT = self.ranks.sum(scores_BT)
        return [row[:length] for row, length in zip(scores_BT, lengths, strict=True)]

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probability of each completion token under the policy as it is now."""
        return [scores.tolist() for scores in self._score(rollouts)]

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            yield

    def _microbatches(
        self, rollouts: Sequence[Rollout], part: list[int], *, apart: bool = False, ahead: Sequence[int] = ()
    ) -> Iterator[Rows]:
        """`apart`: no token is of two rollouts, as their gradients are told apart.

        `ahead`: what of the part goes first, in the microbatches that it would have alone.
        """
        share = self.scorer.shares_prompts and not apart
        first = set(ahead)
        for some in (ahead, [i for i in part if i not in first]):
            if some:
                yield from rank_rows(rollouts, some, self.settings, self.ranks, share=share)

    @property
    def _seed_of_update(self) -> int:
        """Another at every update, the same on all ranks and after a resume."""
        return self.settings.seed * 1_000_003 + self.scheduler.last_epoch

    def _token_weights(self, rollouts: Sequence[Rollout], part: list[int]) -> Callable[[Rows], Tensor]:
        return token_shares(rollouts, part, self.settings)

    def _minibatches(self, order: list[int]) -> list[list[int]]:
        return minibatches(len(order), count=min(self.settings.minibatches, len(order)), order=order)

    def _shuffled(self, size: int) -> list[int]:
        if self.settings.minibatches == 1:
            return list(range(size))
        return torch.randperm(size, generator=self.generator).tolist()

    # ------------------------------------------------------------------ state

    def weights(self) -> dict[str, Tensor]:
        """What an engine loads: the checkpoint's names, in the policy's dtype, tied tensors once, adapters merged.

        Of several ranks all must ask, and the first is given them; the others keep none. Where parameters wait on the
        host, so do these.
        """
        return dict(self.each_weight())

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """As `weights`, each made when it is asked for, so that a GPU need not hold the policy once more."""
        return as_saved(self.model, merged(self._base_weights(), self.adapter()))

    def _base_weights(self) -> Iterator[tuple[str, Tensor]]:
        place = torch.device("cpu") if self.settings.cpu_offload else self.device
        for name, shard, dtype in base_weights(self.model, self._dtype):
            tensor = whole(shard)
            if self.ranks.first:
                yield name, tensor.to(place, dtype).contiguous()

    def weight_kinds(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of `weights`, of this rank alone."""
        own = base_weights(self.model, self._dtype)
        return kinds_as_saved(self.model, ((name, dtype, tuple(tensor.shape)) for name, tensor, dtype in own))

    def adapter(self) -> dict[str, Tensor]:
        """What policies.lora.merged adds to the base, in the policy's dtype; asked for and given as `weights`."""
        if self.settings.lora is None:
            return {}
        found = adapter(self.model, dtype=self._dtype, gather=whole)
        return found if self.ranks.first else {}

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.settings.dtype)
        return found

    def save_policy(self, directory: Path) -> None:
        """A plain Hugging Face directory without the tokenizer, which the first rank writes."""
        policy_writer(self, directory)()

    def save_state(self, directory: Path) -> None:
        state_writer(self, directory)()

    def begin_save(self, policy: Path, state: Path, *, halfway: Callable[[], None] = lambda: None) -> Future[None]:
        """`save_state` and `save_policy` of the learner as it is now, while it goes on: one such save at a time.

        It takes a copy of both in the host's memory, and keeps none of it once the save has ended or failed. Of several
        ranks all must begin; the first's save ends when all parts of the state are written. `halfway` is called between
        the two, in the save's own thread.
        """
        # The policy last: a rank that fails alone must not keep the others waiting for its part of the state.
        writers = [state_writer(self, state, copy=True), halfway, policy_writer(self, policy, copy=True)]

        def write() -> None:
            try:
                while writers:
                    writers.pop(0)()
            except BaseException as error:  # whoever asks for it may do so late, and the copies are not to wait for it
                writers.clear()
                raise without_frames(error) from None

        return self._beside.submit(write)

    def load_state(self, directory: Path) -> None:
        load_state(self, directory)
        self._held = None

    def load_policy(self, directory: Path) -> None:
        """A checkpoint's policy as it was exported, to be evaluated: the optimiser and its moments are not its own."""
        load_policy(self, directory)
        self._held = None
