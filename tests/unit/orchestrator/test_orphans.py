"""Only what is unknown and old goes."""

import os
import time
from pathlib import Path

from orchestrator.orphans import collect_orphans


def aged(directory: Path, age_s: float) -> None:
    (directory / "init").mkdir(parents=True)
    (directory / "init" / "model.safetensors").write_text("x")
    for path in (directory / "init", directory):
        os.utime(path, (time.time() - age_s,) * 2)


def test_only_what_is_unknown_and_old_goes(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    for name, age_s in (("known", 1000), ("old", 1000), ("young", 10), ("busy", 1000), (".old-removed", 1000)):
        aged(jobs / name, age_s)
    os.utime(jobs / "busy" / "init")
    aged(tmp_path / "elsewhere", 1000)
    (jobs / "link").symlink_to(tmp_path / "elsewhere")
    (jobs / "file").write_text("x")
    assert collect_orphans(tmp_path, {"known"}, older_than_s=100) == [".old-removed", "old"]
    assert sorted(path.name for path in jobs.iterdir()) == ["busy", "file", "known", "link", "young"]
    assert (tmp_path / "elsewhere" / "init").exists()
    assert collect_orphans(tmp_path / "absent", [], older_than_s=0) == []
