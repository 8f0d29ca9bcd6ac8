"""How a job is doing, over HTTP: its events, in pages and as a stream, its metrics and its front."""

import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

from orchestrator.state.store import JobStore
from services.client import Client
from tests.api_support import KEY, SPEC, assert_error, claim, serving, step_record

# -- events -------------------------------------------------------------------------------------------------


def read_stream(http: httpx.Client, job_id: str, **headers: str) -> list[dict[str, Any]]:
    with http.stream(
        "GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", **headers}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    ids = [int(line.removeprefix("id: ").split("@")[0]) for line in lines if line.startswith("id: ")]
    assert [event["seq"] for event in data] == ids
    return data


def test_events_page_without_gap(client: Client, store: JobStore, job_id: str) -> None:
    for i in range(7):
        store.event(job_id, "test", {"i": i})
    first = client.events(job_id, limit=5)
    rest = client.events(job_id, after=first["data"][-1]["seq"], limit=5)
    assert [event["seq"] for event in first["data"] + rest["data"]] == list(range(1, 9))
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_the_stream_follows_a_job_to_its_end(http: httpx.Client, store: JobStore, job_id: str) -> None:
    def live() -> None:
        time.sleep(0.3)
        for i in range(150):
            store.event(job_id, "test", {"i": i})
        store.request_cancel(job_id)

    thread = threading.Thread(target=live)
    thread.start()
    events = read_stream(http, job_id)
    thread.join()
    assert [event["seq"] for event in events] == list(range(1, 153))
    assert events[-1]["type"] == "job.cancelled"


def test_last_event_id_is_the_cursor(http: httpx.Client, store: JobStore, job_id: str) -> None:
    for i in range(5):
        store.event(job_id, "test", {"i": i})
    store.request_cancel(job_id)
    assert [event["seq"] for event in read_stream(http, job_id, **{"last-event-id": "4"})] == [5, 6, 7]
    done = http.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": "7"})
    assert done.status_code == 204
    assert [event["seq"] for event in read_stream(http, job_id, **{"last-event-id": "500"})] == list(range(1, 8))
    fourth = store.events(job_id, after=3, limit=1).items[0]
    for at, first in ((fourth.at, 5), (fourth.at - 1, 1)):  # of another time: from before an older copy came back
        events = read_stream(http, job_id, **{"last-event-id": f"4@{at}"})
        assert [event["seq"] for event in events] == list(range(first, 8))
    page = http.get(f"/v1/jobs/{job_id}/events", params={"after": 500}).json()
    assert page == {"object": "list", "data": [], "has_more": False, "oldest": 1, "newest": 7}
    for wrong in ("x", "-1", "1" * 40, "٣", "4@", "4@x", "4@1e5"):
        headers = {"accept": "text/event-stream", "last-event-id": wrong.encode()}
        assert_error(http.get(f"/v1/jobs/{job_id}/events", headers=headers), 422)


def test_a_stream_ends_when_the_server_stops(store: JobStore, tmp_path: Path) -> None:
    job_id = f"job-{uuid.uuid4().hex}"
    store.submit(json.dumps(SPEC), name="x", job_id=job_id)
    headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
    with serving(store, tmp_path) as server, httpx.Client(base_url=server.url, headers=headers) as http:
        stopper = threading.Timer(0.5, server.stop)
        with http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            stopper.start()
            started = time.monotonic()
            assert any(line.startswith("data") for line in response.iter_lines())
        stopper.join()
    assert time.monotonic() - started < 20


# -- metrics and the front ----------------------------------------------------------------------------------


def test_metrics_page_and_what_is_not_finite_is_null(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for step in (1, 2, 3):
        store.commit(lease, step=step, digest=str(step), record=step_record(step / 10))
    first = client.metrics(job_id, limit=2)
    assert [record["step"] for record in first["data"]] == [1, 2]
    assert first["has_more"] is True
    assert first["data"][0]["loss"] is None
    assert "fence" not in first["data"][0]
    assert [record["step"] for record in client.metrics(job_id, after=2)["data"]] == [3]
    some = list(client.iter_metrics(job_id, after=1, names=["loss", "objectives", "fence", "no such field"]))
    objectives = {"accuracy": {"mean": 0.2, "std": 0.1, "zero_share": 0.0}}
    assert some[0] == {"step": 2, "loss": None, "objectives": objectives}
    assert client.metrics(job_id, names=[])["data"] == [{"step": step} for step in (1, 2, 3)]


def test_the_front_is_empty_and_then_what_the_driver_wrote(client: Client, store: JobStore, job_id: str) -> None:
    assert client.front(job_id)["points"] == []
    older = {"points": [{"step": 0}], "hypervolume": 0.5, "reference": {"accuracy": 0.4}}
    store.set_front(claim(store, job_id), older)
    told = client.front(job_id)
    assert told["hypervolume"] == 0.5
    corner = {objective["name"]: 0.0 for objective in client.job(job_id)["spec"]["objectives"]}
    assert (told["initial"], told["reference"]) == ({"accuracy": 0.4}, corner)
