"""A run of MLflow, found again by its tag. Credentials are MLflow's own: MLFLOW_TRACKING_USERNAME and others.

The experiment is that of MLFLOW_EXPERIMENT_NAME, else `equipoise`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from services.trackers.base import NOTHING, Entry, Run, needed

TAG = "equipoise.job"
_PARAMETERS = 100  # of a call
_VALUE_CHARACTERS = 500
_NAME_CHARACTERS = 250
_ODD = re.compile(r"[^/\w.\- ]")  # what MLflow refuses in names; and so some paths: //, or / at an end
_ENDS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MLflow:
    """Raises NotInstalled, or what MLflow raises where its server can't be asked."""

    def __init__(self, run: Run, uri: str) -> None:
        mlflow: Any = needed("mlflow", "--mlflow", "mlflow-skinny")
        self._entities: Any = needed("mlflow.entities", "--mlflow", "mlflow-skinny")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "equipoise")
        found = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run.id}'", max_results=1)
        self._run = found[0] if found else self._client.create_run(experiment, tags={TAG: run.id}, run_name=run.name)
        self.id: str = self._run.info.run_id
        parameters = [self._entities.Param(name, value) for name, value in _parameters(run.settings()).items()]
        for i in range(0, len(parameters), _PARAMETERS):  # the same again is allowed
            self._client.log_batch(self.id, params=parameters[i : i + _PARAMETERS])

    def last_step(self) -> int:
        known = self._run.data.metrics.get("step")
        return NOTHING if known is None else int(known)

    def log(self, entry: Entry) -> None:
        """The step's figures are one call and come last: a step that has them has its tables."""
        for name, table in entry.tables.items():
            document = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
            self._client.log_dict(self.id, document, f"{name}/step-{entry.step:06d}.json")
        at_ms = int(entry.at * 1000)
        self._client.log_batch(
            self.id,
            metrics=[
                self._entities.Metric(_ODD.sub("_", name), value, at_ms, entry.step)
                for name, value in {**entry.figures, "step": float(entry.step)}.items()
            ],
        )

    def close(self, status: str) -> None:
        """A job that goes on is a run that goes on."""
        if (end := _ENDS.get(status)) is not None:
            self._client.set_terminated(self.id, status=end)

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if known is None else known.experiment_id)


def _parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """A value can't change, so that of two names that MLflow can't tell apart it is told the first."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        found.setdefault(_ODD.sub("_", name[-_NAME_CHARACTERS:]).replace("/", "_"), str(value)[:_VALUE_CHARACTERS])
    return found
