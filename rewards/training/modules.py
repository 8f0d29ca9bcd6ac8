"""The two models that are trained: a regression model, and a standard sequence classifier. Tokens in, outputs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from rewards.models.heads import HeadConfig, HeadsConfig
from rewards.models.options import LoadOptions
from rewards.models.readout import Readout
from rewards.models.runners import Classifier, PooledBackbone, load_module
from rewards.training.settings import TrainSettings
from rewards.training.spec import PREFERENCE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trainable(Protocol):
    """What the trainer asks of a model."""

    pad: int

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Outputs, [B, K]: what losses are computed from."""
        ...

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Those that are new."""
        ...

    def export(self, directory: Path) -> None:
        """Writes the model, without a tokenizer."""
        ...


class RegressionModule(nn.Module):
    """Heads on a pooled backbone; outputs are ratings in units of each head's scale."""

    def __init__(self, backbone: nn.Module, readout: Readout) -> None:
        super().__init__()
        self.body = PooledBackbone(backbone, readout.config.pooling)
        self.readout = readout
        self.pad = self.body.pad

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        outputs_BK: Tensor = self.readout.heads(self.body(ids_BT, mask_BT))
        return outputs_BK

    def head_parameters(self) -> Iterator[nn.Parameter]:
        return self.readout.heads.parameters()

    def export(self, directory: Path) -> None:
        self.body.backbone.save_pretrained(directory)  # type: ignore[operator]
        self.readout.save(directory)


class ClassifierModule(Classifier):
    """A sequence classifier with one label."""

    pad: int

    def head_parameters(self) -> Iterator[nn.Parameter]:
        body = {id(parameter) for parameter in self.model.base_model.parameters()}  # type: ignore[union-attr]
        return (parameter for parameter in self.model.parameters() if id(parameter) not in body)

    def export(self, directory: Path) -> None:
        self.model.save_pretrained(directory)  # type: ignore[operator]


def make_module(
    path: Path, settings: TrainSettings, targets_NK: Tensor | None, tokenizer: PreTrainedTokenizerBase
) -> RegressionModule | ClassifierModule:
    """The model before its first update: the backbone's weights, and heads that the seed decides. Raises ModelError."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    options = LoadOptions(model=str(path), device=settings.device)  # type: ignore[arg-type]
    if settings.objective == "bradley_terry":
        heads = ("score.", "classifier.", "pooler.")  # what transformers calls them
        model = load_module(AutoModelForSequenceClassification, path, options, new=heads, num_labels=1)
        if model.config.pad_token_id is None:  # without one it takes no batches
            pad = tokenizer.pad_token_id
            model.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
        return ClassifierModule(model)
    backbone = load_module(AutoModel, path, options)
    hidden_size = (backbone.config.get_text_config()).hidden_size
    readout = Readout(heads_config(settings, targets_NK), hidden_size).to(backbone.device)
    return RegressionModule(backbone, readout)


def heads_config(settings: TrainSettings, targets_NK: Tensor | None) -> HeadsConfig:
    """Heads with the mean and spread of their ratings, so that all are learned at one rate; then the pairs' own."""
    heads: list[HeadConfig] = []
    for k, head in enumerate(settings.heads):
        assert targets_NK is not None
        rated = targets_NK[:, k][~torch.isnan(targets_NK[:, k])].double()
        spread = float(rated.std(correction=0)) or head.range[1] - head.range[0]
        heads.append(HeadConfig(name=head.name, range=head.range, offset=float(rated.mean()), scale=spread))
    if settings.objective == "combined":
        heads.append(HeadConfig(name=PREFERENCE))
    return HeadsConfig(pooling=settings.pooling, heads=tuple(heads), verbosity_head=settings.verbosity_head)


def chunks(index: Sequence[int], size: int | None) -> Iterator[Sequence[int]]:
    """Pieces of at most `size`; one alone where it is None."""
    step = size or max(1, len(index))
    return (index[start : start + step] for start in range(0, len(index), step))
