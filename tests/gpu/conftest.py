"""What the tests that need a GPU share; it asks for nothing but pytest and torch (see pytest.ini beside it)."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.session import QUIET, own_ray

os.environ |= QUIET


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a GPU is skipped without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """As tests/conftest.py has it, which is not read where these tests are alone."""
    with own_ray():
        yield
