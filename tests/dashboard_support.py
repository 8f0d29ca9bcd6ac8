"""The dashboard's pages without a server: a job that a fake client tells of, and what a person sees and presses."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from nicegui import Client, core
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.page import page as Page

from services.client import StaleVersion
from services.dashboard.elements import Button, Tag
from services.dashboard.panels import JobPage
from services.dashboard.watch import JobWatch

NAMES = ("accuracy", "brevity")
ALL: Any = frozenset({"job", "steps", "events", "front", "steering", "checkpoints", "connection"})


class FakeApi:
    """One job whose parts a test changes as it likes; `failing` is raised by the calls that it names."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.listed: list[dict[str, Any]] = []  # the filters of each list of jobs
        self.forks: list[dict[str, Any]] = []  # what was asked for
        self.keys: list[str | None] = []  # of idempotency, in the order of the calls
        self.failing: dict[str, Exception] = {}
        self.moves = True  # every look finds another step
        self.newest: dict[str, Any] = {}  # what a step's record has besides its number
        self.told: dict[str, Any] = {
            "id": "job-1", "name": "a job", "status": "running", "reason": None, "step": 0, "total_steps": 100,
            "progress": {}, "created_at": 0.0, "started_at": 0.0, "finished_at": None, "attempts": 1,
            "checkpoint_step": None, "lineage": None, "spec": {"objectives": [{"name": name} for name in NAMES]},
        }  # fmt: skip
        self.happened: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.hypervolume: float | None = None
        self.kept: list[int] = []  # steps that have a checkpoint
        self.stored = 4  # rollouts of every step
        self.steered: dict[str, Any] = {
            "version": 1, "mode": "auto", "blend": 0.5, "weights": dict.fromkeys(NAMES, 0.5),
            "bounds": {name: [0.0, 1.0] for name in NAMES}, "strategy": None, "log": [], "log_has_more": False,
        }  # fmt: skip

    async def _called(self, name: str) -> None:
        self.asked[name] += 1
        if name in self.failing:
            raise self.failing[name]
        await asyncio.sleep(0)

    async def jobs(self, **filters: Any) -> dict[str, Any]:
        await self._called("jobs")
        self.listed.append(filters)
        return {"data": [self.told], "has_more": False}

    async def job(self, _: str) -> dict[str, Any]:
        await self._called("job")
        return dict(self.told)

    async def events(self, _: str, *, after: int, **__: Any) -> dict[str, Any]:
        await self._called("events")
        happened = [{"level": "info", **event} for event in self.happened if event["seq"] > after]
        return {"data": happened, "has_more": False}

    async def metrics(self, _: str, *, after: int, **__: Any) -> dict[str, Any]:
        await self._called("metrics")
        if not self.moves:
            return {"data": [], "has_more": False}
        self.told["step"] = after + 1
        return {"data": [{"step": after + 1, "at": 0.0, **self.newest}], "has_more": False}

    async def front(self, _: str) -> dict[str, Any]:
        await self._called("front")
        return {
            "points": list(self.points), "reference": {}, "initial": {}, "hypervolume": self.hypervolume,
            "hypervolume_base": None, "hypervolume_by_step": [],
        }  # fmt: skip

    async def checkpoints(self, _: str) -> dict[str, Any]:
        await self._called("checkpoints")
        return {"data": [{"step": s, "path": f"/{s}", "on_front": True, "metrics": {}} for s in self.kept]}

    async def steering(self, _: str, **__: Any) -> dict[str, Any]:
        await self._called("steering")
        return {**self.steered, "log": list(self.steered["log"])}

    async def steer(self, _: str, *, if_match: int, **change: Any) -> dict[str, Any]:
        await self._called("steer")
        if if_match != self.steered["version"]:
            raise StaleVersion(412, "stale_version", "someone steered meanwhile")
        return self.take(change, by="me")

    async def rollouts(self, _: str, *, step: int | None, sort: str | None, after: int = 0) -> dict[str, Any]:
        """As many as `stored` says, of the newest step; accuracy rises with the number, and brevity falls."""
        await self._called("rollouts")
        rows = [
            {"number": i, "step": step, "group": i // 4, "prompt": "p", "completion": "c", "advantage": 0.0,
             "tokens": 9, "rewards": {"accuracy": i / 1e4, "brevity": -i / 1e4}}
            for i in range(1, self.stored + 1)
        ]  # fmt: skip
        if sort is not None:
            key = sort.removeprefix("-")
            rows.sort(key=lambda row: row["rewards"][key], reverse=sort.startswith("-"))  # type: ignore[index]
        more = len(rows) > after + 100
        return {"data": rows[after : after + 100], "has_more": more, "step": step or self.told["step"],
                "total": len(rows)}  # fmt: skip

    async def preview(self, _: str, **change: Any) -> dict[str, Any]:
        await self._called("preview")
        weights = {"before": self.steered["weights"], "after": change["weights"]}
        signs = {"count": 0, "share": 0.0}
        return {"rollouts": 4, "step": 1, "sign_changes": signs, "weights": weights, "effective_share": weights,
                "clamped": {}, "pairs": []}  # fmt: skip

    def take(self, change: dict[str, Any], by: str) -> dict[str, Any]:
        """A change of the steering, which takes effect two steps on."""
        version, step = self.steered["version"] + 1, self.told["step"] + 2
        entry = {"version": version, "effective_step": step, "by": by, "change": change, "at": 0.0}
        self.steered = {**self.steered, **change, "version": version, "log": [*self.steered["log"], entry]}
        return {"version": version, "effective_step": step}

    async def fork(self, _: str, *, idempotency_key: str | None = None, **wanted: Any) -> dict[str, Any]:
        self.keys.append(idempotency_key)
        self.forks.append(wanted)
        await self._called("fork")
        return {"data": [{"id": "job-2"}]}

    async def submit(self, _: Any, *, idempotency_key: str | None = None) -> dict[str, Any]:
        self.keys.append(idempotency_key)
        await self._called("submit")
        return {"id": "job-2"}

    async def pause(self, _: str, **__: Any) -> None:
        await self._called("pause")

    async def cancel(self, _: str) -> None:
        await self._called("cancel")

    async def aclose(self) -> None:
        await self._called("aclose")


class FakeSession:
    """Of a key that may do everything."""

    def __init__(self) -> None:
        self.client: Any = FakeApi()
        self.shared: dict[str, Any] = {}
        self.ending: list[Any] = []
        self.pages: set[str] = set()
        self.key = {"owner": "me", "name": "mine", "scopes": ["read", "submit", "steer"]}
        self.is_over, self.why = False, ""

    def may(self, scope: str) -> bool:
        return scope in self.key["scopes"]

    async def end(self, why: str = "") -> None:
        self.is_over, self.why = True, why


def on_page(test: Callable[[Any, Client], Coroutine[Any, Any, None]]) -> None:
    """Runs it with a session inside a page that nobody has open."""

    async def run() -> None:
        core.loop = asyncio.get_running_loop()
        asked = {"type": "http", "path": "/nowhere", "query_string": b"like=job-1", "headers": []}
        with Client(Page("/nowhere"), request=Request(asked)) as client:
            try:
                await test(FakeSession(), client)
            finally:
                client.delete()

    asyncio.run(run())


async def job_page(session: Any, client: Client) -> JobPage:
    """What the panels share, once the watch has looked."""
    for _ in range(3):  # what is around every page: the header of a job is put after it
        Tag("div")
    watch = await JobWatch.of(session, "job-1")
    await watch._fetch()
    return JobPage(session, watch, client)


def texts(element: Element) -> str:
    """All that it says, in order."""
    return "\n".join(part.text for part in element.descendants(include_self=True) if isinstance(part, TextElement))


def buttons(within: Client | Element, name: str) -> list[Button]:
    found = within.elements.values() if isinstance(within, Client) else within.descendants()
    return [element for element in found if isinstance(element, Button) and element.text == name]


def button(within: Client | Element, name: str) -> Button:
    """The one that was made last."""
    return buttons(within, name)[-1]


def is_enabled(one: Button) -> bool:
    return "disabled" not in one.props


async def press(one: Button, times: int = 1) -> None:
    """As fast as a hand can: every click has left the browser before it hears what came of the first."""

    async def answered(waiting: Any) -> None:
        with one.client:
            await waiting

    handlers: list[Any] = [listener.handler for listener in one._event_listeners.values()]
    running = [handler(None) for _ in range(times) for handler in handlers]
    await asyncio.gather(*(answered(waiting) for waiting in running if waiting is not None))


def opened(client: Client) -> list[str]:
    """The addresses that the page was sent to."""
    return [data["path"] for _, kind, data in client.outbox.messages if kind == "open"]


def notes(client: Client) -> list[str]:
    """The passing notes that wait to be shown."""
    return [data["message"] for _, kind, data in client.outbox.messages if kind == "notify"]
