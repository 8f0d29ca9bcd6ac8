"""GPU-hours over HTTP: how many an owner may take in a month, which the operator says, and how many it took."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from orchestrator.state import gpu_hours
from orchestrator.state.gpu_hours import MAX_QUOTA_HOURS, GpuHours
from orchestrator.state.store import JobStore
from services.auth import Principal
from services.body import json_body, parsed
from services.deps import Caller, Store, body_schema
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute

router = APIRouter(prefix="/v1/quotas", tags=["keys"], route_class=StrictRoute)

Owner = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="an owner's name, as its keys have it")]


class Quota(BaseModel):
    """What an owner may take."""

    model_config = ConfigDict(extra="forbid", strict=True)

    gpu_hours: float | None = Field(
        gt=0, le=MAX_QUOTA_HOURS, allow_inf_nan=False, description="of a month, UTC; null: no limit"
    )


@router.get("/{owner}")
def get_quota(owner: Owner, caller: Caller, store: Store) -> Response:
    """An owner's GPU-hours: its quota, and what its jobs took this month."""
    if owner != caller.owner:
        _check_known(store, owner, caller)
    return StrictJSONResponse(_document(owner, gpu_hours.read(store.calls, owner)))


@router.put("/{owner}", openapi_extra=body_schema(Quota.model_json_schema()))
def set_quota(owner: Owner, document: Annotated[Any, Depends(json_body)], caller: Caller, store: Store) -> Response:
    """From now on, and for the present month too; the installation's own key alone may say it.

    Where it is used up, jobs that may take GPUs are refused (429), those that wait are paused when their turn comes,
    and those that run are paused with a checkpoint. Jobs with `resources.device: cpu` are left alone.
    """
    wanted = parsed(Quota, document, "invalid_quota")
    if not caller.is_operator:
        raise ApiProblem(403, "operator_only", "only the installation's own key sets quotas")
    if owner != caller.owner:
        _check_known(store, owner, caller)
    gpu_hours.set_quota(store.calls, owner, wanted.gpu_hours)
    return StrictJSONResponse(_document(owner, gpu_hours.read(store.calls, owner)))


def _check_known(store: JobStore, owner: str, caller: Principal) -> None:
    """An owner is one who has keys or jobs, so that a slip of the pen gives nobody a quota."""
    if not caller.is_operator or not gpu_hours.is_owner(store.calls, owner):
        raise not_found("no such owner: it has neither keys nor jobs")


def hours_document(hours: GpuHours) -> dict[str, Any]:
    return {"quota": hours.quota, "used": hours.used, "renews_at": hours.renews_at}


def _document(owner: str, hours: GpuHours) -> dict[str, Any]:
    return {"object": "quota", "owner": owner, "gpu_hours": hours_document(hours)}
