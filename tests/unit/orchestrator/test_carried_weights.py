"""Weights in a file of the learner's machine, and engines that are not there: Ray carries what is in it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from orchestrator.actors.engine_actors import EngineActor, EngineFanout
from policies import weight_sync
from policies.rollout import RolloutEngine


@dataclass(eq=False)
class Reference:
    value: Any


@dataclass(eq=False)
class Actor:
    """An engine's, on a machine of this name; `got` has what its updates were called with. Gone: it has none."""

    node: str | None
    got: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def machine(self) -> Any:
        gone = ray.exceptions.RayActorError()
        return SimpleNamespace(remote=lambda: Reference(gone if self.node is None else self.node))

    @property
    def update_weights(self) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Reference(self.got.append(arguments)))


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was put into Ray's store, by a process on the machine `a`."""
    made: list[Any] = []

    def get(references: Any) -> Any:
        if isinstance(references, list):
            return [get(reference) for reference in references]
        if isinstance(references.value, Exception):
            raise references.value
        return references.value

    def put(value: Any) -> Any:
        made.append(bytes(value))
        return Reference(made[-1])

    monkeypatch.setattr(ray, "wait", lambda references, **_: (references, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    return made


@pytest.fixture
def update(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "weights").write_bytes(b"weights")
    return {"path": str(tmp_path / "weights")}


def test_engines_elsewhere_get_what_is_in_the_file_put_once(puts: list[Any], update: dict[str, str]) -> None:
    actors = [Actor("a"), Actor("b"), Actor(None), Actor("c"), Actor("a")]
    fanout = EngineFanout([*actors], patience_s=1)
    fanout.update_weights(update)
    assert puts == [b"weights"]
    assert fanout.engines == [actors[0], actors[1], actors[3], actors[4]]
    assert [actor.got for actor in (actors[0], actors[4])] == [[(update,)]] * 2
    for actor in (actors[1], actors[3]):
        ((info, contents),) = actor.got
        assert (info, contents.value) == (update, b"weights")


def test_on_one_machine_nothing_is_carried(puts: list[Any], update: dict[str, str]) -> None:
    actors = [Actor("a"), Actor("a")]
    EngineFanout([*actors], patience_s=1).update_weights(update)
    assert (puts, [actor.got for actor in actors]) == ([], [[(update,)]] * 2)


def test_what_gpus_exchange_is_no_file(puts: list[Any]) -> None:
    """Engines are told as the sender says, wherever they are, and are not asked where."""
    actors = [Actor(None), Actor(None)]
    EngineFanout([*actors]).update_weights({"names": ["w"]})
    assert (puts, [actor.got for actor in actors]) == ([], [[({"names": ["w"]},)]] * 2)


def test_an_engine_has_what_was_carried_in_a_file_of_its_own_while_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path)
    read: list[tuple[Path, bytes]] = []

    async def update_weights(_: Any, info: dict[str, str]) -> None:
        path = Path(info["path"])
        assert path.stat().st_mode & 0o777 == 0o600
        read.append((path, path.read_bytes()))
        if len(read) == 2:
            raise ValueError("no such parameter")

    monkeypatch.setattr(RolloutEngine, "update_weights", update_weights)
    actor = EngineActor.__new__(EngineActor)
    info, contents = {"path": "/there/not/here"}, np.frombuffer(b"weights", dtype=np.uint8)
    asyncio.run(actor.update_weights(info, contents))
    with pytest.raises(ValueError, match="no such parameter"):
        asyncio.run(actor.update_weights(info, contents))
    assert [(path.parent, data) for path, data in read] == [(tmp_path, b"weights")] * 2
    assert not list(tmp_path.iterdir())
