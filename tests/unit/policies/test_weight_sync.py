"""What senders read of the learner, and what they leave in shared memory."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from policies import weight_sync
from policies.weight_sync import Collected, SharedMemorySender, shared_file, sweep_shared_memory


class Source:
    """Two tensors, and how many were made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("a", "b"):
            self.made.append(name)
            yield name, torch.full((2, 3), len(self.made), dtype=torch.bfloat16)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.each_weight())

    def weight_kinds(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, torch.bfloat16, (2, 3)) for name in ("a", "b")]


def test_vllm_is_told_of_weights_that_are_made_one_by_one() -> None:
    """A GPU that holds the policy once need not hold it twice."""
    made = Source()
    source = weight_sync._source(made, "cpu")
    kinds = source.metadata()
    assert made.made == []
    pairs = iter(source)
    name, tensor = next(pairs)
    assert made.made == ["a"]
    assert (kinds[0].name, kinds[0].dtype, tuple(kinds[0].shape)) == (name, tensor.dtype, tuple(tensor.shape))
    assert [name for name, _ in pairs] == ["b"]


def test_what_several_ranks_collected_is_kept_only_while_it_is_sent() -> None:
    class Learner(Source):
        class ranks:
            size = 2

        class settings:
            lora = None

    learner = Learner()
    collected = Collected(learner, "nccl")  # type: ignore[arg-type]
    with collected.collected():
        assert list(collected.weights()) == [name for name, _ in collected.each_weight()] == ["a", "b"]
        assert learner.made == ["a", "b"]  # once, for all who ask
    list(collected.each_weight())
    assert learner.made == ["a", "b"] * 2


def test_files_of_processes_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {what: tmp_path / f"equipoise-{pid}-{what}.safetensors" for what, pid in (
        ("dead", ended.pid), ("fresh", ended.pid), ("alive", os.getpid()),
    )}  # fmt: skip
    names["other"] = tmp_path / f"another-{ended.pid}-x.safetensors"
    for what, path in names.items():
        path.write_bytes(b"weights")
        if what != "fresh":
            long_ago = time.time() - 2 * weight_sync.OLD_S
            os.utime(path, (long_ago, long_ago))
    with shared_file() as mine:
        sweep_shared_memory()
        assert mine.exists()
    assert {what for what, path in names.items() if path.exists()} == {"fresh", "alive", "other"}


def test_shared_memory_that_is_too_small_is_told_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a container, mostly."""
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    learner = SimpleNamespace(weights=lambda: {"a": torch.zeros(65 << 20, dtype=torch.uint8)})
    client = SimpleNamespace(init_weight_transfer_engine=lambda _: None)
    told = f"{tmp_path} has no room .* 65 MiB are needed, 64 MiB are free"
    with pytest.raises(RuntimeError, match=told):
        SharedMemorySender(learner, client).send(1)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
