"""Gradients of single rollouts as a by-product of one backward pass.

Rollouts of a batch do not see each other, so the gradient that reaches a layer's output for rollout b is A_b times one
that does not depend on its advantage. A linear layer with inputs X_b and such output gradients D_b therefore has, for
every objective k,

    g_k = sum_b A_bk D_b^T X_b

from a single pass through the network: what is repeated for each objective is at most this one product, not the pass.
The technique is that of per-example clipping in differentially private training ("ghost" norms, arXiv 1510.01799,
2110.05679). `Capture` routes X and D of every trainable layer to a sink, which decides what to make of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call


class UnsupportedLayerError(ValueError):
    """A trainable layer whose rollouts can't be told apart from outside."""


class Sink(Protocol):
    """What becomes of the parts of the objectives' gradients.

    `place` is the parameter's among Capture.parameters; ratios_bK scales rollout b's part for objective k.
    """

    def product(self, place: int, left_bTm: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        """Part of the gradient of a matrix m x n: sum_b ratios_bK left_b^T right_b."""
        ...

    def lookup(self, place: int, index_bT: Tensor, right_bTn: Tensor, ratios_bK: Tensor) -> None:
        """Part of the gradient of a table: the row index_bT gets ratios_bK right_bTn."""
        ...

    def rows(self, place: int, gradients_bn: Tensor, ratios_bK: Tensor) -> None:
        """Part of the gradient of a vector, rollout by rollout."""
        ...


class Capture:
    """Trainable layers of a model, instrumented while `recording` is open.

    Linear layers, embeddings, and layers with one weight vector that multiplies their input (RMSNorm and its kin),
    which is all that the dense transformers of the Llama and Qwen families train. Raises UnsupportedLayerError for
    a model with any other trainable layer.
    """

    def __init__(self, model: nn.Module, *, only: Callable[[str], bool] = lambda _name: True) -> None:
        layers = [
            (name, module)
            for name, module in model.named_modules()
            if only(name) and any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        captured = {id(p) for _, module in layers for p in module.parameters(recurse=False) if p.requires_grad}
        self.parameters = [p for p in model.parameters() if id(p) in captured]  # tied ones once
        self._layers = [(module, self._instrument(name, module)) for name, module in layers]
        self._ratios_bK: Tensor | None = None
        self._owner_rt: Tensor | None = None
        self._sink: Sink | None = None
        self._weight_gradients = True

    @contextlib.contextmanager
    def recording(
        self, sink: Sink, ratios_bK: Tensor, *, owner_rt: Tensor | None = None, weight_gradients: bool = True
    ) -> Iterator[None]:
        """Everything run forward and backward inside reports to the sink.

        ratios_bK: A_bk over the advantage with which the loss was made. owner_rt: where rows hold several rollouts,
        whose each token is; it is then reported by itself. Without weight_gradients the matrices' own .grad is not
        made, which saves its cost.
        """
        self._sink, self._ratios_bK, self._weight_gradients = sink, ratios_bK, weight_gradients
        self._owner_rt = owner_rt
        try:
            for module, forward in self._layers:
                module.forward = forward
            yield
        finally:
            for module, _ in self._layers:
                del module.forward  # the class's own is visible again
            self._sink = self._ratios_bK = self._owner_rt = None

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Inside a recording: a backward pass that makes .grad as usual and reports nothing."""
        kept = self._sink, self._weight_gradients
        self._sink, self._weight_gradients = None, True
        try:
            yield
        finally:
            self._sink, self._weight_gradients = kept

    def _instrument(self, name: str, module: Any) -> Callable[..., Tensor]:
        # FSDP2 puts another tensor in a parameter's stead while it runs, so places are found now.
        order = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        places = {key: order.get(id(p)) for key, p in module.named_parameters(recurse=False)}
        if "forward" in vars(module):
            raise UnsupportedLayerError(f"{name}: its forward is already replaced")
        if type(module) is nn.Linear:
            at = (places["weight"], places.get("bias"))
            return lambda x: _Linear.apply(x, module.weight, module.bias, self, at)
        if type(module) is nn.Embedding and module.max_norm is None and not module.sparse:
            return lambda index: _Embedding.apply(index, module.weight, module.padding_idx, self, places["weight"])
        multiplies = list(places) == ["weight"] and module.weight.dim() == 1
        if multiplies and not type(module).__module__.startswith("torch.nn"):
            return self._scaled(module, places["weight"])
        raise UnsupportedLayerError(f"{name}: {type(module).__name__} with {', '.join(places)} is not a known layer")

    def _scaled(self, module: Any, place: int | None) -> Callable[..., Tensor]:
        bare = _Bare(module)

        def forward(x: Tensor) -> Tensor:
            # A copy of the weight for each rollout: autograd then gives each rollout's gradient, and their sum.
            weight: Tensor = module.weight
            alone = 2 if self._packs(x) else 1
            shape = (*x.shape[:alone], *[1] * (x.dim() - 1 - alone), weight.shape[0])
            copies = weight.expand(shape).clone()
            copies.register_hook(lambda gradients: self._rows(place, gradients.flatten(0, alone - 1).flatten(1)))
            out: Tensor = functional_call(bare, {"module.weight": copies}, (x,))
            return out

        return forward

    def _packs(self, values: Tensor) -> bool:
        """Whether the layer sees rows of several rollouts; the head may be given them one by one again."""
        return self._owner_rt is not None and values.shape[:2] == self._owner_rt.shape

    def _units(self, values: Tensor) -> Tensor:
        """(rollouts, or single tokens of packed rows) x tokens x features."""
        if self._packs(values):
            return values.reshape(values.shape[0] * values.shape[1], -1, values.shape[-1])
        return values.reshape(values.shape[0], -1, values.shape[-1])

    def _rows(self, place: int | None, gradients_bn: Tensor) -> None:
        if place is not None:
            self._report(gradients_bn, lambda sink, ratios_bK: sink.rows(place, gradients_bn, ratios_bK))

    def _report(self, values: Tensor, tell: Callable[[Sink, Tensor], None]) -> None:
        if self._sink is None:
            return
        assert self._ratios_bK is not None
        ratios_uK = self._ratios_bK
        if self._owner_rt is not None and values.shape[0] == self._owner_rt.numel():
            ratios_uK = ratios_uK[self._owner_rt.flatten()]
        if values.shape[0] != ratios_uK.shape[0]:
            raise UnsupportedLayerError("a layer mixes rollouts: its first dimension is not the batch's")
        tell(self._sink, ratios_uK)


class _Bare(nn.Module):
    """A module under its class's own forward, while the instrumented one hides it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = type(self.module).forward(self.module, x)
        return out


class _Linear(torch.autograd.Function):
    """y = x W^T + b, which reports x and dy."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        capture: Capture,
        places: tuple[int | None, int | None],
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x, cast = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, cast)
        ctx.dtype, ctx.capture, ctx.places = weight.dtype, capture, places
        return nn.functional.linear(x, cast, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, cast = ctx.saved_tensors
        capture: Capture = ctx.capture
        x_bTn, dy_bTm = capture._units(x), capture._units(dy)
        dx = dy @ cast if ctx.needs_input_grad[0] else None
        dweight = dbias = None
        at_weight, at_bias = ctx.places
        if at_weight is not None:
            capture._report(x_bTn, lambda sink, ratios_bK: sink.product(at_weight, dy_bTm, x_bTn, ratios_bK))
            if capture._weight_gradients:
                dweight = (dy_bTm.flatten(0, 1).T @ x_bTn.flatten(0, 1)).to(ctx.dtype)
        if at_bias is not None:
            rows_bm = dy_bTm.sum(dim=1)
            capture._rows(at_bias, rows_bm)
            if capture._weight_gradients:
                dbias = rows_bm.sum(dim=0).to(ctx.dtype)
        return dx, dweight, dbias, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a table, which reports which and dy."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, padding: int | None, capture: Capture, place: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dtype, ctx.padding, ctx.capture, ctx.place = weight.shape, weight.dtype, padding, capture, place
        return nn.functional.embedding(index, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        (index,) = ctx.saved_tensors
        capture: Capture = ctx.capture
        if ctx.padding is not None:
            dy = torch.where((index == ctx.padding).unsqueeze(-1), 0.0, dy)
        dy_bTn = capture._units(dy)
        index_bT = index.reshape(dy_bTn.shape[:2])
        capture._report(index_bT, lambda sink, ratios_bK: sink.lookup(ctx.place, index_bT, dy_bTn, ratios_bK))
        dweight = None
        if capture._weight_gradients:
            dweight = torch.zeros(ctx.shape, dtype=ctx.dtype, device=dy.device)
            dweight.index_add_(0, index_bT.flatten(), dy_bTn.flatten(0, 1).to(ctx.dtype))
        return None, dweight, None, None, None
