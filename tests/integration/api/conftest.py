"""A real Redis behind a real socket; each file has a server and an owner of its own."""

import uuid
from collections.abc import Iterator

import httpx
import pytest

from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore
from services.client import Client
from services.server import ApiServer
from tests.api_support import KEY, SPEC, serving


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    client = connect(redis_url)
    yield JobStore(client, owner=f"api-{uuid.uuid4().hex}")
    client.close()


@pytest.fixture(scope="module")
def server(store: JobStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serving(store, tmp_path_factory.mktemp("api"), gpu_gib=48) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20) as http:
        yield http


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[Client]:
    with Client(server.url, KEY) as client:
        yield client


@pytest.fixture
def job_id(client: Client) -> str:
    return str(client.submit(SPEC)["id"])
