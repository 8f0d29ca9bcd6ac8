"""The GPU's benchmark on a CPU, with a policy of a few thousand parameters: every figure is made."""

import asyncio
from typing import Any

import pytest
import torch

from policies.weight_sync import SharedMemorySender
from tests.gpu import bench_learner
from tests.gpu.bench_learner import CASES, SIZES, Case, held_against_targets, measure
from tests.gpu.engine_sync import ThreadedEngine, running_loop

MODES = (None, "exact", "sketch", "last_block", "step_response")
SOME = [  # every way of comparing, and each of the rest in one of them; the plain one of its sort first
    *(Case(gramian=mode) for mode in MODES),
    *(Case(gramian=mode, lora=True) for mode in (None, "step_response")),
    *(Case(gramian=mode, checkpointing=False, whole=mode is not None) for mode in (None, "step_response")),
]


def test_there_is_a_case_of_each_sort() -> None:
    names = {f"{lora}{mode or 'plain'}{kept}" for mode in MODES for lora in ("", "lora_") for kept in ("", "_kept")}
    names |= {f"{lora}whole_step_response_kept" for lora in ("", "lora_")}
    assert names == {case.name for case in CASES if not case.compiled}
    assert {case.name for case in SOME} <= names


def test_every_case_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES["tiny"]
    monkeypatch.setattr(bench_learner, "CASES", SOME)
    found = measure(size, "cpu", rounds=1)
    assert {name for name, figures in found.items() if isinstance(figures, dict)} == {case.name for case in SOME}
    for case in SOME:
        figures = found[case.name]
        assert figures["update_s"] > 0
        assert figures["sync_s"] > 0
        assert figures["tokens_per_s"] == pytest.approx(size.rollouts * size.tokens / figures["update_s"])
        assert figures["times_plain"] == pytest.approx(figures["update_s"] / found[case.plain]["update_s"])
        assert figures["mfu"] is None  # of a GPU
    assert [found[case.plain]["times_plain"] for case in SOME] == [1] * len(SOME)
    assert 10_000 < found["parameters"] < 100_000


def test_figures_are_held_against_their_targets() -> None:
    found = {
        "1.5B": {
            "plain": {"mfu": 0.4}, "plain_kept": {"mfu": 0.39}, "lora_plain": {"mfu": 0.1}, "exact": {"times_plain": 3},
            "sketch": {"times_plain": 1.15}, "last_block": {"times_plain": 1.16}, "lora_sketch": {"fits": False},
        },
        "0.5B": {
            "plain": {"mfu": 0.1}, "step_response": {"times_plain": 1.3},
            "whole_step_response_kept": {"times_plain": 1.3},
        },
    }  # fmt: skip
    judged = {line["what"]: (line["figure"], line["word"]) for line in held_against_targets(found)}
    assert judged == {
        "1.5B plain": ("mfu", "met"),
        "1.5B plain_kept": ("mfu", "missed"),
        "1.5B sketch": ("times_plain", "met"),
        "1.5B last_block": ("times_plain", "missed"),
        "1.5B lora_sketch": ("times_plain", "not measured"),
        "0.5B step_response": ("times_plain", "missed"),
    }


def test_an_engine_in_another_loop_does_each_phase_before_its_call_returns() -> None:
    class Source:
        def weights(self) -> dict[str, torch.Tensor]:
            return {"w": torch.ones(2)}

    class Engine:
        def __init__(self) -> None:
            self.phases: list[Any] = []

        async def _done(self, *phase: Any) -> None:
            await asyncio.sleep(0.01)
            self.phases.append(phase)

        def __getattr__(self, name: str) -> Any:
            return lambda *given: self._done(name, *(word for word in given if isinstance(word, str)))

    engine = Engine()
    with running_loop() as loop:
        SharedMemorySender(Source(), ThreadedEngine(engine, loop)).send(4)
    assert engine.phases == [
        ("init_weight_transfer_engine",), ("start_weight_update",), ("update_weights",), ("finish_weight_update", "4"),
    ]  # fmt: skip
