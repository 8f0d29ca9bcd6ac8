"""So many at once, fewer for one owner; a place is given back however its request ends."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams

from services import job_requests
from services.api import datasets as datasets_api
from services.api import events as events_api
from services.api import fork as fork_api
from services.api import jobs as jobs_api
from services.api import results as results_api
from services.api import rewards as rewards_api
from services.api import steering as steering_api
from services.errors import ApiProblem
from services.slots import place


def test_places_are_counted_by_owner_and_in_all_and_given_back() -> None:
    take = place("forks", at_once=3, of_owner=2).dependency
    request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(places={})))

    async def story() -> None:
        async def enter(owner: str) -> Any:
            held = take(request, SimpleNamespace(owner=owner))
            await anext(held)
            return held

        first, second = await enter("ann"), await enter("ann")
        with pytest.raises(ApiProblem) as caught:
            await enter("ann")
        assert (caught.value.status, caught.value.code) == (429, "busy")
        assert int(caught.value.headers["retry-after"]) > 0
        assert "ann" not in caught.value.message
        third = await enter("bob")
        with pytest.raises(ApiProblem):
            await enter("cyd")
        with pytest.raises(ValueError, match="it broke"):
            await first.athrow(ValueError("it broke"))
        fourth = await enter("cyd")
        for held in (second, third, fourth):
            await held.aclose()

    anyio.run(story)
    assert request.app.state.places == {"forks": Counter()}


def test_a_list_by_metadata_takes_a_place_and_another_none() -> None:
    app = SimpleNamespace(state=SimpleNamespace(places={}))

    async def story() -> None:
        async def ask(**query: str) -> Any:
            request: Any = SimpleNamespace(app=app, query_params=QueryParams(query))
            asked = job_requests.wanted_metadata(request, SimpleNamespace(owner="ann"))  # type: ignore[arg-type]
            return asked, await anext(asked)

        under_way = [await ask(**{"metadata[a]": "b", "limit": "1"}) for _ in range(2)]
        assert [wanted for _, wanted in under_way] == [{"a": "b"}] * 2
        with pytest.raises(ApiProblem, match="enough at once"):
            await ask(**{"metadata[a]": "b"})
        assert (await ask(limit="1"))[1] == {}
        for asked, _ in under_way:
            await asked.aclose()

    anyio.run(story)
    assert app.state.places == {"filtered lists": Counter()}


def test_a_dry_run_takes_a_place_and_a_submission_that_says_it_is_none_does_not() -> None:
    app = SimpleNamespace(state=SimpleNamespace(places={}))

    async def taken(**query: str) -> int:
        request: Any = SimpleNamespace(app=app, query_params=QueryParams(query))
        asked = jobs_api._place(request, SimpleNamespace(owner="ann"))  # type: ignore[arg-type]
        await anext(asked)
        found = app.state.places.get("dry runs of jobs", Counter())["ann"]
        await asked.aclose()
        return found

    for value, places in (("true", 1), ("1", 1), ("false", 0), ("False", 0), ("0", 0)):
        assert anyio.run(lambda value=value: taken(validate_only=value)) == places, value
    assert anyio.run(taken) == 0


def test_a_place_is_taken_after_all_else_is_known() -> None:
    """A body that trickles in would hold one; what is refused needs none."""
    with_place = []
    for module in (datasets_api, events_api, fork_api, jobs_api, results_api, rewards_api, steering_api):
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            names = [getattr(needed.call, "__qualname__", "") for needed in route.dependant.dependencies]
            places = [name in ("place.<locals>.take", "_place") for name in names]
            assert not any(places[:-1]), (route.path, names)
            with_place += [route.path] * any(places)
    assert len(with_place) >= 11, with_place
