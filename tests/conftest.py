"""Real parts for the tests that need them, each started once per run, and only when a test asks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import settings

from tests.session import QUIET, own_ray

if TYPE_CHECKING:
    from tests.cli_forks import Commands
    from tests.toy_driver import Forks

os.environ |= QUIET

# An example has no 200 ms to keep to while two other runs of pytest want the same cores. All else is as it was chosen.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

PROJECT = Path(__file__).parent.parent
POLICY_CACHE = Path(os.environ.get("EQUIPOISE_TEST_CACHE") or PROJECT / ".equipoise" / "test-cache")
TRAINING = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, as they say most per second, and what starts Ray or vLLM after what does not.

    Then comes what wants the quickstart policy, which is trained meanwhile, and last what drives a browser, whose
    library leaves an event loop running.
    """

    def place(item: pytest.Item) -> tuple[bool, ...]:
        parts = item.path.parts
        wants_policy = "quickstart_policy" in getattr(item, "fixturenames", ())
        return "unit" not in parts, "browser" in parts, "cluster" in parts, wants_policy

    items.sort(key=place)


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What EQUIPOISE_STATE_DIR is to a person: a folder for everything that a run keeps."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server. Tests share it, so each uses names of its own."""
    from orchestrator.state.embedded_redis import EmbeddedRedis

    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def forks() -> "Iterator[Forks]":
    """What starts toy drivers (tests/toy_driver.py)."""
    from tests.toy_driver import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def commands() -> "Iterator[Commands]":
    """What runs commands of the CLI (tests/cli_forks.py)."""
    from tests.cli_forks import Commands

    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of our own on this machine, never one that happens to run already."""
    with own_ray():
        yield


def pytest_collection_finish(session: pytest.Session) -> None:
    """Train the quickstart policy beside the first tests, which leave a core idle, where a later one asks for it."""
    wanted = any("quickstart_policy" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    code = "import sys; from pathlib import Path; from policies.quickstart import ensure_policy\n"
    code += "ensure_policy(Path(sys.argv[1]), show_progress=False)"
    session.config.stash[TRAINING] = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-c", code, str(POLICY_CACHE)],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.DEVNULL,
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    training = config.stash.get(TRAINING, None)
    if training is not None:
        training.kill()
        training.wait()


@pytest.fixture(scope="session")
def quickstart_policy(pytestconfig: pytest.Config) -> Path:
    """The quickstart policy's folder; training it takes a minute or two once, then it is kept."""
    from policies.quickstart import ensure_policy

    pytestconfig.stash[TRAINING].wait()
    return ensure_policy(POLICY_CACHE, show_progress=False)


@pytest.fixture(scope="session")
def gone_in_the_end() -> Iterator[dict[psutil.Process, str]]:
    """Processes, with a name to report them by, that may take their time to end, but must."""
    processes: dict[psutil.Process, str] = {}
    yield processes
    _, alive = psutil.wait_procs(list(processes), timeout=60)
    assert not [processes[process] for process in alive]


@pytest.fixture(scope="session")
def math500() -> Path:
    """The folder of MATH-500 with train, val and test splits, which lies beside the repository."""
    folder = PROJECT.parent / "shared" / "data" / "math500"
    if (folder / "train.parquet").is_file():
        return folder
    if os.environ.get("EQUIPOISE_REQUIRE_SHARED") == "1":
        pytest.fail("EQUIPOISE_REQUIRE_SHARED is set, and ../shared/data/math500 is not there")
    pytest.skip("../shared/data/math500 is not there")
