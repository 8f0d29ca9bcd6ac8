"""The store on the tests' redis-server; each test is an owner of its own."""

import uuid
from collections.abc import Iterator

import pytest
import redis

from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore


@pytest.fixture(scope="session")
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def owner() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def store(client: redis.Redis, owner: str) -> JobStore:
    return JobStore(client, owner)
