"""Why vLLM's own process ended, which it writes to its log alone."""

import asyncio
import os
import sys
from types import SimpleNamespace

import pytest

from policies import root_cause
from policies.rollout import EngineDied, EngineSettings, RolloutEngine
from policies.root_cause import with_root_cause

STARTING = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
CACHE = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
# As vLLM 0.32 writes them.
LOG = f"""\
(MainProcess pid=17) WARNING 11-30 19:28:22 [x.py:5] no such module: ModuleNotFoundError: No module named 'x'
(EngineCore pid=18) ERROR 11-30 19:31:10 [core.py:1510] EngineCore failed to start.
(EngineCore pid=18) ERROR 11-30 19:31:10 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=18) ERROR 11-30 19:31:10 [core.py:1510]     raise ValueError(
(EngineCore pid=18) ERROR 11-30 19:31:10 [core.py:1510] {CACHE}
(EngineCore pid=18) ERROR 11-30 19:31:16 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly
"""
RANKS = """\
(Worker pid=19) ERROR 11-30 19:31:10 [multiproc_executor.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried to
(EngineCore pid=18) Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
(MainProcess pid=17) WARNING 11-30 19:31:11 [x.py:5] RuntimeError: something was tried
"""  # noqa: E501


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Writes what stands in the log of a process."""
    path = tmp_path / "worker.out"
    path.touch()
    output = os.open(path, os.O_RDWR)
    monkeypatch.setattr(root_cause, "OUTPUTS", (output,))
    yield path.write_text
    os.close(output)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (LOG, CACHE),
        (RANKS, "torch.OutOfMemoryError: CUDA out of memory. Tried to"),
        ("x" * 300_000 + "\n" + LOG, CACHE),
    ],
)
def test_the_last_error_that_points_to_no_other(log, text, cause):
    log(text)
    assert with_root_cause(RuntimeError(STARTING)) == f"{STARTING} (last error in its log: {cause})"
    assert with_root_cause(f"two\n  lines: {cause}") == f"two lines: {cause}"


@pytest.mark.parametrize("text", ["", "all is well\n", "(EngineCore pid=18) an Error without a name: x\n"])
def test_a_log_without_an_error_adds_nothing(log, text):
    log(text)
    assert with_root_cause(STARTING) == STARTING


def test_nor_does_one_that_is_no_file(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(root_cause, "OUTPUTS", (write, 9999))
    assert with_root_cause(STARTING) == STARTING
    os.close(write)


@pytest.mark.parametrize("told", [STARTING, "gpu_memory_utilization: a number"])
def test_an_engine_that_does_not_start_says_why(log, told, monkeypatch):
    def start(_):
        raise RuntimeError(told)

    log(LOG)
    named = {
        "vllm": SimpleNamespace(AsyncEngineArgs=dict),
        "vllm.config": SimpleNamespace(WeightTransferConfig=dict),
        "vllm.v1.engine.async_llm": SimpleNamespace(AsyncLLM=SimpleNamespace(from_engine_args=start)),
    }
    for name, module in named.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(RuntimeError) as raised:
        RolloutEngine(EngineSettings(model="m", device="cuda", transport="nccl"))
    assert (CACHE in str(raised.value)) == (told == STARTING)


def test_nor_one_that_dies(log):
    log(LOG)
    engine = RolloutEngine.__new__(RolloutEngine)
    engine.llm = SimpleNamespace(errored=True)
    with pytest.raises(EngineDied, match="No available memory for the cache blocks"):
        asyncio.run(engine.version())
