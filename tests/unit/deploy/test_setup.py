"""`make` keeps to the device that the environment was made for, until another is named."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What setup reads, and an environment that is made for CUDA; no Python is found that could make another."""
    for name in ("Makefile", "deploy/setup.sh", "requirements/cpu.txt", "requirements/gpu.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "none").mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13", "nvidia-smi"):
        (tmp_path / "none" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "none" / name).chmod(0o755)
    return tmp_path


def stamp(folder: Path, device: str) -> None:
    lock = {"cpu": "cpu", "cuda": "gpu"}[device]
    version = f"Python {sys.version.split()[0]}\n".encode()
    read = [folder / "requirements" / f"{lock}.txt", folder / "pyproject.toml", folder / "deploy" / "setup.sh"]
    digest = hashlib.sha256(version + b"".join(file.read_bytes() for file in read)).hexdigest()
    (folder / ".venv" / ".equipoise-setup").write_text(f"{device} {digest} {folder.resolve() / '.venv'}\n")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder / 'none'}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("command", [("deploy/setup.sh",), ("make", "setup")])
def test_an_environment_stays_as_it_is_where_no_device_is_named(
    folder: Path, device: str, command: tuple[str, ...]
) -> None:
    stamp(folder, device)
    done = run(folder, *command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert f"(now: {device};" in run(folder, "make", "help").stdout


def test_another_device_that_is_named_gets_an_environment_of_its_own(folder: Path) -> None:
    stamp(folder, "cuda")
    done = run(folder, "make", "setup", "DEVICE=cpu")
    assert done.returncode != 0  # it went about it, and found no Python here
    assert "no Python" in done.stderr
    assert "(now: cpu;" in run(folder, "make", "help", "DEVICE=cpu").stdout


def test_the_first_time_it_is_for_cpus_and_a_setup_that_did_not_end_goes_on(folder: Path) -> None:
    assert run(folder, "deploy/setup.sh", "--device").stdout == "cpu\n"
    (folder / ".venv" / ".equipoise-setup").write_text("cuda unfinished\n")
    assert run(folder, "deploy/setup.sh", "--device").stdout == "cuda\n"


def test_an_environment_that_was_moved_or_copied_with_its_folder_is_made_anew(folder: Path) -> None:
    """Its commands would run the other folder's Python, and that the other folder's code."""
    stamp(folder, "cpu")
    copy = shutil.copytree(folder, folder / "a copy", symlinks=True, ignore=lambda *_: ["a copy"])
    done = run(copy, "deploy/setup.sh")
    assert f"was made in {folder.resolve() / '.venv'}, and would run what is there" in done.stdout
    assert "no Python" in done.stderr  # it went about it, and found none here


def test_an_environment_that_is_linked_from_elsewhere_stays(folder: Path) -> None:
    stamp(folder, "cpu")
    copy = shutil.copytree(folder, folder / "a copy", symlinks=True, ignore=lambda *_: ["a copy", ".venv"])
    (copy / ".venv").symlink_to(folder / ".venv")
    done = run(copy, "deploy/setup.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_setup_that_was_killed_before_it_had_pip_begins_anew(folder: Path) -> None:
    python = folder / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m pip" ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = run(folder, "deploy/setup.sh", "cpu")
    assert "no Python" in done.stderr
    assert "No module" not in done.stderr


def test_a_gpu_that_is_there_is_pointed_out(folder: Path) -> None:
    (folder / "none" / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\n")
    stamp(folder, "cuda")
    done = run(folder, "deploy/setup.sh", "cpu")
    assert "this machine has a GPU: DEVICE=cuda is for that" in done.stdout
