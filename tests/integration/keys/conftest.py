"""A real Redis, and the API on a real socket before it."""

from collections.abc import Iterator

import pytest

from orchestrator.state.embedded_redis import EmbeddedRedis, connect
from tests.keys_support import Place, serving


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("keys")
    with EmbeddedRedis(directory) as server, connect(server.url) as client, serving(client, directory) as place:
        yield place
