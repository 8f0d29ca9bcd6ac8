"""In the place of wandb and mlflow: the calls that are made of them, with their names, and what a server would keep."""

from __future__ import annotations

import posixpath
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Server:
    """Keeps runs between calls. `fails`: what the next calls raise; `after`: they are kept all the same."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.fails: list[Exception] = []
        self.after = False

    def run(self, key: str) -> dict[str, Any]:
        return self.runs.setdefault(key, {"rows": [], "tables": {}, "config": {}, "status": "RUNNING", "name": None})

    def take(self, keep: Any) -> None:
        failure = self.fails.pop(0) if self.fails else None
        if failure is None or self.after:
            keep()
        if failure is not None:
            raise failure


class Table:
    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.columns, self.data = columns, data


def wandb(server: Server) -> ModuleType:
    class WandbRun:
        def __init__(self, key: str) -> None:
            self.kept = server.run(key)
            self.summary = dict(self.kept["rows"][-1]) if self.kept["rows"] else {}

        def log(self, data: dict[str, Any], step: int, commit: bool) -> None:
            assert commit

            def keep() -> None:
                tables = {name: value for name, value in data.items() if isinstance(value, Table)}
                self.kept["rows"].append({name: value for name, value in data.items() if name not in tables})
                self.kept["tables"].update({f"{name}/{step}": table.data for name, table in tables.items()})

            server.take(keep)

        def finish(self, exit_code: int) -> None:
            self.kept["status"] = exit_code

    def init(
        project: str, id: str, name: str, config: dict[str, Any], resume: str, reinit: str, settings: dict[str, Any]
    ) -> WandbRun:
        assert (resume, reinit) == ("allow", "create_new")
        assert settings["console"] == "off"
        server.run(id).update(config=config, name=name, project=project)
        return WandbRun(id)

    module: Any = ModuleType("wandb")
    module.init, module.Table = init, Table
    return module


def mlflow(server: Server) -> tuple[ModuleType, ModuleType]:
    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            self.uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> Any:
            assert name == "equipoise"
            return SimpleNamespace(experiment_id="7") if server.runs else None

        def create_experiment(self, name: str) -> str:
            assert name == "equipoise"
            return "7"

        def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
            assert (experiment_ids, max_results) == (["7"], 1)
            wanted = filter_string.removeprefix("tags.`equipoise.job` = '").removesuffix("'")
            return [self._entity(wanted)] if wanted in server.runs else []

        def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
            assert experiment_id == "7"
            key = tags["equipoise.job"]
            server.run(key).update(name=run_name)
            return self._entity(key)

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(params) <= 100
            assert len(metrics) <= 1000
            for name in (named.key for named in (*metrics, *params)):  # its own rules
                assert re.fullmatch(r"[/\w.\- ]{1,250}", name), name
                assert posixpath.normpath(name) == name, name
                assert not name.startswith("/"), name
            assert len({param.key for param in params}) == len(params)
            run = server.run(run_id)
            run["config"] |= {param.key: param.value for param in params}
            if metrics:
                assert len({metric.step for metric in metrics}) == 1
                server.take(lambda: run["rows"].append({metric.key: metric.value for metric in metrics}))

        def log_dict(self, run_id: str, dictionary: dict[str, Any], artifact_file: str) -> None:
            name, _, step = artifact_file.removesuffix(".json").partition("/step-")
            server.run(run_id)["tables"][f"{name}/{int(step)}"] = dictionary["data"]

        def set_terminated(self, run_id: str, status: str) -> None:
            server.run(run_id)["status"] = status

        def _entity(self, key: str) -> Any:
            rows = server.run(key)["rows"]
            metrics = dict(rows[-1]) if rows else {}
            return SimpleNamespace(info=SimpleNamespace(run_id=key), data=SimpleNamespace(metrics=metrics))

    module: Any = ModuleType("mlflow")
    entities: Any = ModuleType("mlflow.entities")
    module.MlflowClient, module.entities = MlflowClient, entities
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(
        key=key, value=value, timestamp=timestamp, step=step
    )
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
    return module, entities


def install(server: Server, patch: pytest.MonkeyPatch) -> None:
    module, entities = mlflow(server)
    patch.setitem(sys.modules, "mlflow", module)
    patch.setitem(sys.modules, "mlflow.entities", entities)
    patch.setitem(sys.modules, "wandb", wandb(server))
