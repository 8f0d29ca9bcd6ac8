"""Log-probabilities of completions, without the logits of a whole batch ever being there at once.

With a vocabulary of V, a microbatch's logits are larger than all else that an update keeps. The decoder's hidden states
h_bT are put through the head a few tokens at a time; each chunk keeps h alone and computes its logits again in the
backward pass. The values and the gradients are those of the plain way, for one more product with the head. A bare head
sums its gradient over the chunks in place (_HeadInChunks); one that something listens to, as Capture does, is called.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from policies import shared_prompts
from policies.batching import Rows, make_rows, make_shared_rows
from policies.memory import CHUNK_LOGITS, MAX_CHUNKS
from policies.types import Rollout

logger = logging.getLogger(__name__)

SAME = 1e-4  # of the logits' spread: by how much what a model says may change in float32
SAME_ROUNDED = 0.5  # and with weights of less precision, where nothing may change with the rollout beside
UNMIXED_ROUNDED = 0.05  # of what is then refused: experts may round otherwise with the tokens that they are given


class Scorer(nn.Module):
    """A causal language model that is asked for log-probabilities at the sampling temperature.

    A module, so that FSDP2 sees decoder and head under one root. Models that do more to their logits than their head
    and _finish are scored from the logits that they give.

    Raises ValueError where it is to take packed rows, and the model's layers mix the rollouts of one.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        chunk_logits: int = CHUNK_LOGITS,
        share_prompts: bool = False,
        packing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature or 1.0
        self.chunk_logits = chunk_logits
        finish = _finish(model.config.get_text_config())
        self.finish = finish if finish is not None and _is_decoder_and_head(model, finish) else None
        self.splits = self.finish is not None or _is_decoder_and_head(model)
        self.shares_prompts = share_prompts and _can_share_prompts(model)
        if packing and (found := _change_by_packing(model)) is not None:
            raise ValueError(f"optimizer.packing: this model needs a row for each rollout; set it to false ({found})")

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(log-probabilities_bT with gradient, entropy_bT without); 0 where there is no token."""
        inputs = _inputs(rows)
        places_N = rows.place_bT.flatten()
        if not self.splits:
            logits_bTV = self.model(**inputs).logits.flatten(0, 1).index_select(0, places_N)
            found = _scores(logits_bTV.unflatten(0, rows.place_bT.shape), rows.target_bT, self.temperature)
        else:
            hidden_Nn = self.model.get_decoder()(**inputs).last_hidden_state.flatten(0, 1).index_select(0, places_N)
            found = self._in_chunks(hidden_Nn.unflatten(0, rows.place_bT.shape), rows.target_bT)
        # Padding gets the sampler's own value, 0, so that every ratio there is 1 whatever the model says.
        return torch.where(rows.mask_bT, found[0], 0.0), found[1]

    def _in_chunks(self, hidden_bTn: Tensor, target_bT: Tensor) -> tuple[Tensor, Tensor]:
        head, finish = self.model.get_output_embeddings(), self.finish
        rollouts, tokens = target_bT.shape
        at_least = self.chunk_logits // (rollouts * self.model.config.get_text_config().vocab_size)
        width = max(1, at_least, math.ceil(tokens / MAX_CHUNKS))
        width = math.ceil(tokens / math.ceil(tokens / width))  # all about as wide

        def scores(hidden_bTn: Tensor, target_bT: Tensor) -> tuple[Tensor, Tensor]:
            logits_bTV = head(hidden_bTn)
            return _scores(logits_bTV if finish is None else finish(logits_bTV), target_bT, self.temperature)

        if width >= tokens:
            return scores(hidden_bTn, target_bT)
        if finish is None and _is_bare(head):
            flat = hidden_bTn.flatten(0, 1), target_bT.flatten()
            found = _HeadInChunks.apply(*flat, head.weight, self.temperature, rollouts * width)
            logprobs_bT, entropy_bT = (values_N.view_as(target_bT) for values_N in found)
            return logprobs_bT, entropy_bT
        pairs = zip(hidden_bTn.split(width, dim=1), target_bT.split(width, dim=1), strict=True)
        parts = [checkpoint(scores, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs, dim=1), torch.cat(entropies, dim=1)


def _inputs(rows: Rows) -> dict[str, Any]:
    """What a model of transformers is called with."""
    shared = rows.shared_prompts
    mask = {"attention_mask": rows.attention_rt} if shared is None else shared.model_inputs()
    return {"input_ids": rows.input_ids_rt, "position_ids": rows.position_ids_rt, "use_cache": False, **mask}


class _HeadInChunks(torch.autograd.Function):
    """_scores of z = h W^T / temperature, `chunk` tokens at a time, with the gradient of log p(y) summed in place.

    With g the gradient that reaches log p(y) and q = softmax z - 1_y: dh = -g q W / temperature, and
    dW = -sum q^T (g h) / temperature. Scaling h in place of q, and writing over one chunk's logits with the next one's,
    leaves little beside the products: a pass over a chunk takes about a tenth of a product's time. The backward pass
    begins with the last chunk, whose softmax is still there; the others' logits are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_Nn: Tensor, target_N: Tensor, weight: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        device = hidden_Nn.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_Nn.dtype
        cast_Vn, hidden_Nn = weight.to(dtype), hidden_Nn.to(dtype)
        logits_cV = hidden_Nn.new_empty(chunk, len(weight))
        exp_cV = torch.empty_like(logits_cV, dtype=torch.float32)
        parts = []
        for h, target in zip(hidden_Nn.split(chunk), target_N.split(chunk), strict=True):
            scores = _product(h, cast_Vn, temperature, out=logits_cV)
            most = scores.amax(dim=-1, keepdim=True)
            exp = torch.exp(scores.sub_(most), out=exp_cV[: len(h)])
            log_sum = exp.sum(dim=-1).log()
            logprobs = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1) - log_sum
            entropy = log_sum - scores.mul_(exp).sum(dim=-1) / log_sum.exp()
            parts.append((logprobs, entropy, most.squeeze(-1) + log_sum))
            del scores  # else it is there beside the next chunk's, where it is not the product itself
        logprobs_N, entropy_N, log_sums_N = map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(hidden_Nn, target_N, cast_Vn, log_sums_N)
        ctx.softmax = exp.div_(log_sum.exp().unsqueeze(-1))
        ctx.temperature, ctx.chunk, ctx.dtype = temperature, chunk, weight.dtype
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogprobs_N: Tensor, _dentropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden_Nn, target_N, cast_Vn, log_sums_N = ctx.saved_tensors
        slopes_N1 = (dlogprobs_N / -ctx.temperature).unsqueeze(-1)
        dhidden_Nn = torch.empty_like(hidden_Nn)
        dweight_Vn: Tensor | None = None
        q, ctx.softmax = ctx.softmax, None  # once: what follows writes over it
        logits_cV: Tensor | None = None
        columns = (t.split(ctx.chunk)[::-1] for t in (hidden_Nn, target_N, log_sums_N, slopes_N1, dhidden_Nn))
        for h, target, log_sum, slope, dh in zip(*columns, strict=True):
            if q is None:
                logits_cV = hidden_Nn.new_empty(ctx.chunk, len(cast_Vn)) if logits_cV is None else logits_cV
                q = _product(h, cast_Vn, ctx.temperature, out=logits_cV).sub_(log_sum.unsqueeze(-1)).exp_()
            q.scatter_add_(1, target.unsqueeze(-1), torch.full_like(slope, -1.0, dtype=q.dtype))
            q = q.to(cast_Vn.dtype)  # only now: where the model is sure, 1 less what it gives is all that is left
            torch.mm(q, cast_Vn, out=dh)
            dh.mul_(slope)
            scaled = (h * slope).to(h.dtype)
            if ctx.needs_input_grad[2] and dweight_Vn is None:
                dweight_Vn = (q.T @ scaled).to(torch.promote_types(ctx.dtype, torch.float32))
            elif dweight_Vn is not None and dweight_Vn.dtype == q.dtype:
                dweight_Vn.addmm_(q.T, scaled)
            elif dweight_Vn is not None:
                dweight_Vn.add_(q.T @ scaled)
            q = None
        if dweight_Vn is not None:
            dweight_Vn = dweight_Vn.to(ctx.dtype)  # of a sharded model half of float32: rounded once, not by each chunk
        return dhidden_Nn, None, dweight_Vn, None, None


def _product(h: Tensor, weight_Vn: Tensor, temperature: float, *, out: Tensor) -> Tensor:
    """Logits of a chunk at the temperature, in float32; written over `out`, as far as that has their type."""
    logits = torch.mm(h, weight_Vn.T, out=out[: len(h)]).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _scores(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log softmax at the targets, entropy). The entropy comes last: a chunk's second pass stops before it."""
    scores = torch.log_softmax(_divided(logits, temperature), dim=-1)
    logprobs = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        return logprobs, -scores.exp().mul_(scores).sum(dim=-1)


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def _is_bare(head: Any) -> bool:
    """Whether a call of it is a product with its weight and nothing else."""
    heard = "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    return type(head) is nn.Linear and head.bias is None and not heard


def _finish(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What its config says of a head's output: Granite divides it, Cohere multiplies it, Gemma bounds it."""
    names = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    divisor, factor, bound = (getattr(config, name, None) for name in names)

    def finish(logits: Tensor) -> Tensor:
        logits = logits if divisor is None else logits / divisor
        logits = logits if factor is None else logits * factor
        return logits if bound is None else torch.tanh(logits / bound) * bound

    return None if (divisor, factor, bound) == (None, None, None) else finish


@torch.no_grad()
def _is_decoder_and_head(model: Any, finish: Callable[[Tensor], Tensor] = lambda logits: logits) -> bool:
    """Whether a model's logits are its finished head's output on its decoder's hidden states: two tokens are tried."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    with _trial(model):
        ids = torch.arange(2, device=model.device).unsqueeze(0)
        hidden = getattr(model.get_decoder()(input_ids=ids, use_cache=False), "last_hidden_state", None)
        return hidden is not None and torch.equal(finish(head(hidden)), model(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def _can_share_prompts(model: Any) -> bool:
    """Makes a model share prompts where that changes nothing: two completions of one are tried.

    What it then says is compared with what it said, as far as its precision tells; and whatever the first completion
    is, nothing may change for the second, which convolutions and recurrent layers do not keep to.
    """
    reason = shared_prompts.obstacle(model) or _change_by_sharing(model)
    if reason is None:
        return True
    logger.info("each rollout's prompt goes through this model for itself: %s", reason)
    return False


def _change_by_sharing(model: Any) -> str | None:
    """What sharing would change, and the model is as it was; None where that is nothing, and the model shares now."""
    ids = _ids(model)
    pair, other = ([_rollout(ids[:8], first), _rollout(ids[:8], ids[15:24])] for first in (ids[8:15], ids[24:31]))
    try:
        with _trial(model):
            before = _predictions(model, make_rows(pair, [0, 1], model.device))
            shared_prompts.enable(model)
            after, beside = (_predictions(model, make_shared_rows(two, [0, 1], model.device)) for two in (pair, other))
        found = _change(model, before, after, beside, pair)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # raised by a model's own code
        found = str(error)
    if found is not None:
        shared_prompts.disable(model)
    return found


@torch.no_grad()
def _change_by_packing(model: Any) -> str | None:
    """What one row for two rollouts would change; None where that is nothing.

    The second's prompt is one token, so that what is predicted stands next to the first's end. Layers that are not told
    of positions, as convolutions, recurrent ones and ALiBi are not, take the two for one text. Chunks of attention, as
    Llama 4's, are counted from where a row begins, and one is too short here to show that.
    """
    if getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None:
        return "its attention is in chunks of a row"
    ids = _ids(model)
    pair, other = ([_rollout(first[:1], first[1:]), _rollout(ids[8:9], ids[9:15])] for first in (ids[:8], ids[16:24]))
    try:
        with _trial(model):
            before = _predictions(model, make_rows(pair, [0, 1], model.device))
            after, beside = (
                _predictions(model, make_rows(two, [0, 1], model.device, packed=[[0, 1]])) for two in (pair, other)
            )
        return _change(model, before, after, beside, pair, most_leak_rounded=UNMIXED_ROUNDED)
    except (TypeError, ValueError, IndexError) as error:  # raised by a model's own code
        return str(error)


def _change(
    model: Any, before: Tensor, after: Tensor, beside: Tensor, pair: list[Rollout], *, most_leak_rounded: float = 0.0
) -> str | None:
    """How far what is predicted of a pair was changed, and the second's by another first one; None: too little."""
    second = len(pair[0].tokens)
    changes = (after, before), (after[second:], beside[second:])
    off, leak = (float((x - y).abs().max() / before.std()) for x, y in changes)
    most_off, most_leak = (SAME_ROUNDED, most_leak_rounded) if model.dtype != torch.float32 else (SAME, SAME)
    if off <= most_off and leak <= most_leak:
        return None
    return f"its predictions would change by {off:.2g} of their spread, by {leak:.2g} with the rollout beside"


@contextlib.contextmanager
def _not_training(model: Any) -> Iterator[None]:
    """Whichever of its modules were, are again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _trial(model: Any) -> Iterator[None]:
    """In the weights' own precision: what changes in float32 does not hide in rounding.

    And on the model's own device, whichever it is to learn on: what is to be offloaded or sharded is still the host's.
    """
    rounded = model.dtype != torch.float32
    with _not_training(model), torch.autocast(model.device.type, model.dtype if rounded else None, enabled=rounded):
        yield


def _ids(model: Any) -> list[int]:
    return [i % model.config.get_text_config().vocab_size for i in range(1, 33)]


def _rollout(prompt: list[int], tokens: list[int]) -> Rollout:
    return Rollout(
        prompt_tokens=tuple(prompt), tokens=tuple(tokens), logprobs=(0.0,) * len(tokens), text="", truncated=False,
        policy_version=0,
    )  # fmt: skip


def _predictions(model: Any, rows: Rows) -> Tensor:
    """Logits where the completions' tokens are predicted."""
    logits: Tensor = model(**_inputs(rows)).logits
    return logits.flatten(0, 1)[rows.place_bT[rows.mask_bT]].float()
