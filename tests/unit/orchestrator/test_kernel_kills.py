"""Where the count of the kernel's kills is read."""

from pathlib import Path

import pytest

from orchestrator.actors import kernel_kills


@pytest.mark.parametrize(
    ("container", "machine", "expected"),
    [
        ("low 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n", "nr_free_pages 9\noom_kill 5\n", 2),
        (None, "nr_free_pages 9\noom_kill 5\nswap_ra 0\n", 5),
        ("low 0\n", "oom_kill 5\n", 5),
        ("low 0\n", None, 0),
        (None, None, 0),
    ],
)
def test_a_containers_own_count_is_before_the_machines(
    container: str | None, machine: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (tmp_path / "memory.events", tmp_path / "vmstat")
    for path, text in zip(paths, (container, machine), strict=True):
        if text is not None:
            path.write_text(text)
    monkeypatch.setattr(kernel_kills, "COUNTERS", paths)
    assert kernel_kills.kernel_kills() == expected
