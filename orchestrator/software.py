"""Which software and machine train a job or make a run of the arena."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.spec import JobSpec
from orchestrator.specs.plugins import PluginSpec
from policies.disk import sha256_of
from policies.plugins import load_plugin, plugin_package
from rewards import registry

PACKAGES = (  # that decide a run's figures
    "torch", "vllm", "transformers", "tokenizers", "peft", "torchjd", "moocore", "numpy", "math_verify",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python, and of the packages that decide a run's figures."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def plugins(spec: JobSpec) -> dict[str, str]:
    """What the job uses of installed packages: by `weighting worst_first` and the like, package and digest of its code.

    A package that is installed for editing keeps its version whatever is changed. Of the code it is what lies beside
    the module: all of its package, or the module alone where that is in none.
    """
    rules: dict[str, object] = {"weighting": spec.weighting, "estimator": spec.estimator}
    found = {
        f"{kind} {rule.name}": (plugin_package(rule.group, rule.name), load_plugin(rule.group, rule.name))
        for kind, rule in rules.items()
        if isinstance(rule, PluginSpec)
    }
    rewards = {objective.reward.name for objective in spec.objectives}
    rewards |= set() if spec.gold is None else {spec.gold.reward.name}
    for name in sorted(rewards):
        if (package := registry.plugin_package(name)) is not None:
            found[f"reward {name}"] = package, registry.resolve(name)
    return {what: f"{package}, code {_digest(made)}" for what, (package, made) in found.items()}


def _digest(made: type[Any]) -> str:
    try:
        file = Path(inspect.getfile(made))
        is_of_package = "." in made.__module__ or file.name == "__init__.py"
        files = sorted(file.parent.rglob("*.py")) if is_of_package else [file]
        return sha256_of(*files)[:12]
    except (OSError, TypeError):  # from an archive, or made in no file
        return "unknown"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each part of `job.software` that is another than at an earlier start, as far as that had it."""
    lines = []
    for part, called in (("code", "equipoise "), ("versions", ""), ("plugins", "")):
        old, new = before.get(part) or {}, now.get(part) or {}
        changed = [name for name in old if name in new and old[name] != new[name]]
        lines += [f"{called}{name} is {new[name] or 'unknown'}, was {old[name] or 'unknown'}" for name in changed]
    old, new = before.get("device"), now.get("device")
    return [*lines, f"the learner's device is {new}, was {old}"] if old and new and old != new else lines


def code() -> dict[str, str | None]:
    """The project's own version, and of a checkout the commit."""
    return {"version": _version("orchestrator"), "commit": _commit()}


def processor() -> str:
    """What this machine's is called: another kind rounds otherwise."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


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
