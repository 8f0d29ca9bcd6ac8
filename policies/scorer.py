"""Log-probabilities of completions, without the logits of a whole batch ever being there at once.

With a vocabulary of V, a microbatch's logits are larger than all else that an update keeps. The decoder's hidden states
h_bT are put through the head a few tokens at a time; each chunk keeps h alone and computes its logits again in the
backward pass. The values and the gradients are those of the plain way, for one more product with the head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies.batching import Rows
from policies.memory import CHUNK_LOGITS, MAX_CHUNKS


class Scorer(nn.Module):
    """A causal language model that is asked for log-probabilities at the sampling temperature.

    A module, so that FSDP2 sees decoder and head under one root. Models that do more to their logits than their head
    (such as Gemma 2, which bounds them) are scored from the logits that they give.
    """

    def __init__(self, model: Any, *, temperature: float = 1.0, chunk_logits: int = CHUNK_LOGITS) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature or 1.0
        self.chunk_logits = chunk_logits
        self.splits = _is_decoder_and_head(model)

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(log-probabilities_bT with gradient, entropy_bT without); 0 where there is no token."""
        inputs = {
            "input_ids": rows.input_ids_rt,
            "attention_mask": rows.attention_rt,
            "position_ids": rows.position_ids_rt,
            "use_cache": False,
        }
        places_N = rows.place_bT.flatten()
        if not self.splits:
            logits_bTV = self.model(**inputs).logits.flatten(0, 1).index_select(0, places_N)
            found = _scores(logits_bTV.unflatten(0, rows.place_bT.shape), rows.target_bT, self.temperature)
        else:
            hidden_rtn = self.model.get_decoder()(**inputs).last_hidden_state
            hidden_bTn = hidden_rtn.flatten(0, 1).index_select(0, places_N).unflatten(0, rows.place_bT.shape)
            found = self._in_chunks(hidden_bTn, rows.target_bT)
        # Padding gets the sampler's own value, 0, so that every ratio there is 1 whatever the model says.
        return torch.where(rows.mask_bT, found[0], 0.0), found[1]

    def _in_chunks(self, hidden_bTn: Tensor, target_bT: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        rollouts, tokens = target_bT.shape
        at_least = self.chunk_logits // (rollouts * self.model.config.get_text_config().vocab_size)
        width = max(1, at_least, math.ceil(tokens / MAX_CHUNKS))

        def scores(hidden_bTn: Tensor, target_bT: Tensor) -> tuple[Tensor, Tensor]:
            return _scores(head(hidden_bTn), target_bT, self.temperature)

        if width >= tokens or not torch.is_grad_enabled():
            pairs = zip(hidden_bTn.split(width, dim=1), target_bT.split(width, dim=1), strict=True)
            parts = [scores(hidden_bTn, target_bT) for hidden_bTn, target_bT in pairs]
        else:
            pairs = zip(hidden_bTn.split(width, dim=1), target_bT.split(width, dim=1), strict=True)
            parts = [checkpoint(scores, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs, dim=1), torch.cat(entropies, dim=1)


def _scores(logits_bTV: Tensor, target_bT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log softmax at the targets, entropy_bT). The entropy comes last: a chunk's second pass stops before it."""
    logits_bTV = logits_bTV.float() if temperature == 1 else logits_bTV.float() / temperature
    normaliser_bT = logits_bTV.logsumexp(dim=-1)
    logprobs_bT = logits_bTV.gather(2, target_bT.unsqueeze(-1)).squeeze(-1) - normaliser_bT
    with torch.no_grad():
        mean_bT = torch.softmax(logits_bTV, dim=-1).mul_(logits_bTV).sum(dim=-1)
        entropy_bT = normaliser_bT.detach() - mean_bT
    return logprobs_bT, entropy_bT


@torch.no_grad()
def _is_decoder_and_head(model: Any) -> bool:
    """Whether the model's logits are its head's output on its decoder's hidden states: two tokens are tried."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    training = model.training
    model.eval()
    try:
        ids = torch.arange(2, device=model.device).unsqueeze(0)
        hidden = getattr(model.get_decoder()(input_ids=ids, use_cache=False), "last_hidden_state", None)
        return hidden is not None and torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits)
    finally:
        model.train(training)
