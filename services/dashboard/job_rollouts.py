"""What the policy wrote: prompts and completions of a step with every reward, the ones in conflict first if asked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from services.client import ApiError, NotFound
from services.client.types import Rollout
from services.dashboard.elements import Button, Choice, Field, Table, Tag, text
from services.dashboard.exports import csv_text
from services.dashboard.figures import figure
from services.dashboard.frame import problem
from services.dashboard.panels import JobPage, section
from services.dashboard.rollout_rows import by_group, ordered, prompt_text
from services.dashboard.watch import News

SHOWN = 100


class RolloutsPanel:
    """A table of one step, as groups or one by one."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        page.show_rollouts = self.show
        self._step: int | None = None
        self._sort, self._view, self._pair = "", "each", ""
        self._all: list[Rollout] = []
        self._chosen: int | None = None
        with section("Rollouts") as tools:
            with tools:
                self._asked = Field("Step", placeholder="latest", on_change=self._asked_step)
                self._orders = Choice("Order", {"": "as stored"} | _orders(page.names), "", self._choose_order)
                Choice("View", {"each": "one by one", "groups": "by prompt"}, "each", self._choose_view)
                Button("Latest", self._latest)
            self._words = text("", "muted", "p").attributes(role="status")
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
        ui.run_javascript("document.getElementById('rollouts').scrollIntoView()")

    async def _read(self) -> None:
        client, job_id = self.page.session.client, self.page.watch.job_id
        self._asked.problem("")
        try:
            page = await client.rollouts(job_id, step=self._step)
            found, step = page["data"], page["step"]
            while page["has_more"] and step is not None and len(found) < 1000:
                page = await client.rollouts(job_id, step=step, after=len(found))
                found += page["data"]
        except NotFound as error:
            self._asked.problem(error.message)
            return
        except ApiError as error:
            self._words.set_text(problem(error))
            return
        self._all = found
        self._words.set_text(f"Step {step:,}: {len(found)} rollouts are kept" if step is not None else "")
        self._chosen = None
        self._detail.clear()
        self._fill()

    def _fill(self) -> None:
        names = self.page.names
        rows = by_group(self._all, names) if self._view == "groups" else self._ordered_rows()
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

    async def _latest(self) -> None:
        self._step = None
        self._asked.set("")
        await self._read()

    def _choose_order(self, value: str) -> None:
        self._pair = value.removeprefix("conflict:") if value.startswith("conflict:") else ""
        self._sort = "" if self._pair else value
        self._fill()

    def _choose_view(self, value: str) -> None:
        self._view = value
        self._chosen = None
        self._detail.clear()
        self._fill()

    def _sorted(self, sort: str) -> None:
        self._sort, self._pair = sort, ""
        self._fill()

    def _open(self, number: int) -> None:
        self._chosen = None if number == self._chosen else number
        self._table.change(chosen=self._chosen)
        self._detail.clear()
        if self._chosen is None:
            return
        with self._detail:
            if self._view == "groups":
                self._show_group([row for row in self._all if row["group"] == number - 1])
            else:
                self._show_one(next(row for row in self._all if row["number"] == number))

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
        orders |= {f"-r.{name}": f"best by {name}", f"r.{name}": f"worst by {name}"}
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
