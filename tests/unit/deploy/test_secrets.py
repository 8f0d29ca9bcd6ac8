"""What secrets.sh keeps and makes anew."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy_support import DEPLOY

SCRIPT = DEPLOY / "kubernetes" / "secrets" / "secrets.sh"


def lasts(certificate: Path, days: int) -> bool:
    command = ["openssl", "x509", "-noout", "-checkend", str(days * 86400), "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def age(files: Path, days: int) -> None:
    """Redis' certificate as it is `days` before its end."""
    asked = subprocess.run(
        ["openssl", "x509", "-x509toreq", "-in", files / "tls.crt", "-signkey", files / "tls.key"],
        check=True,
        capture_output=True,
    ).stdout
    by: list[str | Path] = ["-CA", files / "ca.crt", "-CAkey", files / "ca.key", "-CAcreateserial", "-days", str(days)]
    made: list[str | Path] = ["openssl", "x509", "-req", *by, "-out", files / "tls.crt"]
    subprocess.run(made, check=True, capture_output=True, input=asked)


def run(files: Path) -> str:
    return subprocess.run([SCRIPT, files], check=True, capture_output=True, text=True).stderr


@pytest.fixture
def files(kubernetes: Path) -> Path:
    return kubernetes / "secrets" / "files"


@pytest.mark.parametrize(("days", "anew"), [(89, True), (120, False)])
def test_a_certificate_that_ends_soon_is_made_anew(files: Path, tmp_path: Path, days: int, anew: bool) -> None:
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    age(tmp_path, days)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = run(tmp_path)
    changed = {path.name for path in tmp_path.iterdir() if before.get(path.name) != path.read_bytes()}
    assert changed - {"ca.srl"} == ({"tls.crt", "tls.key"} if anew else set())
    assert ("restart statefulset/redis" in said) is anew
    assert lasts(tmp_path / "tls.crt", 390 if anew else days - 1)
    verified: list[str | Path] = ["openssl", "verify", "-CAfile", tmp_path / "ca.crt", tmp_path / "tls.crt"]
    assert subprocess.run(verified, capture_output=True, check=False).returncode == 0


def test_without_the_authority_it_says_so_and_changes_nothing(files: Path, tmp_path: Path) -> None:
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    age(tmp_path, 10)
    (tmp_path / "ca.key").unlink()
    before = (tmp_path / "tls.crt").read_bytes()
    assert "ca.key is not here" in run(tmp_path)
    assert (tmp_path / "tls.crt").read_bytes() == before


def test_the_runbook_reads_a_key_that_is_there_before_it_uses_it(files: Path) -> None:
    lines = [line.strip() for line in (DEPLOY / "README.md").read_text().splitlines() if line.startswith("       ")]
    (exported,) = (i for i, line in enumerate(lines) if line.startswith("export EQUIPOISE_URL="))
    (named,) = re.findall(r"\$\(cat deploy/kubernetes/secrets/files/([\w-]+)\)", lines[exported])
    assert (files / named).is_file()
    assert min(i for i, line in enumerate(lines) if line.startswith("equipoise ")) == exported + 1
