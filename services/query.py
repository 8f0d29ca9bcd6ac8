"""What the query of a request may say: known parameters, each once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_origin

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from orchestrator.spec_errors import nearest
from services.errors import ApiProblem


class StrictRoute(APIRoute):
    """Refuses a parameter that the route does not have, and one that is given twice: neither would do anything.

    A route, not a dependency, as those cost every request, whether it has a query or not.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known, lists = self._known()

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                _check([name for name, _ in request.query_params.multi_items()], known, lists)
            return await handle(request)

        return checked

    def _known(self) -> tuple[list[str], set[str]]:
        """Of the models that handlers take their queries as, and what a handler reads itself (openapi_extra).

        With those that may be given several times.
        """
        lists: set[str] = set()
        known = [one["name"] for one in (self.openapi_extra or {}).get("parameters", ()) if one["in"] == "query"]
        for parameter in self.dependant.query_params:
            model: Any = parameter.field_info.annotation
            assert issubclass(model, BaseModel), f"{self.path}: take the query as a model"
            known += model.model_fields
            lists |= {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}
        return known, lists


def _check(given: list[str], known: list[str], lists: set[str]) -> None:
    seen: set[str] = set()
    for name in given:
        if name.partition("[")[0] not in known:
            hint = nearest(name, known) or (f"; there are {', '.join(known)}" if known else "; this takes none")
            raise ApiProblem(422, "unknown_parameter", f"{name}: unknown parameter{hint}", param=name)
        if name in seen and name not in lists:
            raise ApiProblem(422, "invalid_parameter", f"{name}: given twice; give it once", param=name)
        seen.add(name)
