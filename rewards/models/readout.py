"""What turns a hidden state into ratings, and ratings into one score: linear heads and a gating network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.models.directory import ModelError, first_line
from rewards.models.heads import WEIGHTS, HeadsConfig


class Gate(nn.Module):
    """softmax over heads from the prompt's hidden state (ArmoRM, arXiv 2406.12845), and the scale of the mix.

    The scale is learned with the gate, so that sigmoid(difference of scores) is the probability of a preference.
    """

    def __init__(self, hidden_size: int, widths: tuple[int, ...], heads: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(hidden_size, width), nn.ReLU()]
            hidden_size = width
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, heads))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, prompt_BH: Tensor) -> Tensor:
        """Weights of the heads, [B, K]: at least 0, with sum 1."""
        weights_BK: Tensor = self.layers(prompt_BH).softmax(dim=-1)
        return weights_BK


class Readout(nn.Module):
    """K ratings of a pooled hidden state, on the data's scale: rating = offset + scale * (W h + b).

    The score mixes the heads that have a range, each scaled to [0, 1] and freed from verbosity:

        n_k = (r_k - low_k) / (high_k - low_k)
        n'_k = n_k - lambda_k n_verbosity
        score = scale * sum_k g_k(prompt) n'_k

    Without a gate g_k = 1/K and scale = 1; without any range the score is the mean rating.
    """

    def __init__(self, config: HeadsConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.Linear(hidden_size, len(config.heads))
        self.mixed = [k for k, head in enumerate(config.heads) if head.range] or list(range(len(config.heads)))
        self.gate = Gate(hidden_size, config.gating, len(self.mixed)) if config.gating is not None else None

    def ratings(self, hidden_BH: Tensor) -> Tensor:
        """[B, K], on the data's scale."""
        heads = self.config.heads
        scale_K = hidden_BH.new_tensor([head.scale for head in heads])
        offset_K = hidden_BH.new_tensor([head.offset for head in heads])
        ratings_BK: Tensor = offset_K + scale_K * self.heads(hidden_BH)
        return ratings_BK

    def normalised(self, ratings_BK: Tensor) -> Tensor:
        """n_k of the heads that are mixed."""
        ranges = [self.config.heads[k].range or (0.0, 1.0) for k in self.mixed]
        low_K = ratings_BK.new_tensor([low for low, _ in ranges])
        width_K = ratings_BK.new_tensor([high - low for low, high in ranges])
        return (ratings_BK[:, self.mixed] - low_K) / width_K

    def decorrelated(self, ratings_BK: Tensor) -> Tensor:
        """n'_k of the heads that are mixed."""
        normalised_BK = self.normalised(ratings_BK)
        if self.config.verbosity_head is None:
            return normalised_BK
        mixed = [self.config.heads[k] for k in self.mixed]
        verbose = [head.name for head in mixed].index(self.config.verbosity_head)
        share_K = ratings_BK.new_tensor([head.verbosity_share for head in mixed])
        return normalised_BK - share_K * normalised_BK[:, verbose, None]

    def score(self, ratings_BK: Tensor, prompt_BH: Tensor | None) -> Tensor:
        """The mix, [B]. `prompt_BH` None mixes uniformly."""
        parts_BK = self.decorrelated(ratings_BK)
        if self.gate is None or prompt_BH is None:
            return parts_BK.mean(dim=-1)
        score_B: Tensor = self.gate.log_scale.exp() * (self.gate(prompt_BH) * parts_BK).sum(dim=-1)
        return score_B

    def save(self, directory: Path) -> None:
        self.config.write(directory)
        (directory / WEIGHTS).parent.mkdir(exist_ok=True)
        tensors: Mapping[str, Tensor] = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(dict(tensors), directory / WEIGHTS)

    @classmethod
    def load(cls, directory: Path, config: HeadsConfig) -> Readout:
        """Raises ModelError where the weights are absent, of another shape or not finite."""
        try:
            tensors = load_file(directory / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{directory} has no readable {WEIGHTS}: {first_line(error)}") from None
        heads_KH = tensors.get("heads.weight")
        if heads_KH is None or heads_KH.ndim != 2:
            raise ModelError(f"{directory / WEIGHTS} holds no heads")
        readout = cls(config, heads_KH.shape[1])
        try:
            readout.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError:
            raise ModelError(f"{directory / WEIGHTS} does not fit its description: other heads or layers") from None
        if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise ModelError(f"{directory / WEIGHTS}: the weight {bad[0]} has values that are not finite")
        return readout.eval()
