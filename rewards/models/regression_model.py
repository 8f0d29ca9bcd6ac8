"""A reward model with K named heads on any backbone of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rewards.base import RewardBatch
from rewards.models.chat import ChatEncoder, unique
from rewards.models.directory import ModelError, check_directory
from rewards.models.heads import SCORE, HeadsConfig
from rewards.models.options import ModelOptions
from rewards.models.readout import Readout
from rewards.models.runners import PooledBackbone, Runner, TransformersRunner, VllmRunner, load_module, pick_device


class RegressionRewardModel:
    """Ratings of completions by name, and `score`, which a gating network mixes from them (arXiv 2406.12845).

    The directory is a backbone's as transformers saves it, with reward_heads.json and the heads' weights added.
    """

    def __init__(self, encoder: ChatEncoder, runner: Runner, readout: Readout) -> None:
        self._encoder, self._runner, self.readout = encoder, runner, readout

    @classmethod
    def load(cls, path: Path, options: ModelOptions) -> RegressionRewardModel:
        """Raises ModelError where the directory holds none."""
        from transformers import AutoModel

        config = check_directory(path)
        heads = HeadsConfig.read(path)
        readout = Readout.load(path, heads)
        if readout.heads.in_features != (found := (config.get("text_config") or config).get("hidden_size")):
            raise ModelError(f"{path}: the heads read {readout.heads.in_features} numbers, the backbone gives {found}")
        encoder = ChatEncoder.load(path, config, options.max_length, options.overflow)
        runner: Runner
        if options.runner == "vllm":
            runner = VllmRunner(path, options, max_length=encoder.max_length, task="embed", pooling=heads.pooling)
        else:
            backbone = PooledBackbone(load_module(AutoModel, path, options), heads.pooling)
            runner = TransformersRunner(backbone, options.batch_size, pick_device(options.device))
        return cls(encoder, runner, readout)

    @property
    def names(self) -> list[str]:
        return [*self.readout.config.names, SCORE]

    @torch.no_grad()
    def ratings(self, batch: RewardBatch) -> Tensor:
        """[B, K], on the data's scale."""
        return self.readout.ratings(self._runner(self._encoder.completions(batch)))

    @torch.no_grad()
    def gate_inputs(self, chats: Sequence[Sequence[object]]) -> Tensor:
        """The prompts' hidden states, [B, H]. Equal prompts are run once."""
        rows, index = unique(self._encoder.prompts(chats))  # type: ignore[arg-type]  # chats are read alone
        return self._runner(rows)[index]

    @torch.no_grad()
    def score(self, batch: RewardBatch, ratings_BK: Tensor) -> Tensor:
        """The mix of these ratings of the batch, [B]."""
        prompts_BH = self.gate_inputs(batch.messages) if self.readout.gate is not None else None
        return self.readout.score(ratings_BK, prompts_BH)
