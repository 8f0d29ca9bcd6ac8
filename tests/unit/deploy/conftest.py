"""What is deployed, rendered once per run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.deploy_support import Object, prepare, render


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/kubernetes with secrets."""
    return prepare(tmp_path_factory.mktemp("deploy"))


@pytest.fixture(scope="session")
def rendered(kubernetes: Path) -> Callable[[str], list[Object]]:
    """Objects of an overlay, which nobody may change."""
    return cache(lambda overlay: render(kubernetes, overlay))
