"""What a chat is told of an event."""

from typing import Any

import pytest

from orchestrator.state.records import Event
from orchestrator.webhooks.sentences import _SENTENCES, dashboard_url, sentence
from orchestrator.webhooks.subscriptions import EVENTS


class Job:
    job_id, name = "job-1", "sums"


def told(type: str, **data: Any) -> str:
    return sentence(Event(seq=1, type=type, at=0.0, level="info", data=data), Job())  # type: ignore[arg-type]


def test_every_event_that_webhooks_tell_has_a_sentence() -> None:
    assert tuple(_SENTENCES) == EVENTS
    for event in EVENTS:
        assert told(event).startswith("sums (job-1) "), "whatever an older version left out"


@pytest.mark.parametrize(
    ("type", "data", "says"),
    [
        ("job.succeeded", {"from": "running", "to": "succeeded", "reason": ""}, "has succeeded."),
        ("job.paused", {"reason": "kl is 2"}, "is paused: kl is 2."),
        ("job.paused", {"reason": "paused by key 12ab (ann)"}, "is paused by key 12ab (ann)."),
        ("job.cancelled", {"reason": "cancelled by key 12ab (ann)"}, "is cancelled by key 12ab (ann)."),
        ("job.paused", {"reason": "on request"}, "is paused: on request."),
        ("job.paused", {"reason": "paused: kl is 2; wanted at most 1"}, "is paused: kl is 2; wanted at most 1."),
        (
            "steering.applied",
            {"step": 7, "version": 2, "by": "key 1a", "applied": {"accuracy": 0.75, "brevity": 0.25}},
            "is steered from step 7 on with accuracy 0.75, brevity 0.25, by key 1a.",
        ),
        (
            "steering.rejected",
            {"version": 2, "reason": "the job ended"},
            "did not take version 2 of its steering: the job ended.",
        ),
        ("guardrail.breached", {"step": 3, "message": "kl is 2"}, "is outside a guardrail at step 3: kl is 2."),
        (
            "update.skipped",
            {"step": 5, "message": "1 of 4 updates skipped: a loss"},
            "skipped updates at step 5: 1 of 4 updates skipped: a loss.",
        ),
        ("reward.rows_dropped", {"reward": "math", "count": 4}, "left 4 rows of the reward math out."),
    ],
)
def test_what_it_says(type: str, data: dict[str, Any], says: str) -> None:
    assert told(type, **data) == f"sums (job-1) {says}"


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("equipoise.example.com", "ftp://x", "https://a b", "javascript:alert(1)"):
        monkeypatch.setenv("EQUIPOISE_DASHBOARD_URL", address)
        with pytest.raises(ValueError, match=r"^EQUIPOISE_DASHBOARD_URL: expected an address such as https://"):
            dashboard_url()
    monkeypatch.setenv("EQUIPOISE_DASHBOARD_URL", "")
    assert dashboard_url() is None
