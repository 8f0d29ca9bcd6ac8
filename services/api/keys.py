"""API keys over HTTP: make, list, revoke. An admin manages its owner's; the installation's own key, anyone's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from orchestrator.errors import QuotaReached
from orchestrator.state import gpu_hours
from orchestrator.state.keys import is_name
from orchestrator.state.keystore import ApiKey, KeyNotFound, KeyStore, Scope
from orchestrator.unprintable import PRINTABLE
from services.api.quotas import hours_document
from services.body import json_body, parsed
from services.deps import MAX_PAGE, Caller, Store, body_schema, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.keys import digest, new_stored_key
from services.query import StrictRoute

router = APIRouter(prefix="/v1", tags=["keys"], route_class=StrictRoute)

MAX_KEYS = 1000  # of an owner; the operator's own count for itself
_TEN_YEARS_S = 10 * 366 * 24 * 3600


class NewKey(BaseModel):
    """What may be said about a key; the rest is the server's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=64, pattern=PRINTABLE)
    scopes: list[Literal["read", "submit", "steer", "admin"]] = Field(min_length=1, max_length=4)
    owner: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="the caller's own if absent")
    expires_in_s: int | None = Field(None, ge=1, le=_TEN_YEARS_S, description="it never expires if absent")


class KeyList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Query(None, description="only keys older than this one")
    limit: int = Query(20, ge=1, le=MAX_PAGE)
    owner: str | None = Query(None, description="only this owner's")


async def _keys(request: Request) -> KeyStore:
    keys: KeyStore = request.app.state.keys
    return keys


Keys = Annotated[KeyStore, Depends(_keys)]


@router.post("/keys", status_code=201, openapi_extra=body_schema(NewKey.model_json_schema()))
def create_key(document: Annotated[Any, Depends(json_body)], caller: Caller, keys: Keys) -> Response:
    """Makes a key. `key` in the answer is shown this once: only its SHA-256 is kept."""
    wanted = parsed(NewKey, document, "invalid_key")
    owner = wanted.owner or caller.owner
    if owner != caller.owner and not caller.is_operator:
        raise _other_owner()
    key_id, text = new_stored_key()
    try:
        made = keys.add(
            key_id=key_id,
            sha256=digest(text),
            owner=owner,
            name=wanted.name,
            scopes={Scope(scope) for scope in wanted.scopes},
            expires_in_s=wanted.expires_in_s,
            most=None if caller.is_operator else MAX_KEYS,
            by=caller.key_name,
        )
    except QuotaReached:
        raise ApiProblem(409, "too_many_keys", f"{MAX_KEYS} keys are the most; revoke one first") from None
    headers = {"location": f"/v1/keys/{key_id}", "cache-control": "no-store"}
    return StrictJSONResponse({**key_document(made), "key": text}, status_code=201, headers=headers)


@router.get("/key")
def get_own_key(caller: Caller, store: Store) -> Response:
    """Whom the key that asks speaks for, what it may do, and its owner's GPU-hours of this month."""
    scopes = [scope for scope in Scope if caller.may(scope)]
    return StrictJSONResponse(
        {
            "object": "own_key",
            "id": caller.key_id,
            "name": caller.key_name,
            "owner": caller.owner,
            "scopes": scopes,
            "gpu_hours": hours_document(gpu_hours.read(store.calls, caller.owner)),
        }
    )


@router.get("/keys")
def list_keys(query: Annotated[KeyList, Query()], caller: Caller, keys: Keys) -> Response:
    """Newest first, those revoked and expired among them, none with its secret."""
    owner = query.owner if caller.is_operator else query.owner or caller.owner
    if owner is not None and not is_name(owner):
        raise ApiProblem(422, "invalid_parameter", "owner: no such owner", param="owner")
    if not caller.is_operator and owner != caller.owner:
        raise _other_owner()
    try:
        found = keys.page(owner=owner, after=query.after, limit=query.limit)
    except KeyNotFound:
        raise ApiProblem(422, "invalid_parameter", "after: no such key", param="after") from None
    return StrictJSONResponse(page([key_document(key) for key in found.items], has_more=found.has_more))


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, caller: Caller, keys: Keys) -> Response:
    """Refused from the next request on, by other servers within 2 s, for good; its record stays."""
    try:
        key, _ = keys.find(key_id)
        if key.owner != caller.owner and not caller.is_operator:
            raise KeyNotFound(key_id)
        return StrictJSONResponse(key_document(keys.revoke(key_id, by=caller.key_name)))
    except KeyNotFound:
        raise not_found("no such key") from None


def key_document(key: ApiKey) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": key.key_id,
        "name": key.name,
        "owner": key.owner,
        "scopes": [scope for scope in Scope if scope in key.scopes],
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "created_by": key.created_by,
        "revoked_by": key.revoked_by,
    }


def _other_owner() -> ApiProblem:
    message = "only the installation's own key may manage the keys of other owners"
    return ApiProblem(403, "other_owner", message, param="owner")
