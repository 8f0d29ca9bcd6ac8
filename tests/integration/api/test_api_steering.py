"""Steers over HTTP: when they take effect, which of many wins, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from orchestrator.state.store import JobStore
from services.client import ApiError, Client
from tests.api_support import KEY, SECRET, SPEC, assert_error, claim, step_record


def test_a_steer_names_the_step_at_which_it_takes_effect(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    for step in (1, 2, 3):
        store.commit(lease, step=step, digest=str(step), record=step_record())
    done = client.steer(job_id, weights={"accuracy": 3, "conciseness": 1}, mode="manual")
    assert done == {"version": 2, "effective_step": 5, "notes": []}  # step 4 is in flight
    steering = client.steering(job_id)
    assert steering["weights"] == {"accuracy": 0.75, "conciseness": 0.25}
    assert (steering["mode"], steering["blend"], steering["version"]) == ("manual", 0.5, 2)
    assert steering["strategy"] == {"accuracy": 0.7, "conciseness": 0.3}
    assert [entry["version"] for entry in steering["log"]] == [1, 2]
    assert steering["log"][1]["by"].startswith("key ")


def test_the_log_of_the_steering_comes_in_pages(http: httpx.Client, client: Client, job_id: str) -> None:
    for i in range(6):
        client.steer(job_id, blend=i / 10)
    newest = client.steering(job_id, log_limit=3)
    assert ([entry["version"] for entry in newest["log"]], newest["log_has_more"]) == ([5, 6, 7], True)
    older = client.steering(job_id, log_before=newest["log"][0]["version"])
    assert ([entry["version"] for entry in older["log"]], older["log_has_more"]) == ([1, 2, 3, 4], False)
    assert (older["version"], older["blend"]) == (7, 0.5)
    assert client.steering(job_id, log_limit=0)["log"] == []
    for query in ("log_limit=101", "log_before=0", "log_before=x", "log=1"):
        assert_error(http.get(f"/v1/jobs/{job_id}/steering?{query}"), 422)


def test_a_steer_in_the_last_step_is_too_late(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    store.set_total_steps(lease, 2)
    store.commit(lease, step=1, digest="1", record=step_record())
    with pytest.raises(ApiError, match="in flight") as caught:
        client.steer(job_id, blend=0.1)
    assert (caught.value.status, caught.value.code) == (409, "too_late")
    assert client.steering(job_id)["version"] == 1
    store.request_pause(job_id)
    store.commit(lease, step=2, digest="2", record=step_record())
    store.release(lease)
    with pytest.raises(ApiError, match="the job is paused after its last step: none is left") as caught:
        client.steer(job_id, blend=0.1)
    assert caught.value.code == "too_late"


def test_a_stale_version_is_412(http: httpx.Client, client: Client, job_id: str) -> None:
    path = f"/v1/jobs/{job_id}/steering"
    etag = http.get(path).headers["etag"]
    first = http.put(path, json={"mode": "manual"}, headers={"if-match": etag})
    assert (first.status_code, first.headers["etag"]) == (202, '"2"')
    error = assert_error(http.put(path, json={"mode": "auto"}, headers={"if-match": etag}), 412)
    assert (error["code"], error["param"]) == ("stale_version", "If-Match")
    assert http.put(path, json={"mode": "auto"}, headers={"if-match": "*"}).status_code == 202
    for odd in ("soon", '"3", "4"', 'w/"3"'):
        assert_error(http.put(path, json={"mode": "auto"}, headers={"if-match": odd}), 422)
    weak = f"W/{http.get(path).headers['etag']}"  # as a proxy that compresses passes it on
    assert http.put(path, json={"mode": "auto"}, headers={"if-match": weak}).status_code == 202
    assert_error(http.put(path, json={"mode": "auto"}, headers={"if-match": weak}), 412)
    assert client.steering(job_id)["version"] == 4


def test_a_steer_goes_back_to_a_version(client: Client, store: JobStore, job_id: str) -> None:
    client.steer(job_id, mode="blend", blend=0.25, bounds={"accuracy": [0.1, 0.9]})
    client.steer(job_id, mode="manual", weights={"accuracy": 1, "conciseness": 0})
    first, second, _ = (entry.state for entry in store.steering(job_id).log)
    for version, state in ((2, second), (1, first)):
        done = client.steer(job_id, to_version=version)
        assert (store.steering(job_id).current, done["notes"]) == (state, [])
    assert client.steer(job_id, to_version=1)["notes"] == ["nothing changes: the steering stood like this already"]
    with pytest.raises(ApiError, match="there was no such version") as caught:
        client.steer(job_id, to_version=7)
    assert caught.value.param == "to_version"


def test_a_ramp_stands_in_the_log_and_in_no_later_steering(client: Client, store: JobStore, job_id: str) -> None:
    claim(store, job_id)
    assert client.steer(job_id, mode="manual", over=2)["notes"] == []
    (entry,) = client.steering(job_id)["log"][1:]
    assert entry["change"] == {"mode": "manual", "over": 2}
    assert "over" not in store.steering(job_id).current
    assert client.steer(job_id, mode="manual")["notes"] == [], "cuts the ramp short"
    assert client.steer(job_id, mode="manual") == {
        "version": 4, "effective_step": 2, "notes": ["nothing changes: the steering stood like this already"],
    }  # fmt: skip
    client.steer(job_id, to_version=1, over=2)
    newest = client.steering(job_id)
    assert (newest["mode"], newest["log"][-1]["change"]["over"]) == ("auto", 2)
    assert [one.over for one in store.steering(job_id).log] == [1, 2, 1, 1, 2]
    assert client.steering(job_id)["version"] == 5
    (note,) = client.steer(job_id, mode="blend", over=1000)["notes"]
    assert note.startswith("over: the ramp would end at step 1001, and the job ends at step ")


def test_guardrails_are_changed_and_go_back_with_a_version(http: httpx.Client, client: Client, job_id: str) -> None:
    assert "guardrails" not in client.steering(job_id)
    rule = {"metric": "entropy", "min": 0.1, "max": None, "for_steps": 2, "action": "pause"}
    done = client.steer(job_id, guardrails=[{"metric": "entropy", "min": 0.1, "for_steps": 2, "action": "pause"}])
    assert done == {"version": 2, "effective_step": 1, "notes": []}
    steering = client.steering(job_id)
    assert (steering["guardrails"], steering["log"][-1]["change"]) == ([rule], {"guardrails": [rule]})
    client.steer(job_id, guardrails=[])
    assert client.steering(job_id)["guardrails"] == []
    client.steer(job_id, to_version=2)
    assert client.steering(job_id)["guardrails"] == [rule]
    client.steer(job_id, to_version=1)
    assert client.steering(job_id)["guardrails"] is None, "the spec's"
    wrong = {"guardrails": [rule, {"metric": "entropy", "min": 2, "max": 1}]}
    error = assert_error(http.put(f"/v1/jobs/{job_id}/steering", json=wrong), 422)
    assert (error["param"], error["message"]) == (
        "guardrails.1.min", "guardrails.1.min: 2 exceeds max (1): every value would be outside",
    )  # fmt: skip
    wrong = {"guardrails": [{"metric": "entropi", "min": 2}]}
    error = assert_error(http.put(f"/v1/jobs/{job_id}/steering", json=wrong), 422)
    assert (error["param"], "did you mean 'entropy'" in error["message"]) == ("guardrails.0.metric", True)
    wrong = {"guardrails": [rule, {"metric": "kl", "max": 1}]}
    error = assert_error(http.put(f"/v1/jobs/{job_id}/steering", json=wrong), 422)
    assert (error["param"], "its loss.kl_coef is 0" in error["message"]) == ("guardrails.1.metric", True)
    error = assert_error(http.put(f"/v1/jobs/{job_id}/steering", json=[]), 422)
    assert "guardrails, over" in error["message"]


def test_guardrails_leave_a_ramp_that_has_not_begun(client: Client, store: JobStore, job_id: str) -> None:
    lease = claim(store, job_id)
    client.steer(job_id, mode="manual", over=3)
    client.steer(job_id, guardrails=[])
    for step in (1, 2):
        store.commit(lease, step=step, digest=str(step), record=step_record())
    client.steer(job_id, guardrails=[{"metric": "entropy", "min": 0}])
    assert [one.over for one in store.steering(job_id).log] == [1, 3, 3, 1]


def test_a_ramp_needs_a_step_to_begin_at(client: Client, job_id: str) -> None:
    (note,) = client.steer(job_id, mode="manual", over=2)["notes"]
    assert note == "over: nothing is applied before step 1, which begins at the end of the ramp"


def test_what_of_a_steer_moves_nothing_is_told(client: Client, job_id: str) -> None:
    assert client.steer(job_id, weights={"accuracy": 1, "conciseness": 1})["notes"] == []
    points = [{"step": 1, "weights": {"accuracy": 1, "conciseness": 2}}]
    drawn = client.submit({**SPEC, "weighting": {"name": "schedule", "points": points}})["id"]
    (note,) = client.steer(drawn, weights={"accuracy": 9, "conciseness": 1})["notes"]
    assert note.startswith("weights: in mode auto they are the schedule's")
    assert client.steer(drawn, weights={"accuracy": 8, "conciseness": 1}, mode="manual")["notes"] == []


def test_of_many_writers_to_one_version_one_wins(client: Client, job_id: str) -> None:
    def write(i: int) -> int:
        with Client(client.url, KEY) as mine:
            try:
                return int(mine.steer(job_id, if_match=1, blend=i / 100)["version"])
            except ApiError as error:
                return error.status

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(write, range(12)))
    assert sorted(answers) == [2] + [412] * 11


def test_writers_without_a_version_all_get_one_of_their_own(client: Client, job_id: str) -> None:
    def write(i: int) -> int:
        with Client(client.url, KEY) as mine:
            return int(mine.steer(job_id, bounds={"accuracy" if i % 2 else "conciseness": [0.1, 0.9]})["version"])

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(write, range(8))) == list(range(2, 10))
    assert client.steering(job_id)["bounds"] == {"accuracy": [0.1, 0.9], "conciseness": [0.1, 0.9]}


BAD_STEERS = {
    "unknown objective": {"weights": {"acuracy": 1, "conciseness": 1}},
    "missing objective": {"weights": {"accuracy": 1}},
    "negative": {"weights": {"accuracy": -1, "conciseness": 1}},
    "all zero": {"weights": {"accuracy": 0, "conciseness": 0}},
    "true": {"weights": {"accuracy": True, "conciseness": 1}},
    "text": {"weights": {"accuracy": "0.5", "conciseness": 1}},
    "huge": {"weights": {"accuracy": 1e308, "conciseness": 1e308}},
    "huge integer": {"weights": {"accuracy": 10**400, "conciseness": 1}},
    "weights in a list": {"weights": [1, 2]},
    "no weights": {"weights": {}},
    "null": {"mode": None},
    "unknown mode": {"mode": SECRET},
    "unknown field": {"wieghts": {"accuracy": 1}},
    "blend above 1": {"blend": 1.5},
    "floor above ceiling": {"bounds": {"accuracy": [0.9, 0.1]}},
    "infeasible floors": {"bounds": {"accuracy": [0.7, 1], "conciseness": [0.7, 1]}},
    "infeasible ceilings": {"bounds": {"accuracy": [0, 0.2], "conciseness": [0, 0.2]}},
    "three bounds": {"bounds": {"accuracy": [0, 0.5, 1]}},
    "bounds in a list": {"bounds": [[0, 1]]},
    "version that is not there": {"to_version": 2},
    "version 0": {"to_version": 0},
    "version and more": {"to_version": 1, "mode": "auto"},
    "guardrail on nothing": {"guardrails": [{"metric": "kl"}]},
    "guardrail on an unknown figure": {"guardrails": [{"metric": "perplexity", "max": 1}]},
    "guardrail in words": {"guardrails": [{"metric": "entropy", "max": "1"}]},
    "guardrail with more": {"guardrails": [{"metric": "entropy", "max": 1, "maxx": 2}]},
    "guardrails in a mapping": {"guardrails": {"entropy": 1}},
    "over nothing": {"over": 3},
    "over 0 steps": {"mode": "manual", "over": 0},
    "over more steps than any job has": {"mode": "manual", "over": 1_000_001},
    "over half a step": {"mode": "manual", "over": 1.5},
    "over true": {"mode": "manual", "over": True},
    "nothing": {},
    "a list": [],
}


@pytest.mark.parametrize("case", BAD_STEERS)
def test_bad_steers_are_refused_and_leave_no_version(
    http: httpx.Client, client: Client, job_id: str, case: str
) -> None:
    response = http.put(f"/v1/jobs/{job_id}/steering", json=BAD_STEERS[case])
    assert assert_error(response, 422)["code"] == "invalid_steering"
    assert client.steering(job_id)["version"] == 1


def test_a_job_that_is_over_is_not_steered(client: Client, job_id: str) -> None:
    client.cancel(job_id)
    with pytest.raises(ApiError) as caught:
        client.steer(job_id, mode="auto")
    assert (caught.value.status, caught.value.code) == (409, "job_over")
