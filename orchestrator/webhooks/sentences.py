"""Events as sentences for people in a chat: `{"text": ...}`, as incoming webhooks of Slack and its kin take it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.state.records import Event, JobRecord
from orchestrator.unprintable import UNSHOWN

PAGE_VARIABLE = "EQUIPOISE_DASHBOARD_URL"
_LONGEST = 600  # characters of what somebody else wrote
_CONTROL = re.compile(r"[\x00-\x1f]+")

_SENTENCES = {
    "job.succeeded": "has succeeded",
    "job.failed": "has failed{why}",
    "job.cancelled": "is cancelled{why}",
    "job.paused": "is paused{why}",
    "steering.applied": "is steered from step {step} on with {weights}, by {by}",
    "steering.rejected": "did not take version {version} of its steering{why}",
    "guardrail.breached": "is outside a guardrail at step {step}{why}",
    "overoptimisation.detected": "may optimise too much at step {step}{why}",
    "reward.failed": "has no scores of the reward {reward}{why}",
    "reward.rows_dropped": "left {count} rows of the reward {reward} out",
    "reward.recovered": "has scores of the reward {reward} again, after failures",
    "engine.failing": "has failed calls to engine {engine} at step {step}{why}",
    "engine.retired": "lost engine {engine}{why}",
    "engine.back": "has engine {engine} back",
    "collapse.detected": "seems to collapse at step {step}{why}",
    "checkpoint.failed": "could not write its checkpoint of step {step}{why}",
    "gold.failed": "has no scores of the gold reward at step {step}{why}",
    "update.skipped": "skipped updates at step {step}{why}",
}
_NAMED = ("step", "version", "by", "reward", "count", "engine")


def chat_body(event: Event, job: JobRecord | None) -> bytes:
    """What a chat shows: without a job, of a test."""
    told = "Equipoise: a test of this webhook, which works." if job is None else sentence(event, job)
    return json.dumps({"text": told}).encode()


def sentence(event: Event, job: JobRecord) -> str:
    """A line, and the job's page where the operator told its address (EQUIPOISE_DASHBOARD_URL)."""
    words = {name: event.data.get(name) for name in _NAMED}
    told = _SENTENCES[event.type].format(why=_why(event), weights=_weights(event.data), **words)
    page = dashboard_url()
    where = "" if page is None else f" {page}/jobs/{job.job_id}"
    return f"{_plain(job.name)} ({job.job_id}) {_plain(told)}.{where}"


def dashboard_url() -> str | None:
    """Raises ValueError for what is no address."""
    url = os.environ.get(PAGE_VARIABLE, "").rstrip("/")
    if url and not re.fullmatch(r"https?://[^\s<>|\"]+", url):
        raise ValueError(f"{PAGE_VARIABLE}: expected an address such as https://equipoise.example.com, not {url!r}")
    return url or None


def _why(event: Event) -> str:
    why = str(event.data.get("message") or event.data.get("reason") or "").removeprefix("paused: ").rstrip(".")
    said = event.type.partition(".")[2]  # "paused by ann" is said once
    if why == said or why.startswith(f"{said} "):
        return why.removeprefix(said)
    return f": {why}" if why else ""


def _weights(data: Mapping[str, Any]) -> str:
    now = _listed(data.get("applied", {}))
    ramp = data.get("ramp")
    return now if ramp is None else f"{now}, on the way to {_listed(ramp['target'])} at step {ramp['until']}"


def _listed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()) or "other weights"


def _plain(text: str) -> str:
    """Names and reasons come from elsewhere: nothing in them may call people, hide a link or break the line."""
    found = UNSHOWN.sub(" ", _CONTROL.sub(" ", text))[:_LONGEST]
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b")):
        found = found.replace(sign, written)
    return found
