"""Several jobs on one plot: their fronts, their hypervolumes, and which was forked from which."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request
from nicegui import ui

from services.client import ApiError, NotFound
from services.client.flows import FINAL
from services.client.types import Comparison, Front, JobDetail
from services.dashboard import charts
from services.dashboard.elements import Button, Chart, Choice, Field, Moment, Table, Tag, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import figure
from services.dashboard.frame import failed, frame, session_of
from services.dashboard.job_front import scales_of
from services.dashboard.sessions import Session
from services.dashboard.watch import trains_reward

MOST = 8  # as many as there are colours
OFFERED = 50


async def page(request: Request, ids: str = "") -> Any:
    """`/compare?ids=one,other`; without ids, the choice of them."""
    session = session_of(request)
    asked = [part for part in dict.fromkeys(ids.split(",")) if part]
    wanted = asked[:MOST]
    with frame(session, "Compare", "/compare"):
        try:
            offered = (await session.client.jobs(limit=OFFERED))["data"]
            looked = await asyncio.gather(*(_detail(session, job_id) for job_id in wanted))
            details = [job for job in looked if job is not None]
            gone = [job_id for job_id, job in zip(wanted, looked, strict=True) if job is None]
            without = [job["name"] for job in details if trains_reward(job["spec"])]
            shown = [] if without else [job["id"] for job in details]
            found = await session.client.compare(shown) if shown else None
            fronts = await asyncio.gather(*(session.client.front(job_id) for job_id in shown))
        except ApiError as error:
            return await failed(session, error)
        with Tag("div", "", "title-row"):
            Tag("h1", "Compare jobs")
            if any(job["status"] not in FINAL for job in details):
                _tell_age(ids)
        _Choose(offered, [job["id"] for job in details])
        if gone:
            with Tag("section", "", "card", role="alert"):
                Tag("h2", "Not found")
                rest = " The others are compared." if shown else ""
                text(f"{', '.join(gone)}: deleted, or another owner's.{rest}", tag="p")
        if left := asked[MOST:]:
            with Tag("section", "", "card", role="note"):
                text(f"At most {MOST} jobs are compared at once. Left out: {', '.join(left)}.", tag="p")
        for name in without:
            with Tag("section", "", "card", role="note"):
                text(f"{name} trains a reward model, which has no front to compare: take it out above.", tag="p")
        if found is not None:
            _Plots(found, dict(zip(shown, fronts, strict=True)))
            await _tree(session, details)
    return None


async def _detail(session: Session, job_id: str) -> JobDetail | None:
    """None of a job that is not there."""
    try:
        return await session.client.job(job_id)
    except NotFound:
        return None


def _tell_age(ids: str) -> None:
    """This page is as it was when it was loaded."""
    with Tag("span", "", "muted"):
        text("as of ")
        Moment(time.time())
        text(", not live: ")
        Tag("a", "load it again", href=f"/compare?ids={quote(ids, safe=',')}")


class _Choose:
    """Which jobs; the address then names them, so that it can be kept and sent."""

    def __init__(self, offered: Sequence[Any], wanted: list[str]) -> None:
        self._chosen = list(wanted)
        self._client = ui.context.client
        rows = [
            {
                "id": job["id"],
                "name": job["name"],
                "job": {"id": job["id"], "text": job["name"]},
                "status": job["status"],
                "step": job["step"],
                "created": job["created_at"],
            }
            for job in offered
        ]
        columns: list[dict[str, Any]] = [
            {"key": "job", "label": "Job", "kind": "link"},
            {"key": "id", "label": "Id", "kind": "code"},
            {"key": "status", "label": "State", "kind": "status"},
            {"key": "step", "label": "Step", "kind": "number"},
            {"key": "created", "label": "Created", "kind": "time"},
        ]
        with Tag("details", "", "card chooser", open=None if len(wanted) > 1 else True):
            Tag("summary", f"Which jobs ({MOST} at most)")
            with Tag("div", "", "filters"):
                self._more = Field("Another by its id", placeholder="job-...", on_change=self._typed)
                self._go = Button("Compare", self._open, "main")
                self._words = text("", "muted").attributes(role="status")
            self._table = Table(
                columns, caption="Jobs to compare", rows=rows, pick="Add", on_pick=self._pick, chosen=list(wanted)
            )
        self._show()

    def _pick(self, job_id: str) -> None:
        if job_id in self._chosen:
            self._chosen.remove(job_id)
        elif len(self._chosen) < MOST:
            self._chosen.append(job_id)
        self._show()

    def _typed(self) -> None:
        job_id = self._more.value.strip()
        if job_id and job_id not in self._chosen:
            self._pick(job_id)

    def _show(self) -> None:
        self._table.change(chosen=list(self._chosen))
        self._words.set_text(f"{len(self._chosen)} chosen")
        self._go.enable(bool(self._chosen), "choose jobs first")

    def _open(self) -> None:
        self._client.open(f"/compare?ids={','.join(self._chosen)}")


class _Plots:
    """Fronts of a pair, hypervolume over steps, and the figures."""

    def __init__(self, found: Comparison, fronts: Mapping[str, Front]) -> None:
        self._jobs: list[dict[str, Any]] = [
            {
                "label": f"{job['name'][:40]} ({job['id'][-6:]})",
                "front": _with_errors(job["front"], fronts[job["id"]]),
                "growth": fronts[job["id"]]["hypervolume_by_step"],
                "scales": scales_of(fronts[job["id"]]),
            }
            for job in found["data"]
        ]
        self._found = found
        names = found["objectives"]
        pairs = {f"{x}|{y}": f"{x} and {y}" for x, y in charts.pairs(names)}
        if not found["comparable"]:
            with Tag("section", "", "card", role="note"):
                Tag("h2", "These have no common scale")
                for line in found["differences"][:10]:
                    text(line, "muted", "p")
        if unlike := found.get("measured_differently"):
            with Tag("section", "", "card", role="note"):
                Tag("h2", "These are measured differently")
                text("The figures below are of one scale, and yet don't compare the policies alone:", tag="p")
                for line in unlike[:10]:
                    text(line, "muted", "p")
        if changed := found.get("set_differently"):
            with Tag("section", "", "card", role="note"):
                Tag("h2", "These differ in")
                for line in changed[:20]:
                    text(line, "muted", "p")
        volume = "Hypervolume" if found["comparable"] else "Hypervolume, on its own scale"
        x, y = charts.pairs(names)[0] if len(names) > 1 else (names[0], names[0])
        with Tag("section", "", "card", aria_label="Fronts and hypervolumes"):
            with Tag("div", "", "section-head"):
                Tag("h2", "Fronts")
                if found["hypervolume"] is not None:
                    text(f"all together reach a hypervolume of {figure(found['hypervolume'])}", "muted")
                if len(pairs) > 1:
                    with Tag("div", "", "section-tools"):
                        Choice("Pair", pairs, f"{x}|{y}", self._choose, hidden=True)
            with Tag("div", "", "two-charts"):
                shown = any(job["front"] for job in self._jobs)
                grown = any(job["growth"] for job in self._jobs)
                empty = "None of them has been evaluated yet."
                self._fronts = Chart(
                    "Fronts", charts.fronts(x, y, self._jobs), label="Fronts of the jobs", height=360, empty=empty
                )
                self._fronts.change(full=shown)
                if found["comparable"]:
                    volumes = charts.hypervolumes(self._jobs)
                    Chart("Hypervolume", volumes, label="Hypervolume by step", height=360, empty=empty, full=grown)
            self._absent = text("", "muted", "p")
            self._tell_absent(x, y)
            self._table = Table(
                [
                    {"key": "job", "label": "Job", "kind": "link"},
                    {"key": "status", "label": "State", "kind": "status"},
                    {"key": "step", "label": "Step", "kind": "number"},
                    {"key": "volume", "label": volume, "kind": "number"},
                    {"key": "adds", "label": "Adds to the others", "kind": "number"},
                    {"key": "points", "label": "Points on its front", "kind": "number"},
                ],
                caption="Jobs compared",
                on_csv=self._save,
                rows=[
                    {
                        "id": job["id"],
                        "name": job["name"],
                        "job": {"id": job["id"], "text": job["name"]},
                        "status": job["status"],
                        "step": job["step"],
                        "volume": job["hypervolume"],
                        "adds": job["adds"],
                        "points": len(job["front"]),
                    }
                    for job in found["data"]
                ],
            )

    def _choose(self, value: str) -> None:
        x, _, y = value.partition("|")
        self._fronts.merge(charts.fronts(x, y, self._jobs), replace=True)
        self._tell_absent(x, y)

    def _tell_absent(self, x: str, y: str) -> None:
        """Jobs that were evaluated, and have other objectives."""
        pair = {x, y}
        absent = [
            str(job["label"]) for job in self._jobs if job["front"] and not pair <= job["front"][0]["objectives"].keys()
        ]
        self._absent.set_text(f"Not drawn, as they have other objectives: {', '.join(absent)}." if absent else "")

    def _save(self) -> None:
        rows = [
            [row["id"], row["name"], row["status"], row["step"], row["volume"], row["adds"], row["points"]]
            for row in self._table.rows
        ]
        header = ["id", "name", "state", "step", "hypervolume", "adds", "points"]
        ui.download.content(csv_text(header, rows), "comparison.csv", "text/csv")


def _with_errors(points: Sequence[Mapping[str, Any]], front: Front) -> list[dict[str, Any]]:
    """A comparison's points with their standard errors, which the job's own front has."""
    errors = {point["step"]: point.get("standard_errors") for point in front["points"]}
    return [{**point, "standard_errors": errors.get(point["step"])} for point in points]


async def _tree(session: Session, details: Sequence[JobDetail]) -> None:
    """The jobs and those that they come from, each below its parent."""
    known: dict[str, JobDetail] = {job["id"]: job for job in details}
    for job in details:
        parent = job["lineage"]
        while parent is not None and parent["parent"] not in known and len(known) < 64:
            try:
                found = await session.client.job(parent["parent"])
            except ApiError:  # it is gone, or was another owner's
                break
            known[found["id"]] = found
            parent = found["lineage"]
    children: dict[str | None, list[JobDetail]] = {}
    for job in known.values():
        origin = job["lineage"]["parent"] if job["lineage"] and job["lineage"]["parent"] in known else None
        children.setdefault(origin, []).append(job)
    with Tag("section", "", "card", aria_label="Forks"):
        with Tag("div", "", "section-head"):
            Tag("h2", "Forks")
            text("which came from which", "muted")
        _branch(children, None, {job["id"] for job in details})


def _branch(children: Mapping[str | None, Sequence[JobDetail]], parent: str | None, asked: set[str]) -> None:
    if parent not in children:
        return
    with Tag("ul", "", "tree"):
        for job in children[parent]:
            with Tag("li", "", ""):
                Tag("a", job["name"], href=f"/jobs/{job['id']}", dir="auto")
                origin = f", from step {job['lineage']['step']}" if job["lineage"] else ""
                text(f" {job['status']}, step {job['step']:,}{origin}", "muted" if job["id"] in asked else "faint")
                _branch(children, job["id"], asked)
