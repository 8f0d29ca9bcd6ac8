"""What the policy wrote: prompts and completions of a step with every reward, the ones in conflict first if asked."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

from nicegui import background_tasks, ui

from services.client import ApiError, NotFound
from services.client.types import Rollout
from services.dashboard.elements import Button, Choice, Field, Table, Tag, say, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import figure
from services.dashboard.frame import problem
from services.dashboard.panels import JobPage, section
from services.dashboard.rollout_rows import by_group, ordered, prompt_text
from services.dashboard.watch import News

SHOWN = 100  # rows of the table
MOST = 1000  # rollouts that are read of a step
FOLLOW_S = 5.0  # at least, between two looks for a newer step


class RolloutsPanel:
    """A table of one step, as groups or one by one."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        page.show_rollouts = self.show
        self._step: int | None = None
        self._sort, self._view, self._pair = "", "each", ""
        self._all: list[Rollout] = []
        self._shown_step: int | None = None
        self._total = 0  # kept of that step; `_all` may be fewer
        self._reads = itertools.count(1)
        self._newest_read = 0
        self._follow_at = 0.0
        self._chosen: str | None = None  # the id of its row
        with section("Rollouts") as tools:
            with tools:
                self._asked = Field("Step", placeholder="latest", on_change=self._asked_step)
                Choice("Order", {"": "as stored"} | _orders(page.names), "", self._choose_order)
                Choice("View", {"each": "one by one", "groups": "by prompt"}, "each", self._choose_view)
                Button("Latest", self._latest)
            self._words = text("", "muted", "p")
            self._heard = text("", "unseen").attributes(role="status")  # by who listens: what was asked for alone
            self._table = Table(
                self._columns(),
                caption="Rollouts of the step",
                pick="Open",
                on_pick=self._open,
                on_sort=self._sorted,
                on_csv=self._save,
                loading=True,
                empty="No rollouts are kept yet.",
            )
            self._detail = Tag("div", "", "rollout-place", aria_live="polite")
        self._is_started = False

    async def update(self, news: News) -> None:
        if "steps" in news and not self._is_started and self.page.watch.loaded:
            self._is_started = True
            await self._read()
        elif "steps" in news and not self._all and self.page.watch.columns.last:
            await self._read()
        elif "steps" in news and self._is_following() and time.monotonic() >= self._follow_at:
            self._follow_at = math.inf  # until this look is over
            background_tasks.create(self._follow(), name="rollouts of a newer step")

    def _is_following(self) -> bool:
        """A step that was asked for stays, and so does the latest while a rollout of it is open."""
        return self._step is None and self._chosen is None

    async def _follow(self) -> None:
        """Large steps take long to read: then it looks more seldom."""
        began = time.monotonic()
        try:
            with self.page.client:
                await self._read(is_following=True)
        finally:
            now = time.monotonic()
            self._follow_at = now + max(FOLLOW_S, 20 * (now - began))

    def _columns(self) -> list[dict[str, Any]]:
        if self._view == "groups":
            means = [{"key": f"r.{n}", "label": f"{n}, mean", "kind": "number"} for n in self.page.names]
            return [
                {"key": "group", "label": "Group", "kind": "number"},
                {"key": "prompt", "label": "Prompt", "kind": "long"},
                {"key": "count", "label": "Rollouts", "kind": "number"},
                *means,
                {"key": "spread", "label": "Widest spread", "kind": "number"},
            ]
        each = [{"key": f"r.{n}", "label": n, "kind": "number", "sortable": True} for n in self.page.names]
        return [
            {"key": "group", "label": "Group", "kind": "number"},
            {"key": "prompt", "label": "Prompt", "kind": "long"},
            {"key": "completion", "label": "Completion", "kind": "long"},
            *each,
            {"key": "advantage", "label": "Advantage", "kind": "number", "sortable": True},
            {"key": "tokens", "label": "Tokens", "kind": "number", "sortable": True},
            {"key": "versions", "label": "Policy / weights"},
        ]

    async def show(self, step: int | None) -> None:
        """Another part of the page asks for a step."""
        self._step = step
        self._asked.set("" if step is None else str(step))
        await self._read()
        self._tell()
        ui.run_javascript("document.getElementById('rollouts').scrollIntoView()")

    async def _read(self, step: int | None = None, *, is_following: bool = False) -> None:
        """Of `step`, or of the one that is asked for. With `is_following`, only what is of another step is shown."""
        client, job_id, sort = self.page.session.client, self.page.watch.job_id, self._sort_by_api()
        mine = self._newest_read
        if not is_following:  # which gives way to what a person asks for meanwhile
            mine = self._newest_read = next(self._reads)
            self._asked.problem("")
        try:
            page = await client.rollouts(job_id, step=step or self._step, sort=sort)
            found, step = page["data"], page["step"]
            if is_following and step == self._shown_step:
                return
            while page["has_more"] and step is not None and len(found) < MOST:
                page = await client.rollouts(job_id, step=step, sort=sort, after=len(found))
                found += page["data"]
        except NotFound as error:
            self._asked.problem(error.message)
            return
        except ApiError as error:
            self._words.set_text(problem(error))
            return
        is_late = mine != self._newest_read or self.page.client.is_deleted
        if is_late or (is_following and not self._is_following()):
            return
        self._all = sorted(found, key=lambda row: row["number"])
        self._shown_step, self._total = step, page["total"]
        self._chosen = None
        self._detail.clear()
        self._fill()

    def _sort_by_api(self) -> str | None:
        """What the API may order, so that the first ones of all are read; it takes an objective's name for itself."""
        key = self._sort.removeprefix("-")
        if not key or (not key.startswith("r.") and key in self.page.names):
            return None
        return self._sort.replace("r.", "", 1) if key.startswith("r.") else self._sort

    async def _reorder(self) -> None:
        """Those that were read are the first ones of another order where there are more."""
        if self._total > len(self._all):
            await self._read(self._shown_step)
        else:
            self._fill()

    def _said(self, rows: int) -> str:
        if self._shown_step is None:
            return ""
        words = f"Step {self._shown_step:,}: {self._total:,} rollouts are kept"
        if len(self._all) < self._total:
            words += f", of which {len(self._all):,} were read: the first ones "
            words += "in this order" if self._sort_by_api() else "as stored"
        if rows > SHOWN:
            what = "prompts" if self._view == "groups" else "rollouts"
            words += f"; {SHOWN} {what} are shown, and the CSV has all that were read"
        return words

    def _tell(self) -> None:
        self._heard.set_text(self._words.text)

    def _fill(self) -> None:
        names = self.page.names
        rows = by_group(self._all, names) if self._view == "groups" else self._ordered_rows()
        for row in rows:  # a click may be on its way while other rows are: no two have the same id
            row["id"] = f"{self._shown_step}:{self._view}:{row['id']}"
        self._words.set_text(self._said(len(rows)))
        self._table.change(
            columns=self._columns(),
            rows=rows[:SHOWN],
            sort=self._sort,
            chosen=self._chosen,
            loading=False,
            pick="Open",
        )

    def _ordered_rows(self) -> list[dict[str, Any]]:
        found = ordered(self._all, self._sort, self._pair, self.page.names)
        return [
            {
                "id": row["number"],
                "name": f"rollout {row['number']}",
                "group": row["group"] + 1,
                "prompt": prompt_text(row["prompt"]),
                "completion": row["completion"],
                "advantage": row["advantage"],
                "tokens": row["tokens"],
                "versions": f"{row.get('policy_version', '–')} / {row.get('steering_version', '–')}",
                **{f"r.{name}": row["rewards"].get(name) for name in names},
            }
            for names in [self.page.names]
            for row in found
        ]

    # -- what a person does ------------------------------------------------------------------------------------

    async def _asked_step(self) -> None:
        asked = self._asked.value.strip()
        if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 12 and int(asked)):
            self._asked.problem("expected a step, such as 12")
            return
        self._step = int(asked) if asked else None
        await self._read()
        self._tell()

    async def _latest(self) -> None:
        self._step = None
        self._asked.set("")
        await self._read()
        self._tell()

    async def _choose_order(self, value: str) -> None:
        self._pair = value.removeprefix("conflict:") if value.startswith("conflict:") else ""
        self._sort = "" if self._pair else value
        await self._reorder()
        self._tell()

    def _choose_view(self, value: str) -> None:
        self._view = value
        self._chosen = None
        self._detail.clear()
        self._fill()
        self._tell()

    async def _sorted(self, sort: str) -> None:
        self._sort, self._pair = sort, ""
        await self._reorder()
        self._tell()

    def _open(self, row_id: str) -> None:
        if row_id not in [row["id"] for row in self._table.rows]:
            say("The rows were replaced by newer ones meanwhile: open one of these.")
            return
        self._chosen = None if row_id == self._chosen else row_id
        number = int(row_id.rpartition(":")[2])
        self._table.change(chosen=self._chosen)
        self._detail.clear()
        if self._chosen is None:
            return
        with self._detail:
            if self._view == "groups":
                self._show_group([row for row in self._all if row["group"] == number - 1])
            else:
                for row in (row for row in self._all if row["number"] == number):
                    self._show_one(row)

    def _show_one(self, row: Rollout) -> None:
        with Tag("div", "", "rollout-detail"):
            with Tag("div", "", ""):
                Tag("h3", "Prompt")
                text(prompt_text(row["prompt"]), "verbatim", "pre")
            with Tag("div", "", ""):
                Tag("h3", "Completion")
                text(row["completion"], "verbatim", "pre")
        text(_told(row, self.page.names), "muted", "p")

    def _show_group(self, rows: Sequence[Rollout]) -> None:
        """All answers to one prompt, side by side with what told them apart."""
        if not rows:
            return
        Tag("h3", "Prompt")
        text(prompt_text(rows[0]["prompt"]), "verbatim", "pre")
        for row in sorted(rows, key=lambda found: -(found["advantage"] or 0.0)):
            text(_told(row, self.page.names), "muted", "p")
            text(row["completion"], "verbatim", "pre")

    def _save(self) -> None:
        names = self.page.names
        rows = [
            [
                row["step"],
                row["number"],
                row["group"] + 1,
                prompt_text(row["prompt"]),
                row["completion"],
                *(row["rewards"].get(name) for name in names),
                row["advantage"],
                row["tokens"],
                row.get("policy_version"),
                row.get("steering_version"),
            ]
            for row in ordered(self._all, self._sort, self._pair, names)
        ]
        header = [
            "step",
            "rollout",
            "group",
            "prompt",
            "completion",
            *names,
            "advantage",
            "tokens",
            "policy version",
            "weight version",
        ]
        ui.download.content(csv_text(header, rows), f"{self.page.watch.job_id}-rollouts.csv", "text/csv")


def _orders(names: Sequence[str]) -> dict[str, str]:
    orders: dict[str, str] = {}
    for name in names:
        orders |= {f"-r.{name}": f"highest {name}", f"r.{name}": f"lowest {name}"}
    for one, other in itertools.combinations(names, 2):
        orders[f"conflict:{one}|{other}"] = f"conflict of {one} and {other}"
    return orders | {"-advantage": "highest advantage", "advantage": "lowest advantage"}


def _told(row: Rollout, names: Sequence[str]) -> str:
    rewards = ", ".join(f"{name} {figure(row['rewards'].get(name))}" for name in names)
    cut = ", cut off" if row.get("truncated") else ""
    return (
        f"rollout {row['number']}: {rewards}; advantage {figure(row['advantage'])}; {row['tokens']} tokens{cut}; "
        f"policy version {row.get('policy_version', '–')}, weight version {row.get('steering_version', '–')}"
    )
