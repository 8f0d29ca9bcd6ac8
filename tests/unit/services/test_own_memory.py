"""What `up` takes a machine's memory to be, for dry runs."""

from pathlib import Path

import psutil
import pytest

from services import local


@pytest.mark.parametrize("limit", [None, "max\n", "3221225472\n", str(2**60)])
def test_a_containers_limit_where_it_is_the_smaller(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EQUIPOISE_RAY_ADDRESS", raising=False)
    monkeypatch.setattr(local, "CONTAINER_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        local.CONTAINER_LIMIT.write_text(limit)
    whole = psutil.virtual_memory().total / 2**30
    assert local.own_memory_gib() == (3.0 if limit == "3221225472\n" else whole)


def test_jobs_on_a_ray_cluster_have_another_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_RAY_ADDRESS", "ray-head:6379")
    assert local.own_memory_gib() is None
