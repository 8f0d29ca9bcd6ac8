"""Training from files to a finished directory, and on from where it was killed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rewards.models.chat import ChatEncoder, unique
from rewards.models.directory import context_length, locate
from rewards.models.runners import PooledBackbone, TransformersRunner, pick_device
from rewards.training.batches import check_data, encode, pairs_of, rated_texts
from rewards.training.data import Rows, read_rows
from rewards.training.evaluation import evaluate
from rewards.training.gating import REFERENCE_ROWS, gate_data, set_verbosity_shares, train_gate
from rewards.training.modules import RegressionModule, make_module
from rewards.training.settings import TrainResult, TrainSettings
from rewards.training.state import is_same, load_state, save_state
from rewards.training.trainer import Trainer, own_random_state, run

MODEL = "model"
CHECKPOINT = "checkpoint"
MANIFEST = "training.json"  # in the finished model: what it was trained with
_MACHINE = ("device", "train", "validation", "model", "checkpoint_every", "microbatch_size")  # no part of the result
_BACKBONE = ("*.safetensors", "tokenizer*", "vocab*", "merges.txt", "chat_template*")  # of it, what a result depends on
Listener = Callable[[dict[str, Any]], None]
Stop = Callable[[], str | None]


class _Stopped(Exception):
    """In an evaluation, with what `should_stop` said."""


def train(
    settings: TrainSettings, *, directory: Path, on_step: Listener, should_stop: Stop, on_saved: Callable[[], None]
) -> TrainResult:
    """See rewards.training.train."""
    path, config = locate(settings.model, settings.revision)
    rows = read_rows(settings.train)
    held_out = read_rows(settings.validation) if settings.validation else None  # a bad row is told before hours of work
    check_data(rows, settings)
    digest = _digest(settings, config, rows, path)
    with own_random_state(settings.seed):
        job = _Job(settings, directory, path, config, rows, digest)
        result = TrainResult(model=directory / MODEL, step=job.total_steps, total_steps=job.total_steps)
        if not job.is_finished():
            reason = job.run(on_step, should_stop, on_saved)
            if reason is not None:
                return TrainResult(model=None, step=job.step, total_steps=job.total_steps, stopped=reason)
    if held_out is None:
        return result

    def go_on(*_: int) -> None:
        if (reason := should_stop()) is not None:
            raise _Stopped(reason)

    try:
        go_on()
        report = evaluate(
            directory / MODEL,
            settings.validation,
            on_progress=go_on,
            batch_size=settings.microbatch_size or settings.batch_size,
            max_length=_longest(config, settings),
            device=settings.device,
        )
    except _Stopped as stopped:
        return replace(result, stopped=str(stopped))
    report.write(directory)
    return replace(result, evaluation=report)


def _longest(config: dict[str, Any], settings: TrainSettings) -> int:
    """Tokens of a row: no more than the model was made for."""
    return min(settings.max_length, context_length(config) or settings.max_length)


class _Job:
    """One training: heads first, then what is fitted to them."""

    def __init__(
        self, settings: TrainSettings, directory: Path, path: Path, config: dict[str, Any], rows: Rows, digest: str
    ) -> None:
        self._settings, self._directory, self._rows, self._digest = settings, directory, rows, digest
        self._encoder = ChatEncoder.load(path, config, _longest(config, settings), settings.overflow)
        objective = settings.objective
        rated = rated_texts(rows.ratings, settings, self._encoder) if objective != "bradley_terry" else None
        self._pairs = pairs_of(rows.pairs, settings, self._encoder) if rows.pairs else None
        self._rated = rated
        targets_NK = rated.targets_NK if rated else None
        self._module = make_module(path, settings, targets_NK, self._encoder.tokenizer)
        self._trainer = Trainer(settings, self._module, rated, self._pairs if objective != "regression" else None)
        self._gating_step = 0

    @property
    def total_steps(self) -> int:
        return self._trainer.total_steps + (self._settings.gating.steps if self._settings.gating else 0)

    @property
    def step(self) -> int:
        return self._trainer.step + self._gating_step

    def is_finished(self) -> bool:
        """Whether this very training has left its model. Raises ValueError where another one has."""
        manifest = self._directory / MODEL / MANIFEST
        if not manifest.is_file():
            return False
        if not is_same(json.loads(manifest.read_text(encoding="utf-8")).get("digest"), self._digest):
            raise ValueError(f"{manifest.parent} is of another model, settings or data; train in another directory")
        return True

    def run(self, on_step: Listener, should_stop: Stop, on_saved: Callable[[], None]) -> str | None:
        checkpoint = self._directory / CHECKPOINT
        load_state(self._trainer, checkpoint, self._digest)

        def tell(phase: str, figures: dict[str, Any]) -> None:
            on_step({"phase": phase, "step": self.step, "total_steps": self.total_steps} | figures)

        def save() -> None:
            save_state(self._trainer, checkpoint, self._digest)
            if self.step < self.total_steps:  # else the model comes at once
                on_saved()

        reason = run(self._trainer, lambda figures: tell("heads", figures), should_stop, save)
        if reason is not None and self.step < self.total_steps:
            return reason
        self._module.eval()
        if isinstance(self._module, RegressionModule):

            def gate_update(figures: dict[str, Any]) -> None:
                self._gating_step += 1
                tell("gating", figures)

            if (reason := self._finish_heads(self._module, gate_update, should_stop)) is not None:
                return reason
        self._export()
        shutil.rmtree(checkpoint, ignore_errors=True)
        on_saved()
        return None

    def _finish_heads(self, module: RegressionModule, on_update: Listener, should_stop: Stop) -> str | None:
        """Verbosity and gate, which are quick, so that they start over after a kill."""
        settings, device = self._settings, pick_device(self._settings.device)
        readout = module.readout.cpu()
        body = PooledBackbone(module.body.backbone, settings.pooling)
        runner = TransformersRunner(body, settings.microbatch_size or settings.batch_size, device)
        assert self._rated
        if settings.verbosity_head:
            with torch.no_grad():
                set_verbosity_shares(readout, readout.ratings(runner(self._rated.tokens[:REFERENCE_ROWS])))
        if settings.gating is None:
            return None
        assert self._pairs
        prompts = [encode(self._encoder, row, None) for row in self._rows.pairs for _ in row.rejected]
        different, index = unique(prompts)
        data = gate_data(readout, runner, prompts=different, chosen=self._pairs.chosen, rejected=self._pairs.rejected)
        data = type(data)(prompts_NH=data.prompts_NH[index], differences_NK=data.differences_NK)
        torch.manual_seed(settings.seed)  # of the gate's first weights, whatever came before
        return train_gate(
            readout, data, settings.gating, seed=settings.seed, on_update=on_update, should_stop=should_stop
        )

    def _export(self) -> None:
        """The finished directory appears under its name only when it is complete."""
        scratch = self._directory / f".{MODEL}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        self._module.export(scratch)
        self._encoder.tokenizer.save_pretrained(scratch)
        manifest = {"digest": self._digest, "settings": _plain(self._settings)}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
        scratch.rename(self._directory / MODEL)


def _plain(settings: TrainSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in _MACHINE}


def _digest(settings: TrainSettings, config: dict[str, Any], rows: Rows, backbone: Path) -> str:
    """Two hashes: of settings and data, and of the backbone, whose config is the same for all its fine-tunings."""
    parts = json.dumps([_plain(settings), config, rows.digest()], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest() + _weights_digest(backbone)


def _weights_digest(backbone: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted({path for pattern in _BACKBONE for path in backbone.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
