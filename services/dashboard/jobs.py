"""All jobs of the key's owner: how each is doing, at a glance."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from nicegui import ui

from services.client import ApiError, AuthenticationError, Conflict
from services.client.flows import FINAL
from services.client.types import Job
from services.dashboard.elements import Button, Choice, Field, Table, Tag, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import span
from services.dashboard.frame import BY_ITSELF, failed, frame, problem, session_of
from services.dashboard.series import Columns, Value, rows
from services.dashboard.sessions import Session
from services.dashboard.watch import figures

POLL_S = 2.0
PAGE = 25
SPARK_STEPS = 100  # the newest
_STATES = ("running", "queued", "paused", "succeeded", "failed", "cancelled")
_NO_DETAILS: dict[str, Any] = {"total": None, "objectives": [], "hypervolume": None, "weights": []}
_COLUMNS: list[dict[str, Any]] = [
    {"key": "job", "label": "Job", "kind": "link"},
    {"key": "status", "label": "State", "kind": "status"},
    {"key": "reason", "label": "Why", "kind": "text"},
    {"key": "progress", "label": "Progress", "kind": "progress"},
    {"key": "objectives", "label": "Objectives", "kind": "sparks"},
    {"key": "hypervolume", "label": "Hypervolume", "kind": "number"},
    {"key": "weights", "label": "Weights now", "kind": "mix"},
    {"key": "by", "label": "Submitted by", "kind": "text"},
    {"key": "created", "label": "Created", "kind": "time"},
]


class JobList:
    """What the table shows; details of a job are read again when it has moved."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.status, self.name, self.by, self.after = "", "", "", [""]  # the last of `after` is the page's cursor
        self.has_more, self.next_after = False, ""
        self._details: dict[str, tuple[Any, dict[str, Any]]] = session.shared.setdefault("job details", {})

    async def read(self) -> list[dict[str, Any]]:
        status: Any = self.status or None
        page = await self._session.client.jobs(
            after=self.after[-1] or None, limit=PAGE, status=status, submitted_by=self.by or None
        )
        self.has_more = page["has_more"]
        self.next_after = str(page.get("next_after") or (page["data"][-1]["id"] if page["data"] else ""))
        wanted = [job for job in page["data"] if self.name.lower() in f"{job['name']} {job['id']}".lower()]
        return list(await asyncio.gather(*(self._row(job) for job in wanted)))

    async def _row(self, job: Job) -> dict[str, Any]:
        state = (job["status"], job["step"])
        known = self._details.get(job["id"])
        if known is None or known[0] != state:
            try:
                known = self._details[job["id"]] = (state, await self._details_of(job))
            except AuthenticationError:
                raise
            except ApiError:  # this row has the details that were known, if any, and is asked for again
                known = known or (state, _NO_DETAILS)
        step, total = job["step"], job["total_steps"] or known[1]["total"]
        left = job["progress"].get("eta_s") if job["status"] not in FINAL else None
        words = f"{step:,} of {total:,}" if total else f"{step:,}"
        return {
            "id": job["id"],
            "name": job["name"],
            "job": {"id": job["id"], "text": job["name"]},
            "status": job["status"],
            "reason": job["reason"] or (None if job["status"] in FINAL else job["progress"].get("stage")),
            "progress": {
                "text": f"{words}, {span(left)} left" if left else words,
                "share": step / total if total else 0,
            },
            "by": job.get("submitted_by"),
            "created": job["created_at"],
            **{key: known[1][key] for key in ("objectives", "hypervolume", "weights")},
        }

    async def _details_of(self, job: Job) -> dict[str, Any]:
        client, step = self._session.client, job["step"]
        hypervolume, steps = await asyncio.gather(
            self._hypervolume(job["id"]),
            client.metrics(job["id"], after=max(0, step - SPARK_STEPS), names=("objectives", "weights")),
        )
        columns, newest = Columns(), {}
        for record in steps["data"]:
            columns.append(record["step"], figures(record))
            newest = record
        total = job["total_steps"]
        if not total or not newest:
            detail = await client.job(job["id"])
            total = detail["total_steps"]
        names = list(newest.get("objectives") or {})
        drawn = rows(columns, [f"{name}.mean" for name in names], most=32)
        return {
            "total": total,
            "objectives": [
                {"name": name, "values": [row[i + 1] for row in drawn], "now": _newest(columns.values[f"{name}.mean"])}
                for i, name in enumerate(names)
            ],
            "hypervolume": hypervolume,
            "weights": [
                {"name": name, "weight": weight}
                for name, weight in (newest.get("weights") or {}).get("applied", {}).items()
            ],
        }

    async def _hypervolume(self, job_id: str) -> float | None:
        """None also of a job that trains a reward model."""
        try:
            return (await self._session.client.front(job_id))["hypervolume"]
        except Conflict:
            return None


async def page(request: Request) -> Any:
    """`/`"""
    session = session_of(request)
    jobs = JobList(session)
    with frame(session, "Jobs", "/") as client:
        try:
            found = await jobs.read()
        except ApiError as error:
            return await failed(session, error)
        shown = JobsPage(session, jobs, found)

    async def follow() -> None:
        while not client.is_deleted and not session.is_over:
            await asyncio.sleep(POLL_S)
            if client.has_socket_connection:
                with client:
                    await shown.refresh()

    client.on_connect(_once(follow))
    return None


class JobsPage:
    """The table, and what chooses among its rows."""

    def __init__(self, session: Session, jobs: JobList, found: list[dict[str, Any]]) -> None:
        self._session, self._jobs = session, jobs
        self._asked, self._newest = itertools.count(), -1
        with Tag("div", "", "title-row"):
            Tag("h1", "Jobs")
            self._banner = text("", "banner").attributes(role="status")
        with Tag("div", "", "filters"):
            Choice("State", {"": "all states"} | {name: name for name in _STATES}, "", self._choose)
            self._name = Field("Name or id on this page", on_change=self._typed, placeholder="any")
            self._by = Field("Submitted by", on_change=self._typed_by, placeholder="a key's name")
            with Tag("div", "", "filters-end"):
                self._newer = Button("Newer", lambda: self._turn(-1), "quiet")
                self._older = Button("Older", lambda: self._turn(1), "quiet")
        self._table = Table(
            _COLUMNS, caption="Jobs", rows=found, empty=_empty(session, jobs), on_csv=lambda: _save(self._table)
        ).classes("jobs-table")
        text("", "updated").attributes(aria_hidden="true")
        self._show_pager()

    async def refresh(self) -> None:
        mine = next(self._asked)
        try:
            shown = await self._jobs.read()
        except AuthenticationError:
            await self._session.end("key")
            return
        except ApiError as error:
            self._banner.set_text(problem(error, BY_ITSELF))
            return
        if mine < self._newest:  # of another filter, and late
            return
        self._newest = mine
        self._banner.set_text("")
        self._table.change(rows=shown, empty=_empty(self._session, self._jobs))
        self._show_pager()

    def _show_pager(self) -> None:
        self._newer.enable(len(self._jobs.after) > 1)
        self._older.enable(self._jobs.has_more)

    async def _choose(self, status: str) -> None:
        self._jobs.status, self._jobs.after = status, [""]
        await self.refresh()

    async def _typed(self) -> None:
        self._jobs.name = self._name.value.strip()
        await self.refresh()

    async def _typed_by(self) -> None:
        self._jobs.by, self._jobs.after = self._by.value.strip(), [""]
        await self.refresh()

    async def _turn(self, step: int) -> None:
        if step > 0:
            self._jobs.after.append(self._jobs.next_after)
        elif len(self._jobs.after) > 1:
            self._jobs.after.pop()
        await self.refresh()


def _newest(values: Sequence[Value]) -> Value:
    """The last that is known: not every objective is scored at every step."""
    return next((value for value in reversed(values) if value is not None), None)


def _once(start: Any) -> Any:
    """A task that a reconnection does not start again."""
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        if not tasks:
            tasks.append(asyncio.create_task(start()))

    return begin


def _empty(session: Session, jobs: JobList) -> str:
    if jobs.status or jobs.name or jobs.by:
        return "No job on this page is like that."
    return "No jobs yet. Submit one, or run `equipoise demo`." if session.may("submit") else "No jobs yet."


def _save(table: Table) -> None:
    header = ["id", "name", "state", "reason", "progress", "hypervolume", "weights", "submitted by", "created"]
    rows_ = [
        [
            row["id"],
            row["name"],
            row["status"],
            row["reason"],
            row["progress"]["text"],
            row["hypervolume"],
            "; ".join(f"{part['name']}={part['weight']:.4g}" for part in row["weights"]),
            row["by"],
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["created"])),
        ]
        for row in table.rows
    ]
    ui.download.content(csv_text(header, rows_), "jobs.csv", "text/csv")
