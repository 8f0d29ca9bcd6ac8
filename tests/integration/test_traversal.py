"""Names in paths: none leads out of where its owner's things lie, on any route that takes one."""

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore
from services.app import create_app
from services.keys import digest
from services.settings import Limits, Settings

KEY = "eqp_test"
CANARY = "canary-5Vr-of-another"
NAMES = (
    "..", "../..", "../other", "../../other/secret", "..%2fother", "....//other", "..\\other", "/etc/passwd", "~",
    "~root", "a/../../other", "other\x00", "other/", "./other", "．．/other", "..;/other", "%2e%2e/other", "*", "job-*",
    "{job}", "x" * 300, "a:b", "mo:keys", "\u202e..", "a\r\nset-cookie: x", "file:///etc/passwd", "C:\\other", "-",
    " ", "0x1", "-1", "1e3", "٣",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """An app whose state directory lies beside another, with files and folders that the names point at."""
    base = tmp_path_factory.mktemp("traversal")
    for folder in ("other", "state/other", "state/jobs/other", "state/datasets/other"):
        (base / folder / "secret").mkdir(parents=True)
        (base / folder / "secret" / "meta.json").write_text(f'{{"name": "{CANARY}"}}')
        (base / folder / "report.html").write_text(CANARY)
    with connect(redis_url) as redis:
        store = JobStore(redis, owner=f"traversal-{uuid.uuid4().hex}")
        limits = Limits(writes_per_minute=0)
        settings = Settings(state_dir=base / "state", key_sha256=digest(KEY), local_exports=True, limits=limits)
        with TestClient(create_app(store, settings)) as client:
            client.headers |= {"authorization": f"Bearer {KEY}", "accept": "application/json"}
            yield client, base


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
            for written in {quote(name, safe=""), quote(name, safe="/:;*{}~")}:
                asked = re.sub(r"\{[^}]+\}", lambda _, written=written: written, path)
                body = None if method in ("GET", "DELETE") else {"checkpoint": 1, "to": str(base / "out")}
                answer = client.request(method, asked, json=body, follow_redirects=False)
                seen[answer.status_code] += 1
                if "/../" not in f"{asked}/" and "//" not in asked:  # else it may name another route
                    assert 400 <= answer.status_code < 500, (method, asked, answer.text)
                assert answer.status_code < 500, (method, asked, answer.text)
                assert CANARY not in answer.text
                assert "set-cookie" not in answer.headers
    assert seen[404] > len(routes) * 10
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
