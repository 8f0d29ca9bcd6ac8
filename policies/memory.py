"""What a policy takes of memory, in an engine and in the learner: arithmetic on its size, without torch.

N parameters, M tokens in a microbatch, a bytes of a number in the policy's dtype. The learner keeps in float32

    weights 4 N, AdamW's two moments 8 N, gradients 4 N, the reference policy 4 N where the loss has a KL penalty,
    and where the gradients of K objectives are compared one by one, 4 N each (of the last block alone: last_block)

and while it updates, what the backward pass needs of a dense decoder (Dimensions), for each token and layer

    norms 16 H   linear layers' inputs 8 H (float32) or 10 H (bfloat16: each a cast of its own)
    attention 4 Q a   gated MLP 4 I a   norms of queries and keys (4 + a) (Q + KV)   attention mask a t
    H hidden size, Q all heads, KV those that are cached, I intermediate size, t the longest row

or with gradient checkpointing 4 H (2 H in a sharded model in bfloat16, whose blocks hand on no more), and the whole of
one layer at a time. The logits stand beside them: 12 V for each token of a chunk of the head (policies/scorer.py), or
with more than one, where that is more, 8 V in the backward pass beside the head's gradient, 4 H V (bfloat16: or 2 V
beside 10 H V); V the vocabulary. In bfloat16 a copy of the weights, 2 N.

With an adapter (policies/lora.py) of n parameters the base is kept once, a N, and is its own reference; all else is
n's, and norms, which do not learn, keep half.

Ranks share N evenly, and each has a microbatch of its own. While it updates, a rank has whole what is in no block
(embedding, head), and two blocks, the second while it is fetched. So does a GPU whose weights are the host's, and it
keeps nothing of its share.

This is what torch's own attention keeps of rows that are padded; tests compare it with the learner.
Not counted: fragmentation, and what torch, CUDA and Python take themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.sizes import Dimensions, ModelSize

if TYPE_CHECKING:
    from policies.gramian import Mode

CHUNK_LOGITS = 2**25  # of one chunk of the head: 128 MiB in float32; smaller ones save little and take longer
MAX_CHUNKS = 12  # of a microbatch: each adds its part to the whole gradient of the head, which takes its time


@dataclass(frozen=True, kw_only=True)
class Update:
    """What of a job decides how much its learner keeps."""

    number_bytes: int  # of a number in the policy's dtype
    tokens: int  # of the largest microbatch, padding included
    row: int  # tokens of its longest row, prompt and completion
    penalty: bool = False  # KL to a reference
    recompute: bool = False  # gradient checkpointing
    objectives: int = 0  # K, where their gradients are compared
    gramian: Mode | None = None
    chunk_logits: int = CHUNK_LOGITS
    ranks: int = 1
    on_gpu: bool = False
    offloaded: bool = False  # weights, gradients and moments are the host's

    @property
    def sharded(self) -> bool:
        """Whether blocks compute with casts of the weights that they gather."""
        return self.ranks > 1 or self.offloaded


def engine_weights_bytes(size: ModelSize, number_bytes: int) -> int:
    return size.parameters * number_bytes


def cached_token_bytes(dimensions: Dimensions, number_bytes: int) -> int:
    """A key and a value in every layer."""
    return 2 * dimensions.layers * dimensions.key_value * number_bytes


def learner_bytes(size: ModelSize, update: Update, *, trained: ModelSize | None = None) -> dict[str, int]:
    """By part. `working` is what an update, or writing a checkpoint, takes beside the others at its peak.

    Without dimensions it is what is known of it, which is too little. `trained`: of an adapter, where that learns.
    """
    frozen = 0 if trained is None else -(-update.number_bytes * size.parameters // update.ranks)
    learns = trained or size
    whole = -(-4 * learns.parameters // update.ranks)
    held = {
        "weights": frozen + whole,
        "moments": 2 * whole,
        "gradients": whole,
        "reference": whole if update.penalty and trained is None else 0,
        "objective_gradients": _objective_bytes(learns, update),
    }
    if update.offloaded:
        held = dict.fromkeys(held, 0)
    passes = update_bytes(size.dimensions, update, whole=trained is None) if size.dimensions else 0
    if update.sharded:
        blocks = (size.dimensions.layers if size.dimensions else 0) * size.last_block
        passes += update.number_bytes * (size.parameters - blocks + 2 * size.last_block)
    elif update.number_bytes == 2:
        passes += 2 * learns.parameters  # autocast's copies
    if update.gramian == "exact":  # the update's own gradients are summed from the objectives' afterwards
        inner_products = 4 * update.objectives * learns.largest  # a parameter at a time
        passes = max(passes, inner_products) - whole
    # AdamW on a GPU goes through all parameters at once. On a CPU, a checkpoint copies the moments when no gradients
    # are left; a GPU's go to the machine's memory.
    other = whole if update.on_gpu else 2 * whole - held["gradients"] - held["objective_gradients"]
    if update.offloaded:  # its AdamW runs on the host
        other = 0
    return {**held, "working": max(passes, other, 0)}


def _objective_bytes(size: ModelSize, update: Update) -> int:
    compared = {"exact": size.parameters, "last_block": size.last_block}.get(update.gramian or "", 0)
    return -(-4 * compared // update.ranks) * (update.objectives + (update.penalty and update.gramian == "exact"))


def update_bytes(dimensions: Dimensions, update: Update, *, whole: bool = True) -> int:
    """Activations and logits of the largest microbatch, at the pass's peak. Not `whole`: an adapter alone learns."""
    d, a, tokens = dimensions, update.number_bytes, update.tokens
    norm = 8 if whole else 4
    inputs = 8 * d.hidden if a == 4 else 10 * d.hidden
    layer = 2 * norm * d.hidden + inputs + 4 * a * (d.query + d.intermediate) + a * update.row
    if d.normed_heads:
        layer += (4 + a) * (d.query + d.key_value)
    chunk = min(tokens, max(update.chunk_logits // d.vocabulary, math.ceil(tokens / MAX_CHUNKS)))
    head = tokens * (norm + a) * d.hidden
    logits = 12 * chunk * d.vocabulary
    if chunk < tokens:
        # The hidden states' gradient collected from all chunks; the head's, and what of a chunk is there beside it.
        head += 4 * d.hidden * tokens
        beside = 12 * chunk * d.vocabulary
        if update.gramian not in ("exact", "sketch"):  # those call the head, for Capture to hear it
            logits = (8 if a == 4 else 10) * chunk * d.vocabulary
            beside = (4 if a == 4 else 8) * chunk * d.vocabulary
        if a == 2:  # a chunk's part of the head's gradient, and its cast
            beside = max(beside, 4 * chunk * d.vocabulary + 6 * d.hidden * d.vocabulary)
        if whole:
            logits = max(logits, beside + 4 * d.hidden * d.vocabulary)
    head += logits
    if not update.recompute:
        return tokens * d.layers * layer + head
    between = a if update.sharded else 4  # bytes of a number that one block hands to the next
    return tokens * d.layers * between * d.hidden + max(tokens * layer, head)
