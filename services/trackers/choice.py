"""Which trackers a command was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from services.trackers.base import needed
from services.trackers.mlflow import MLflow
from services.trackers.recorder import Open
from services.trackers.tensorboard import TensorBoard
from services.trackers.wandb import WandB


def chosen(*, tensorboard: Sequence[Path], wandb: Sequence[str], mlflow: Sequence[str]) -> dict[str, Open]:
    """By the words of the command, how each is opened. NotInstalled before anything is followed."""
    if wandb:
        needed("wandb", "--wandb", "wandb")
    if mlflow:
        needed("mlflow", "--mlflow", "mlflow-skinny")
    return {
        **{f"--tensorboard {directory}": partial(TensorBoard, directory=directory) for directory in tensorboard},
        **{f"--wandb {project}": partial(WandB, project=project) for project in wandb},
        **{f"--mlflow {_shown(uri)}": partial(MLflow, uri=uri) for uri in mlflow},
    }


def _shown(uri: str) -> str:
    """Without a password."""
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
