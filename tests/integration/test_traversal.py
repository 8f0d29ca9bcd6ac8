"""Names in paths: none leads out of where its owner's things lie, on any route that takes one."""

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import Redis
from starlette.testclient import TestClient

from orchestrator.rollouts.samples import FOLDER
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from services.app import create_app
from services.keys import digest
from services.settings import Limits, Settings
from tests.toy_jobs import submit, toy_spec

KEY = "eqp_test"
CANARY = "canary-5Vr-of-another"
NAMES = (
    "..", ".", "../..", "../other", "../../other/secret", "..%2fother", "....//other", "..\\other", "/etc/passwd", "~",
    "~root", "a/../../other", "other\x00", "other/", "./other", "．．/other", "..;/other", "%2e%2e/other", "*", "job-*",
    "{job}", "x" * 300, "a:b", "mo:keys", "\u202e..", "a\r\nset-cookie: x", "file:///etc/passwd", "C:\\other", "-",
    " ", "0x1", "-1", "1e3", "٣",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """An app whose state directory lies beside another, with files and folders that the names point at.

    There is a job of each name that one part of a path can be, which the store would never make: without the checks of
    names, a request finds it, and comes to what is to be read or written on the disk.
    """
    base = tmp_path_factory.mktemp("traversal")
    for folder in ("other", "state/other", "state/jobs/other", "state/datasets/other", "state", "state/jobs"):
        (base / folder / "secret").mkdir(parents=True)
        (base / folder / "secret" / "meta.json").write_text(f'{{"name": "{CANARY}"}}')
        (base / folder / "report.html").write_text(CANARY)
        (base / folder / FOLDER).mkdir()
        (base / folder / FOLDER / "000001.jsonl").write_text(f'{{"prompt": "{CANARY}"}}\n')
    with connect(redis_url) as redis:
        store = JobStore(redis, owner=f"traversal-{uuid.uuid4().hex}")
        make_jobs(redis, store)
        limits = Limits(writes_per_minute=0)
        settings = Settings(state_dir=base / "state", key_sha256=digest(KEY), local_exports=True, limits=limits)
        with TestClient(create_app(store, settings)) as client:
            client.headers |= {"authorization": f"Bearer {KEY}", "accept": "application/json"}
            yield client, base


def make_jobs(redis: Redis, store: JobStore) -> None:
    """One that has ended, and its copies under names that are none."""
    submit(store, toy_spec(), "job-true")
    lease = store.claim("job-true", nonce="n", ttl_s=60).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    store.commit(lease, step=1, digest="1", record={})
    store.finish(lease, JobStatus.SUCCEEDED)
    for key in list(redis.scan_iter(match=f"*:{store.owner}:*{{job-true}}*")):
        for name in NAMES:
            if "/" not in name and not re.fullmatch(r"[\w-]{1,255}", name, flags=re.ASCII):
                redis.copy(key, key.replace("{job-true}", f"{{{name}}}"))


def test_no_name_in_a_path_leads_anywhere(place: tuple[TestClient, Path]) -> None:
    client, base = place
    document = client.get("/openapi.json").json()
    routes = [
        (method.upper(), path) for path, methods in document["paths"].items() if "{" in path for method in methods
    ]
    assert len(routes) > 20
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    seen: Counter[int] = Counter()
    for method, path in routes:
        for name in NAMES:
            # A client folds a part that is nothing but dots, so the server gets only what is written otherwise.
            hidden = "%2e" * len(name) if set(name) == {"."} else quote(name, safe="")
            for written in {quote(name, safe=""), quote(name, safe="/:;*{}~"), hidden}:
                asked = re.sub(r"\{[^}]+\}", lambda _, written=written: written, path)
                body = None if method in ("GET", "DELETE") else {"checkpoint": 1, "to": str(base / "out")}
                answer = client.request(method, asked, json=body, follow_redirects=False)
                seen[answer.status_code] += 1
                if not any(part in f"{asked}/" for part in ("/../", "/./", "//")):  # else it may name another route
                    assert 400 <= answer.status_code < 500, (method, asked, answer.text)
                assert answer.status_code < 500, (method, asked, answer.text)
                assert CANARY not in answer.text
                assert "set-cookie" not in answer.headers
    assert seen[404] > len(routes) * 10
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
