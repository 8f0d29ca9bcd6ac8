"""Which software trains a job or makes a run of the arena."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("torch", "vllm", "transformers", "moocore")  # that decide a run's figures


def versions() -> dict[str, str]:
    """Of Python, and of the packages that decide a run's figures."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def code() -> dict[str, str | None]:
    """The project's own version, and of a checkout the commit."""
    return {"version": _version("orchestrator"), "commit": _commit()}


@functools.cache
def _commit() -> str | None:
    """Of the checkout that this runs from, with a + where files differ from it; None of an installed package."""

    def git(*words: str) -> str:
        ask = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a package may lie in somebody else's checkout
        return git("describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(module: str) -> str:
    """Of the package that brings a module; vLLM's has another name without CUDA."""
    packages = _packages().get(module)
    return importlib.metadata.version(packages[0]) if packages else "unknown"


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
