"""A receiver takes what our dispatcher signs, and nothing else."""

import time

import pytest

from orchestrator.state.records import Event
from orchestrator.webhooks.delivery import signature
from orchestrator.webhooks.dispatcher import body
from services.client import webhooks

SECRET, AT = "s" * 20, 1_000_000
BODY = body("whd-1", "job-1", Event(seq=3, type="job.failed", at=5.0, level="error", data={"é": 1}))
HEADERS = {"Webhook-Id": "whd-1", "Webhook-Signature": signature(SECRET, "whd-1", AT, BODY)}


@pytest.mark.parametrize("sent", [BODY, BODY.decode()])
@pytest.mark.parametrize("now", [AT - 300, AT, AT + 300])
def test_what_was_signed_is_the_event(sent: bytes | str, now: int) -> None:
    event = webhooks.verify(HEADERS, sent, SECRET, now=now)
    assert event == {"id": "whd-1", "type": "job.failed", "at": 5.0, "job_id": "job-1", "seq": 3, "data": {"é": 1}}


def test_the_time_is_now() -> None:
    fresh = {"webhook-id": "whd-1", "webhook-signature": signature(SECRET, "whd-1", int(time.time()), BODY)}
    assert webhooks.verify(fresh, BODY, SECRET)["seq"] == 3
    with pytest.raises(webhooks.SignatureError, match="s ago"):
        webhooks.verify(HEADERS, BODY, SECRET)


@pytest.mark.parametrize(
    ("headers", "sent", "secret", "now", "message"),
    [
        (HEADERS, BODY + b" ", SECRET, AT, "not that of this body"),
        (HEADERS, BODY, "t" * 20, AT, "not that of this body"),
        ({**HEADERS, "Webhook-Id": "whd-2"}, BODY, SECRET, AT, "not that of this body"),
        (HEADERS, BODY, SECRET, AT + 301, "signed 301 s ago, and at most 300 s are allowed"),
        (HEADERS, BODY, SECRET, AT - 301, "signed -301 s ago"),
        ({**HEADERS, "Webhook-Signature": "t=1"}, BODY, SECRET, AT, "expected the headers"),
        ({**HEADERS, "Webhook-Signature": HEADERS["Webhook-Signature"] + ",v1=x"}, BODY, SECRET, AT, "expected"),
        ({"Webhook-Id": "whd-1"}, BODY, SECRET, AT, "expected the headers"),
        ({}, BODY, SECRET, AT, "expected the headers"),
    ],
)
def test_anything_else_is_refused(headers: dict[str, str], sent: bytes, secret: str, now: int, message: str) -> None:
    with pytest.raises(webhooks.SignatureError, match=message):
        webhooks.verify(headers, sent, secret, now=now)
