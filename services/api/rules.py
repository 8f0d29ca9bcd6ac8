"""The rules that a spec may name, as the CLI's `rules` shows them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from orchestrator.rules import RuleKind, find_rules, rules
from orchestrator.spec_errors import nearest
from services.deps import page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute

router = APIRouter(prefix="/v1/rules", tags=["rules"], route_class=StrictRoute)


class RuleList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    kind: RuleKind | None = None


@router.get("")
def list_rules(query: Annotated[RuleList, Query()]) -> Response:
    """Every rule, by kind; plug-ins of this server are among them, by name alone."""
    return StrictJSONResponse(page([dataclasses.asdict(rule) for rule in rules(query.kind)], has_more=False))


@router.get("/{name}")
def get_rule(name: str) -> Response:
    """The rules of that name: one, or several of different kinds."""
    try:
        found = find_rules(name)
    except ValueError:  # its message repeats the name, which is for the CLI
        hint = nearest(name, [rule.name for rule in rules()]) or "; GET /v1/rules lists all"
        raise not_found(f"no such rule{hint}") from None
    except RuntimeError as error:  # a plug-in that does not load; its name is in the message
        raise ApiProblem(500, "plugin_broken", str(error)) from error
    return StrictJSONResponse(page([dataclasses.asdict(rule) for rule in found], has_more=False))
