"""Every change of the weights has its entry: who, when, what it was, what it became, and from which step on."""

import json
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.testclient import TestClient

from orchestrator.journal import StoreJournal, Wishes
from orchestrator.state.keystore import Scope
from orchestrator.state.redis_calls import connect
from orchestrator.state.store import JobStore
from services.app import create_app
from services.keys import digest
from services.settings import Limits, Settings
from tests.api_support import SPEC, claim, step_record

KEY = "eqp_test"


def test_every_weight_that_was_ever_in_force_is_in_the_log(redis_url: str, tmp_path: Path) -> None:
    chance, began = random.Random(0), time.time()
    with connect(redis_url) as redis:
        store = JobStore(redis, owner=f"audit-{uuid.uuid4().hex}")
        settings = Settings(state_dir=tmp_path, key_sha256=digest(KEY), limits=Limits(writes_per_minute=0))
        with TestClient(create_app(store, settings)) as client:
            admin = {"authorization": f"Bearer {KEY}"}
            keys = [
                client.post("/v1/keys", json={"name": name, "scopes": [Scope.STEER, Scope.READ]}, headers=admin).json()
                for name in ("ann", "bob")
            ]
            job_id = client.post("/v1/jobs", json=SPEC, headers=admin).json()["id"]
            lease = claim(store, job_id)
            path, accepted = f"/v1/jobs/{job_id}/steering", {}

            def steer(i: int) -> None:
                share, key = chance.random(), keys[i % 2]
                body = {"weights": {"accuracy": share, "conciseness": 1 - share}, "mode": "manual"}
                headers = {"authorization": f"Bearer {key['key']}"}
                if i % 5 == 0:
                    headers["if-match"] = '"1"'  # stale, but for the first that comes
                answer = client.put(path, json=body, headers=headers)
                assert answer.status_code in (202, 412), answer.text
                if answer.status_code == 202:
                    accepted[answer.json()["version"]] = (share, key["id"], answer.json()["effective_step"])

            journal, used = StoreJournal(store, lease, Wishes), []
            for step in range(1, 8):
                with ThreadPoolExecutor(3) as threads:
                    list(threads.map(steer, range(6)))
                version, steering = journal.steering(step)
                used.append((step, version, steering.weights))
                store.commit(lease, step=step, digest=str(step), record=step_record())
            log = client.get(path, headers=admin).json()["log"]
            state = store.steering(job_id)

    assert [entry["version"] for entry in log] == list(range(1, len(accepted) + 2))
    assert 7 < len(accepted) < 42
    assert log[0]["by"] == f"key {digest(KEY)[:8]}"  # who submitted
    current = dict(log[0]["change"])
    for before, entry, kept in zip(log, log[1:], state.log[1:], strict=False):
        share, key_id, effective = accepted[entry["version"]]
        assert key_id in entry["by"]
        assert began - 5 <= before["at"] <= entry["at"] <= time.time() + 5
        assert entry["effective_step"] == effective >= before["effective_step"]
        assert abs(entry["change"]["weights"]["accuracy"] - share) < 1e-9
        assert current == state.log[entry["version"] - 2].state  # what it was
        current |= entry["change"]
        assert current == kept.state  # what it became
    assert current == json.loads(json.dumps(state.current))
    for step, version, weights in used:
        in_force = state.at(step)
        assert in_force is not None
        assert (in_force.version, in_force.state["weights"]) == (version, weights)
