"""The distribution's Chromium, and axe-core from the npm registry: fetched where they are missing, else said why."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# As root it has no sandbox; the rest keeps it from looking for a network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--lang=en-US",
]
AXE = "axe-core@4"


class Missing(Exception):
    """What is not here and can't be fetched; the text says why."""


def executable() -> str:
    """Installed by apt-get where that is there and allowed. Raises Missing."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise Missing("no Chromium on PATH, and no apt-get as root to install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ["chromium", "fonts-dejavu-core"]
    for command in ([apt, "update", "-qq"], [apt, "install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise Missing(f"apt-get could not install Chromium: {done.stderr.strip()[-300:]}")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise Missing("apt-get installed Chromium, and it is not on PATH")


def launch(playwright: Playwright) -> Browser:
    """Raises Missing."""
    return playwright.chromium.launch(executable_path=executable(), args=FLAGS)


def axe(cache: Path) -> str:
    """axe-core's script, packed by npm once and kept in `cache`. Raises Missing."""
    script = cache / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("axe-core comes from the npm registry, and there is no npm")
        cache.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", AXE, "--silent", "--pack-destination", str(cache)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            raise Missing("npm could not fetch axe-core within 120 s") from None
        packed = sorted(cache.glob("axe-core-*.tgz"))
        if done.returncode != 0 or not packed:
            raise Missing(f"npm could not fetch axe-core: {done.stderr.strip()[-300:]}")
        with tarfile.open(packed[-1]) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            draft = script.with_suffix(".part")
            draft.write_bytes(member.read())
            draft.replace(script)
    return script.read_text(encoding="utf-8")
