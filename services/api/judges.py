"""The operator's judges, which a spec may name: names alone, never where they are."""

from __future__ import annotations

import logging

from fastapi import APIRouter
from starlette.responses import Response

from rewards.judges import profiles
from services.deps import page
from services.errors import ApiProblem, StrictJSONResponse
from services.query import StrictRoute

router = APIRouter(prefix="/v1/judges", tags=["judges"], route_class=StrictRoute)

log = logging.getLogger(__name__)


@router.get("")
def list_judges() -> Response:
    """What `options.profile` of the reward `judge` may be on this server."""
    try:
        names = profiles.names()
    except profiles.ProfileFileError as error:
        log.warning("%s", error.detail)
        raise ApiProblem(500, "judges_broken", str(error)) from None
    return StrictJSONResponse(page([{"object": "judge", "name": name} for name in names], has_more=False))
