"""How many jobs an owner may have, and how often a key may write."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from orchestrator.state import keys as names
from orchestrator.state.keystore import KeyStore
from orchestrator.state.redis_calls import RedisCalls
from orchestrator.state.store import JobStore, KeepsTooMany, SubmitOutcome
from services.keys import new_stored_key
from services.settings import Limits
from tests.keys_support import SPEC, Place, error_of, serving

# -- limits -------------------------------------------------------------------------------------------------


def test_the_quota_of_jobs_is_exact_under_concurrent_submits(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, active_jobs=7) as limited:
        owner = f"owner-{uuid.uuid4().hex[:8]}"
        key = limited.key("read", "submit", owner=owner)

        def submit(number: int) -> httpx.Response:
            with limited.http(key) as http:
                return http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": f"k-{number}"})

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(submit, range(50)))
        accepted = [number for number, answer in enumerate(answers) if answer.status_code == 201]
        assert len(accepted) == 7
        refused = next(answer for answer in answers if answer.status_code != 201)
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_jobs")
        assert int(refused.headers["retry-after"]) > 0
        store = JobStore(limited.client, owner=owner)
        assert len(store.queued()) == len(store.jobs(limit=100).items) == 7
        # A replay is no new job, and what was refused left nothing behind: its key may be used again.
        assert submit(accepted[0]).status_code == 201
        lost = next(number for number in range(50) if number not in accepted)
        assert submit(lost).status_code == 429
        store.request_cancel(store.queued()[0])
        assert submit(lost).headers["idempotent-replayed"] == "false"
        with limited.http() as operator:  # of owner `local`, which has no limit here
            assert {operator.post("/v1/jobs", json=SPEC).status_code for _ in range(9)} == {201}


def test_jobs_that_run_count_and_those_that_paused_do_not(place: Place) -> None:
    store = JobStore(place.client, owner=f"owner-{uuid.uuid4().hex[:8]}")

    def submit(job_id: str) -> SubmitOutcome:
        return store.submit("{}", name="x", job_id=job_id, max_active=1).outcome

    assert submit("a") is SubmitOutcome.NEW
    lease = store.claim("a", nonce="n", ttl_s=60).lease
    assert lease is not None
    assert submit("b") is SubmitOutcome.QUOTA
    assert submit("a") is SubmitOutcome.REPLAY
    assert store.release(lease) == "queued"
    assert submit("b") is SubmitOutcome.QUOTA
    store.request_pause("a")
    assert submit("b") is SubmitOutcome.NEW


def test_jobs_that_ended_count_until_they_are_deleted(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, kept_jobs=2) as limited:
        owner = f"owner-{uuid.uuid4().hex[:8]}"
        with limited.http(limited.key("read", "submit", owner=owner)) as http:
            ids = [http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": key}).json()["id"] for key in "ab"]
            for job_id in ids:
                assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
            refused = http.post("/v1/jobs", json=SPEC)
            error = error_of(refused, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_kept_jobs")
            assert int(refused.headers["retry-after"]) > 0
            assert http.post("/v1/jobs", json=SPEC, headers={"idempotency-key": "b"}).json()["id"] == ids[1]
            assert http.delete(f"/v1/jobs/{ids[0]}").status_code == 200
            assert http.post("/v1/jobs", json=SPEC).status_code == 201
        with limited.http() as operator:  # of owner `local`, which has no limit here
            assert {operator.post("/v1/jobs", json=SPEC).status_code for _ in range(4)} == {201}


def test_the_specs_of_an_owners_jobs_have_so_many_bytes_in_all(place: Place, tmp_path: Path) -> None:
    """Redis holds them in memory, and ten thousand large ones would be more than it has."""
    objective = SPEC["objectives"][0]
    schema = {"name": "json_schema", "options": {"json_schema": {"description": "x" * 49_000}}}
    large = {**SPEC, "objectives": [{**objective, "reward": schema}]}
    with serving(place.client, tmp_path, kept_bytes=120_000) as limited:
        owner = f"owner-{uuid.uuid4().hex[:8]}"
        with limited.http(limited.key("read", "submit", owner=owner)) as http:
            ids = [http.post("/v1/jobs", json=large).json()["id"] for _ in range(2)]
            refused = http.post("/v1/jobs", json=large)
            assert error_of(refused, 429)["code"] == "too_many_kept_jobs"
            assert "specs, metadata, steps and steering of this owner's jobs may have 120000 bytes" in refused.text
            kept = int(place.client.hget(names.Keys(owner).kept, "bytes"))
            assert 2 * 49_000 < kept < 120_000
            assert http.post(f"/v1/jobs/{ids[0]}/cancel").status_code == 200
            assert http.delete(f"/v1/jobs/{ids[0]}").status_code == 200
            assert int(place.client.hget(names.Keys(owner).kept, "bytes")) == kept / 2
            assert http.post("/v1/jobs", json=large).status_code == 201
            objectives = [f"o{i}" for i in range(6)]
            huge = {**SPEC, "objectives": [{**objective, "name": name, "reward": schema} for name in objectives]}
            for query in ({}, {"validate_only": True}):
                refused = http.post("/v1/jobs", params=query, json=huge)
                assert error_of(refused, 413)["code"] == "spec_too_large"
                assert refused.json()["error"]["message"].endswith("; shorten its texts, or name files by a pattern")
        with limited.http() as operator:
            assert {operator.post("/v1/jobs", json=large).status_code for _ in range(3)} == {201}


def test_redis_holds_no_more_of_an_owner_than_is_counted(place: Place, tmp_path: Path) -> None:
    owner = f"owner-{uuid.uuid4().hex[:8]}"

    def held() -> int:
        return sum(place.client.memory_usage(key, samples=0) for key in place.client.scan_iter(f"mo:{owner}:*"))

    def counted() -> int:
        return int(place.client.hget(names.Keys(owner).kept, "bytes"))

    signs = {f"k{i}": "\U0001f600" * 80 for i in range(16)}
    document = {**SPEC, "name": "\\" * 128, "metadata": signs}
    with (
        serving(place.client, tmp_path, kept_bytes=300_000, kept_jobs=20) as limited,
        limited.http(limited.key("read", "submit", "steer", owner=owner)) as http,
    ):

        def submit(number: int) -> httpx.Response:
            return http.post("/v1/jobs", json=document, headers={"idempotency-key": f"k-{number}"})

        made = [answer.json()["id"] for i in range(20) if (answer := submit(i)).status_code == 201]
        assert 5 < len(made) < 20
        assert error_of(submit(19), 429)["code"] == "too_many_kept_jobs"
        assert "metadata" not in place.client.get(names.Keys(owner).idempotency("k-0"))
        http.post(f"/v1/jobs/{made[0]}/pause")
        steering, refused = f"/v1/jobs/{made[0]}/steering", None
        for i in range(1000):
            answer = http.put(steering, json={"mode": "manual", "bounds": {"accuracy": [i / 1000, 1]}})
            if answer.status_code == 429:
                refused = error_of(answer, 429)
                break
        assert refused is not None
        assert refused["code"] == "too_many_kept_jobs"
        assert "delete some that have ended" in refused["message"]
        a_job = 14_000  # what is not counted by bytes: the hash and the first events of each
        assert 0 < counted() <= 300_000
        assert held() <= 2 * counted() + a_job * len(made)
        *others, last = made
        for job_id in others:
            http.post(f"/v1/jobs/{job_id}/cancel")
            http.delete(f"/v1/jobs/{job_id}")
        assert counted() == int(place.client.hget(names.Keys(owner).job(last), "kept_bytes"))
        http.post(f"/v1/jobs/{last}/cancel")
        http.delete(f"/v1/jobs/{last}")
        assert not place.client.exists(names.Keys(owner).kept)
        assert held() < 3000 * len(made)  # the answers to its keys, for a day


def test_answers_to_idempotency_keys_are_so_many_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore(place.client, owner=f"owner-{uuid.uuid4().hex[:8]}")

    def submit(key: str | None, job_id: str) -> SubmitOutcome:
        outcome = store.submit("{}", name="x", job_id=job_id, idempotency_key=key, max_kept=2).outcome
        store.request_cancel(job_id)
        store.delete(job_id)
        return outcome

    monkeypatch.setattr("orchestrator.state.store.IDEMPOTENCY_TTL_MS", 300)
    assert [submit(key, key) for key in "ab"] == [SubmitOutcome.NEW] * 2
    with pytest.raises(KeepsTooMany, match="2 answers are kept for this owner's Idempotency-Keys, each for a day"):
        submit("c", "c")
    assert submit(None, "d") is SubmitOutcome.NEW
    time.sleep(0.35)
    assert submit("c", "c") is SubmitOutcome.NEW


def test_a_key_writes_so_often_a_minute_and_reads_on(place: Place, tmp_path: Path) -> None:
    with serving(place.client, tmp_path, writes_per_minute=5) as limited:
        made = place.make("submit", "read")
        with limited.http(made["key"]) as http:

            def submit(_: int) -> httpx.Response:
                return http.post("/v1/jobs", params={"validate_only": True}, json=SPEC)

            with ThreadPoolExecutor(12) as threads:
                answers = list(threads.map(submit, range(12)))
            assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 7
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert error_of(refused, 429)["code"] == "rate_limited"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert http.get("/v1/jobs").status_code == 200
            assert place.client.pttl(names.rate(made["id"])) > 0
            place.client.delete(names.rate(made["id"]))  # the minute is over
            assert submit(0).status_code == 200
        with limited.http(place.key("submit")) as other:  # each key has its own minute
            assert other.post("/v1/jobs", params={"validate_only": True}, json=SPEC).status_code == 200


def test_an_owner_writes_no_more_with_more_keys(place: Place) -> None:
    keys, owner = KeyStore(RedisCalls(place.client)), f"owner-{uuid.uuid4().hex[:8]}"
    ids = [new_stored_key()[0] for _ in range(9)]
    waits = [keys.count_write(key_id, owner, 1) for key_id in ids]
    assert waits[:4] == [0] * 4
    assert all(1 <= wait <= 60 for wait in waits[4:])
    assert place.client.get(names.rate(ids[-1])) is None  # what was refused counts nowhere
    assert keys.count_write(ids[-1], f"{owner}-2", 1) == 0


def test_an_owner_whose_keys_are_misused_still_stops_them(place: Place, tmp_path: Path) -> None:
    owner = f"owner-{uuid.uuid4().hex[:8]}"
    with serving(place.client, tmp_path, writes_per_minute=4) as limited:
        leaked = [place.make("submit", "read", owner=owner) for _ in range(4)]
        with limited.http(place.key("admin", owner=owner)) as http:
            ids = [http.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(2)]
            for made in leaked:
                with limited.http(made["key"]) as thief:
                    while thief.post("/v1/jobs", params={"validate_only": True}, json=SPEC).status_code == 200:
                        continue
            refused = http.post("/v1/jobs", json=SPEC)
            assert error_of(refused, 429)["code"] == "rate_limited"
            for _ in range(6):  # which computes, and counts nowhere
                assert http.post(f"/v1/jobs/{ids[0]}/steering/preview", json={"mode": "manual"}).status_code == 425
            assert http.delete(f"/v1/keys/{leaked[0]['id']}").json()["revoked_at"]
            assert http.post(f"/v1/jobs/{ids[0]}/cancel").json()["status"] == "cancelled"
            assert http.post(f"/v1/jobs/{ids[1]}/pause").status_code == 429  # in its own minute they count


def test_limits_come_from_the_environment() -> None:
    assert Limits.from_environment({}) == Limits(
        writes_per_minute=600, active_jobs=100, active_jobs_local=0, kept_jobs=10_000, kept_jobs_local=0,
        kept_bytes=256 << 20, kept_bytes_local=0,
    )  # fmt: skip
    given = {"EQUIPOISE_MAX_WRITES_PER_MINUTE": "0", "EQUIPOISE_MAX_ACTIVE_JOBS": "3"}
    assert Limits.from_environment({**given, "EQUIPOISE_MAX_ACTIVE_JOBS_LOCAL": "9"}) == Limits(
        writes_per_minute=0, active_jobs=3, active_jobs_local=9
    )
    limits = Limits.from_environment({"EQUIPOISE_MAX_RUNNING_JOBS": "2"})
    assert (limits.most_running("acme"), limits.most_running("local")) == (2, None)
    for wrong in ("-1", "many", "1.5", "1" * 10):
        with pytest.raises(ValueError, match="EQUIPOISE_MAX_ACTIVE_JOBS: expected a whole number"):
            Limits.from_environment({"EQUIPOISE_MAX_ACTIVE_JOBS": wrong})
