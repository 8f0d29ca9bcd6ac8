"""What every run of pytest sets up: with the whole environment, and of tests/gpu with torch and little else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Before anything reads them: no telemetry, no downloads, no chatter.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
RAY_CPUS = 8  # slots, not cores: so that an actor never waits for another test's
RAY_OBJECT_STORE_BYTES = 200 * 1024**2


@contextmanager
def own_ray() -> Iterator[None]:
    """Never one that happens to run already on this machine; the one that this process has, where it has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, at start and end
        import ray

        if mine := not ray.is_initialized():
            ray.init(
                address="local",
                num_cpus=RAY_CPUS,
                include_dashboard=False,
                object_store_memory=RAY_OBJECT_STORE_BYTES,
                logging_level="warning",
            )
    yield
    if mine:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
