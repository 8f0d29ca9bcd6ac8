"""Inner products of the objectives' gradients, gramian_KK, at several prices.

g_k is the gradient of the policy loss under objective k's advantages alone, on the first minibatch of a step, where the
policy is still the one that is measured and the loss is linear in the advantages.

    exact          every g_k in full, before the update, which is then their weighted sum. One forward and one backward
                   pass through the network, and one product per layer and objective. K gradients in memory.
    sketch         during the update: per layer, g_k is seen through two random projections (an unbiased estimate of
                   the inner products, independent from layer to layer and step to step). Cost and memory do not grow
                   with K; used at the next step.
    last_block     during the update: g_k of the last transformer block's parameters only; used at the next step.
    step_response  after the update: how the log-probabilities of a share of the prompts moved, dotted with each
                   objective's advantages. Not a Gramian but the influence of the whole update on each objective, an
                   estimate where the share is not 1; used at the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from policies.types import Rollout

Mode = Literal["exact", "sketch", "last_block", "step_response"]

Gradients = list[Tensor]  # one tensor for each parameter


class FullGradients:
    """Every g_k as it is; a sink of policies.capture. Sums over microbatches.

    Of parameters that FSDP2 shards each rank keeps its shards, added up over the ranks (policies/ranks.py).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], objectives: int) -> None:
        self.gradients: list[Gradients] = [[torch.zeros_like(p) for p in parameters] for _ in range(objectives)]

    def product(self, place: int, left_bTm: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        left_scaled = left_bTm.shape[2] <= right_bTn.shape[2]  # the smaller factor
        left_Nm, right_Nn = left_bTm.flatten(0, 1), right_bTn.flatten(0, 1)
        for k, ratios_b in enumerate(ratios_bK.T):
            if left_scaled:
                scaled = (left_bTm * ratios_b[:, None, None]).to(left_bTm.dtype)
                self._add(k, place, scaled.flatten(0, 1).T @ right_Nn)
            else:
                scaled = (right_bTn * ratios_b[:, None, None]).to(right_bTn.dtype)
                self._add(k, place, left_Nm.T @ scaled.flatten(0, 1))

    def lookup(self, place: int, index_bT: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        for k, ratios_b in enumerate(ratios_bK.T):
            total = self.gradients[k][place]
            scaled = (right_bTn * ratios_b[:, None, None]).flatten(0, 1).to(total.dtype)
            if isinstance(total, DTensor):
                table = torch.zeros(total.shape, dtype=total.dtype, device=scaled.device)
                self._add(k, place, table.index_add_(0, index_bT.flatten(), scaled))
            else:
                total.index_add_(0, index_bT.flatten(), scaled)

    def rows(self, place: int, gradients_bn: Tensor, ratios_bK: Tensor) -> None:
        for k, part in enumerate(ratios_bK.T.float() @ gradients_bn.float()):
            self._add(k, place, part)

    def gramian(self) -> Tensor:
        return inner_products(self.gradients)

    def _add(self, k: int, place: int, part: Tensor) -> None:
        total = self.gradients[k][place]
        if isinstance(total, DTensor):  # a reduce-scatter
            mine = DTensor.from_local(
                part.to(total.dtype), total.device_mesh, [Partial("sum")] * total.device_mesh.ndim
            )
            total.add_(mine.redistribute(placements=total.placements))
        else:
            total += part


class SketchedGradients:
    """S_m^T g_k S_n for each matrix, with random signs S of `width` columns; vectors in full. A sink as well.

    E<S_m^T g S_n, S_m^T h S_n> = <g, h>. All ranks draw the same signs from the seed, so that sketches add up.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, width: int, seed: int) -> None:
        self.width = width
        self._seed = seed
        self._sizes = [tuple(parameter.shape) for parameter in parameters]  # whole, also of shards
        self._signs: dict[tuple[int, int], Tensor] = {}
        self._sketches: list[Tensor | None] = [None] * len(parameters)  # K x anything

    def product(self, place: int, left_bTm: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        left_bTr = left_bTm @ self._projection(place, 0, left_bTm)
        right_bTr = right_bTn @ self._projection(place, 1, right_bTn)
        self._add(place, left_bTr, right_bTr, ratios_bK)

    def lookup(self, place: int, index_bT: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        left_bTr = self._projection(place, 0, right_bTn)[index_bT]
        self._add(place, left_bTr, right_bTn @ self._projection(place, 1, right_bTn), ratios_bK)

    def rows(self, place: int, gradients_bn: Tensor, ratios_bK: Tensor) -> None:
        self._sum(place, gradients_bn.float(), ratios_bK)

    def gramian(self) -> Tensor:
        """float64 on the CPU; on every rank of a process group that of the sum over all of them."""
        found = [sketch.float() for sketch in self._sketches if sketch is not None]
        assert found, "nothing was recorded"
        flat_KN = torch.cat(found, dim=1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flat_KN)
        return _symmetric(flat_KN.double() @ flat_KN.double().T).cpu()

    def _add(self, place: int, left_bTr: Tensor, right_bTr: Tensor, ratios_bK: Tensor) -> None:
        self._sum(place, torch.bmm(left_bTr.transpose(1, 2), right_bTr).flatten(1).float(), ratios_bK)

    def _sum(self, place: int, rows_bn: Tensor, ratios_bK: Tensor) -> None:
        part_Kn = ratios_bK.T.float() @ rows_bn
        found = self._sketches[place]
        self._sketches[place] = part_Kn if found is None else found + part_Kn

    def _projection(self, place: int, side: int, like: Tensor) -> Tensor:
        """Random signs over sqrt(width), for one side of one parameter."""
        if (place, side) not in self._signs:
            seed = (self._seed * len(self._sizes) + place) * 2 + side
            generator = torch.Generator(like.device).manual_seed(seed)
            shape = (self._sizes[place][side], self.width)
            signs = torch.randint(0, 2, shape, generator=generator, device=like.device, dtype=torch.int8)
            self._signs[place, side] = (2 * signs - 1).to(like.dtype) / math.sqrt(self.width)
        return self._signs[place, side].to(like.dtype)


def inner_products(gradients: Sequence[Gradients]) -> Tensor:
    """gramian_KK, float64 on the CPU. Of FSDP2 shards: dot products on the shards, one all-reduce of K x K."""
    size = len(gradients)
    gramian_KK = torch.zeros(size, size, dtype=torch.float64, device=_local(gradients[0][0]).device)
    group = None
    for parts in zip(*gradients, strict=True):  # parameter by parameter: no second copy of all gradients
        flat_KN = torch.stack([_local(part).flatten() for part in parts])
        gramian_KK += (flat_KN @ flat_KN.T).double()
        if isinstance(parts[0], DTensor):
            group = parts[0].device_mesh.get_group()
    if group is not None:
        dist.all_reduce(gramian_KK, group=group)
    return _symmetric(gramian_KK).cpu()


def _symmetric(gramian_KK: Tensor) -> Tensor:
    """Exactly: on some processors the last bits of a product with its own transpose are not."""
    return (gramian_KK + gramian_KK.T) / 2


def backward_passes(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Gradients]:
    """The gradient of each loss by a backward pass of its own: for layers that can't be captured, and for FSDP2.

    The losses share one graph. .grad is left as it was found, unset.
    """
    found: list[Gradients] = []
    for i, loss in enumerate(losses):
        loss.backward(retain_graph=i + 1 < len(losses))
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
    return found


def separable(advantages_B: Tensor, advantages_BK: Tensor) -> tuple[Tensor, Tensor] | None:
    """(advantages to make the loss with, ratios_BK of each objective's to them); None where all advantages are 0.

    Objectives may cancel in a rollout; its gradient must then still reach the layers for the objectives' own to be
    read off it. A millionth of the largest advantage does that, and moves the update by no more than rounding does.
    """
    largest = float(advantages_B.abs().max())
    if largest == 0:
        return None
    tiny = 1e-6 * largest
    cancelled_B = (advantages_B.abs() < tiny) & (advantages_BK != 0).any(dim=1)
    made_B = torch.where(cancelled_B, tiny, advantages_B)
    divisors_B1 = torch.where(made_B == 0, 1.0, made_B)[:, None]
    return made_B, torch.where(advantages_BK == 0, 0.0, advantages_BK / divisors_B1)


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's transformer blocks, and the name of their list."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    assert stacks, "a transformer has a list of blocks"
    return max(stacks, key=lambda pair: len(pair[1]))


def in_last_block(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module, by its name, is in the last of the model's transformer blocks."""
    name, stack = blocks(model)
    prefix = f"{name}.{len(stack) - 1}."
    return lambda name: name.startswith(prefix)


def response_part(rollouts: Sequence[Rollout], part: Sequence[int], *, share: float, seed: int) -> list[int]:
    """Of the rollouts in `part`, in its order, those that a response is measured on: all of a share of the prompts.

    n of N prompts, n = share N rounded and at least 1, drawn without replacement from the seed. Rollouts of a prompt
    stay together, as advantages are centred over them. Every prompt is as likely, so that the expected `response` is
    n / N of that of all, the same factor for every objective, which `influence_of_response` divides out.
    """
    prompts = list(dict.fromkeys(rollouts[i].prompt_tokens for i in part))
    count = max(1, round(share * len(prompts)))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = {prompts[at] for at in order[:count]}
    return [i for i in part if rollouts[i].prompt_tokens in drawn]


def response(before_BT: Tensor, after_BT: Tensor, token_weights_BT: Tensor, advantages_BK: Tensor) -> Tensor:
    """response_K: how far an update raised each objective's surrogate, to first order.

    sum_bt c_bt A_bk (log pi_after - log pi_before), which is -<g_k, d theta> for the step d theta; c_bt are the tokens'
    shares in the loss times their importance.
    """
    moved_B = (token_weights_BT * (after_BT - before_BT)).sum(dim=1)
    return moved_B.double() @ advantages_BK.double()


def influence_of_response(response_K: Tensor, weights_K: Tensor, grad_norm: float) -> Tensor:
    """influence_K on the scale of Gramian row sums, from the response to an update along g = sum_l v_l g_l.

    v = c w with w on the simplex, |g| = grad_norm. Under plain gradient descent response_k = lr <g_k, g>, and with
    equal weights the row sum <g_k, sum_l g_l> is K <g_k, g> / c. An optimiser that rescales coordinates changes the
    scale, so that is taken from sum_k v_k <g_k, g> = |g|^2, with |g| / c at most 1 as the Gramian's rows have norms
    clipped to 1. So it says the same of any multiple of the response, and of a sample of the rollouts it is a ratio
    estimate: of the order of 1 / prompts off in the mean, where the response itself is not. Zero where the update did
    not raise its own objective (momentum may see to that).
    """
    whole = float(response_K.double() @ weights_K.double())
    if not (whole > 0 and math.isfinite(whole)):
        return torch.zeros_like(response_K)
    factor = float(weights_K.sum())
    return len(weights_K) * min(grad_norm / factor, 1.0) ** 2 * factor * response_K / whole


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
