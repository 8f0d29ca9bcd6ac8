"""Webhooks over HTTP: where to be told of what happens to jobs, and a try of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from orchestrator.webhooks.delivery import DeliveryError, private_allowed
from orchestrator.webhooks.dispatcher import send_test
from orchestrator.webhooks.subscriptions import (
    EVENTS,
    MAX_WEBHOOKS,
    TooManyWebhooks,
    Webhook,
    WebhookNotFound,
    WebhookState,
    WebhookStore,
)
from rewards.addresses import check_url
from services.body import json_body, optional_json_body, parsed
from services.deps import Store, body_schema, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute
from services.slots import place

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=StrictRoute)

EventName = Literal[
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.paused",
    "steering.applied",
    "steering.rejected",
    "guardrail.breached",
    "overoptimisation.detected",
    "reward.failed",
    "reward.rows_dropped",
    "reward.recovered",
    "engine.failing",
    "engine.retired",
    "engine.back",
    "collapse.detected",
    "checkpoint.failed",
    "gold.failed",
    "update.skipped",
]


Secret = Annotated[
    str | None,
    Field(
        min_length=16,
        max_length=256,
        pattern=r"^[\x21-\x7e]+$",
        description="signs the deliveries; one is made if absent",
    ),
]


class NewWebhook(BaseModel):
    """What may be said about a webhook."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(min_length=1, max_length=2048, description="https, port 443, a public host")
    events: list[EventName] = Field(min_length=1, max_length=len(EVENTS))
    secret: Secret = None
    format: Literal["json", "slack"] = Field(
        "json",
        description='of a delivery: the event, for programs; or a sentence for people, as `{"text": ...}`, which the '
        "incoming webhooks of Slack and Mattermost take, and Discord's with `/slack` at the end of its address",
    )


class NewSecret(BaseModel):
    """In the place of the one that it has."""

    model_config = ConfigDict(extra="forbid", strict=True)

    secret: Secret = None


async def _webhooks(store: Store) -> WebhookStore:
    return WebhookStore(store)


Webhooks = Annotated[WebhookStore, Depends(_webhooks)]


@router.post("", status_code=201, openapi_extra=body_schema(NewWebhook.model_json_schema()))
def create_webhook(document: Annotated[Any, Depends(json_body)], webhooks: Webhooks) -> Response:
    """From now on. `secret` in the answer is shown this once; the server keeps it, as it signs with it.

    A delivery is a POST with `webhook-id`, the same for every try, and `webhook-signature: t=...,v1=...`, where v1 is
    the HMAC-SHA256 of `<webhook-id>.<t>.<body>` under the secret. Any 2xx within 5 s takes it; else it comes again.
    """
    wanted = parsed(NewWebhook, document, "invalid_webhook")
    try:
        check_url(wanted.url, allow_private=private_allowed())
    except ValueError as error:
        raise ApiProblem(422, "invalid_webhook", f"url: {error}", param="url") from None
    try:
        made = webhooks.add(wanted.url, wanted.events, wanted.secret, wanted.format)
    except TooManyWebhooks:
        raise ApiProblem(409, "too_many_webhooks", f"{MAX_WEBHOOKS} webhooks are the most; delete one first") from None
    document = {**_document(made, WebhookState()), "secret": made.secret}
    headers = {"location": f"/v1/webhooks/{made.webhook_id}", "cache-control": "no-store"}
    return StrictJSONResponse(document, status_code=201, headers=headers)


@router.post("/{webhook_id}/secret", openapi_extra=body_schema(NewSecret.model_json_schema(), required=False))
def set_webhook_secret(
    webhook_id: str, document: Annotated[Any, Depends(optional_json_body)], webhooks: Webhooks
) -> Response:
    """Another secret, for every delivery that begins from now on. It is shown this once.

    One that is under way, and a try of it that was lost on the way, may still come with the one before.
    """
    wanted = parsed(NewSecret, {} if document is None else document, "invalid_webhook")
    try:
        webhook = webhooks.set_secret(webhook_id, wanted.secret)
    except WebhookNotFound:
        raise not_found("no such webhook") from None
    document = {**_document(webhook, webhooks.state(webhook_id)), "secret": webhook.secret}
    return StrictJSONResponse(document, headers={"cache-control": "no-store"})


@router.get("")
def list_webhooks(webhooks: Webhooks) -> Response:
    """Oldest first, without their secrets."""
    found = [_document(webhook, webhooks.state(webhook.webhook_id)) for webhook in webhooks.all()]
    return StrictJSONResponse(page(found, has_more=False))


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(webhook_id: str, webhooks: Webhooks) -> Response:
    """What is not delivered yet never will be."""
    try:
        webhooks.remove(webhook_id)
    except WebhookNotFound:
        raise not_found("no such webhook") from None
    return Response(status_code=204)


@router.post("/{webhook_id}/test", dependencies=[place("tests of webhooks", at_once=8, of_owner=2)])
def test_webhook(webhook_id: str, webhooks: Webhooks) -> Response:
    """Delivers an event of type `webhook.test` now, once, and says how it went."""
    try:
        webhook = webhooks.get(webhook_id)
    except WebhookNotFound:
        raise not_found("no such webhook") from None
    answer: dict[str, Any] = {"object": "webhook_test", "delivered": True, "status": None, "error": None}
    try:
        answer["status"] = send_test(webhook, allow_private=private_allowed())
    except DeliveryError as error:
        answer |= {"delivered": False, "error": str(error)}
    return StrictJSONResponse(answer)


def _document(webhook: Webhook, state: WebhookState) -> dict[str, Any]:
    return {
        "object": "webhook",
        "id": webhook.webhook_id,
        "url": webhook.url,
        "events": list(webhook.events),
        "format": webhook.format,
        "created_at": webhook.created_at,
        "status": "failing" if state.failing else "ok",
        "last_error": state.last_error,
        "last_delivered_at": state.last_at,
        "dropped": state.dropped,
    }
