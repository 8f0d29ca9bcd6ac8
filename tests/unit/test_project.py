"""What the project promises about itself: its tree, its locks, what the README names, and what imports cost."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
READMES = [
    ROOT / "README.md",
    *(ROOT / name for name in ("deploy/README.md", "deploy/operations.md")),
    *(ROOT / name / "README.md" for name in ("orchestrator", "orchestrator/arena", "orchestrator/specs")),
    *(ROOT / name / "README.md" for name in ("policies", "rewards")),
]
README = "\n".join(path.read_text(encoding="utf-8") for path in READMES)
LINKS = [
    (path.relative_to(ROOT).as_posix(), link)
    for path in READMES
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
]
BLOCKS = {
    kind: re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL) for kind in ("yaml", "python", "toml")
}
TOP_LEVEL = {
    "services", "orchestrator", "policies", "rewards", "deploy", "tests",
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", "requirements",
}  # fmt: skip
LOCK_LINE = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+( ; [^@]+)?")


def lock(name: str) -> list[str]:
    return (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()


def test_the_top_level_has_only_what_is_agreed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    entries = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {entry for entry in entries if not entry.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_a_lock_pins_everything_and_names_no_index(name: str) -> None:
    assert lock(name)
    for line in lock(name):
        assert LOCK_LINE.fullmatch(line), line
        assert "://" not in line


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_a_lock_serves_what_setup_needs(name: str) -> None:
    pinned = [line.partition("==")[0] for line in lock(name)]
    assert {"torch", "uv", "setuptools", "pytest", "ruff", "mypy", "import-linter"} <= set(pinned)
    assert pinned.count("torch") == 1


def test_the_cpu_lock_leaves_out_the_overrides() -> None:
    pinned = {line.partition("==")[0] for line in lock("cpu.txt")}
    overridden = {line.partition(" ")[0] for line in lock("overrides.txt") if not line.startswith("#")}
    assert overridden
    assert not overridden & pinned


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    named = re.compile(r"(?:equipoise(?:-control|-trainer)?(?:-cpu)?[:-]|newTag: |ARG VERSION=)(\d+\.\d+\.\d+)")
    files = [
        path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".yaml", ".md") or path.name == "Dockerfile"
    ]
    found = {
        path.relative_to(ROOT).as_posix(): set(named.findall(path.read_text(encoding="utf-8")))
        for path in [*files, ROOT / "README.md"]
    }
    assert {path for path, told in found.items() if told} >= {
        "README.md",
        "deploy/Dockerfile",
        "deploy/single/compose.yaml",
    }
    assert {path: told for path, told in found.items() if told - {version}} == {}
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^ +|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_command_in_the_readme_exists() -> None:
    from typer.main import get_group

    from services.cli import app

    named = set(re.findall(r"(?:^ +\S*|`)equipoise ([a-z]+)", README, re.MULTILINE))
    assert {"up", "submit", "steer"} <= named
    assert named <= set(get_group(app).commands)


def test_every_option_in_the_readmes_exists() -> None:
    """Of the commands that stand in lines of their own, or in backquotes."""
    from typer.main import get_command

    from services.cli import app

    used = re.findall(r"(?:^ +\S*|`)equipoise ([^`#\n]+)", README, re.MULTILINE)
    assert len(used) > 50
    for line in used:
        command, words = get_command(app), line.split()
        options = {name for option in command.params for name in option.opts}
        for word in words:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
                options |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        named = {word.partition("=")[0].rstrip(").,") for word in words if word.startswith("--")}
        assert named <= options, line


@pytest.mark.parametrize("block", BLOCKS["yaml"])
def test_every_piece_of_a_spec_in_the_readmes_is_taken(block: str) -> None:
    """Fields that a job has are put into one; other documents (a judge's, Kubernetes') have tests of their own."""
    import yaml

    from orchestrator.spec import JobSpec, parse_spec

    (piece,) = yaml.safe_load_all(block.replace("politeness", "clarity"))  # a plug-in of the READMEs
    if not isinstance(piece, dict) or not set(piece) <= set(JobSpec.model_fields):
        pytest.skip("no piece of a job")
    base = yaml.safe_load((ROOT / "deploy/jobs/quickstart.yaml").read_text(encoding="utf-8"))
    base["weighting"] = {"name": "fixed"}  # goes with any number of objectives
    for section, fields in piece.items():
        base[section] = {**base.get(section, {}), **fields} if isinstance(fields, dict) else fields
    parse_spec(base)


@pytest.mark.parametrize("block", BLOCKS["python"])
def test_every_program_in_the_readmes_compiles(block: str) -> None:
    compile(block, "README", "exec")


def test_what_programs_of_the_readmes_import_has_types_for_them() -> None:
    """For people's own mypy, which takes an installed package's types only where it has the marker."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    programs = "\n".join(BLOCKS["python"])
    named = set(re.findall(r"^ *(?:from|import) (\w+)", programs, re.MULTILINE))
    ours = named & set(project["packages"])
    assert {"policies", "rewards", "services"} <= ours
    for package in ours:
        assert (ROOT / package / "py.typed").exists(), package
        assert "py.typed" in project["package-data"][package]


@pytest.mark.parametrize("block", BLOCKS["toml"])
def test_every_table_in_the_readmes_is_toml(block: str) -> None:
    assert tomllib.loads(block)


@pytest.mark.parametrize("name", ["deploy/README.md", "deploy/operations.md"])
def test_keys_that_documents_hand_out_can_read(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    made = re.findall(r"equipoise keys create (.*--scope [^`\n]*)", text)
    assert made
    assert all("--scope read" in options for options in made)


@pytest.mark.parametrize(("readme", "link"), LINKS)
def test_every_file_that_a_readme_links_exists(readme: str, link: str) -> None:
    assert ((ROOT / readme).parent / link).exists()


HEAVY = {"torch", "ray", "vllm", "transformers"}
# Beside these the client needs httpx and typing-extensions: it goes where nothing else of ours is installed.
SERVERS = HEAVY | {"orchestrator", "policies", "rewards", "pydantic", "redis", "numpy", "psutil", "yaml", "fcntl"}


@pytest.mark.parametrize(
    ("module", "unwanted"), [("services.cli", HEAVY), ("orchestrator.spec", HEAVY), ("services.client", SERVERS)]
)
def test_what_people_touch_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
