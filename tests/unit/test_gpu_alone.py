"""tests/gpu on an image that has torch, transformers, peft and pytest, and nothing else that the project needs."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
# What such an image lacks. psutil comes with peft, but a GPU's tests have no need of it themselves.
LACKING = [
    "fastapi",
    "httptools",
    "kubernetes",
    "moocore",
    "nicegui",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "pydantic",
]
LACKING += ["pytest_timeout", "ray", "re2", "redis", "torchjd", "vllm"]
# None in sys.modules: importing it raises ModuleNotFoundError, and looking for it finds nothing.
CODE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
import pytest
ended = pytest.main(["-c", "tests/gpu/pytest.ini", "-p", "no:cacheprovider", "--collect-only", "-q", "tests/gpu"])
from tests.gpu import bench_learner
print("collected", int(ended), bench_learner.SIZES["tiny"])
"""


def test_it_is_collected_and_its_script_imported() -> None:
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE, " ".join(LACKING)],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "collected 0 Size(" in done.stdout, told
    files = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files == {path.name for path in (PROJECT / "tests" / "gpu").glob("test_*.py")}, told
