"""The lists and single documents that commands print."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.text import ago, duration, figure, plain

Document = dict[str, Any]


def jobs_table(jobs: list[Document]) -> Table:
    table = _table("id", "name", "status", "step", "time left", "created", right=("step", "time left"))
    for job in jobs:
        table.add_row(
            job["id"],
            Text(plain(job["name"])),
            Text(job["status"] + (f" ({plain(job['reason'])})" if job["status"] == "failed" and job["reason"] else "")),
            f"{job['step']}/{job['total_steps']}" if job["total_steps"] else str(job["step"]),
            duration(job["progress"].get("eta_s")) if job["status"] == "running" else "",
            ago(job["created_at"]),
        )
    return table


def job_view(job: Document, steering: Document) -> RenderableType:
    """A job's state, its objectives and the hand on their weights."""
    facts = Table.grid(padding=(0, 2))
    rows = {
        "job": f"{job['id']}  {plain(job['name'])}",
        "status": job["status"] + (f": {plain(job['reason'])}" if job["reason"] else ""),
        "step": f"{job['step']} of {job['total_steps']}",
        "checkpoint": "none yet" if job["checkpoint_step"] is None else f"step {job['checkpoint_step']}",
        "stage": plain(job["progress"].get("stage", "")),
        "created": ago(job["created_at"]),
        "weighting": plain(job["spec"]["weighting"]["name"]),
        "steering": f"{steering['mode']}, version {steering['version']}",
    }
    for name, value in rows.items():
        if value:
            facts.add_row(Text(name, style="dim"), Text(value))
    return Group(facts, Text(), _objectives(job["spec"], steering))


def rewards_table(rewards: list[Document]) -> Table:
    table = _table("reward", "range", "options", "what it rewards")
    for reward in rewards:
        low, high = reward["range"]
        options = ", ".join(reward["options"].get("properties", {})) or "–"
        table.add_row(
            Text(plain(reward["name"])), f"{low:g} to {high:g}", Text(plain(options)), Text(plain(reward["summary"]))
        )
    return table


def checkpoints_table(checkpoints: list[Document]) -> Table:
    table = _table("step", "on the front", "directory", right=("step",))
    for checkpoint in checkpoints:
        table.add_row(str(checkpoint["step"]), "yes" if checkpoint["on_front"] else "", Text(plain(checkpoint["path"])))
    return table


def _objectives(spec: Document, steering: Document) -> Table:
    table = _table("objective", "reward", "preference", "strategy says", "floor", "ceiling")
    for objective in spec["objectives"]:
        name = objective["name"]
        floor, ceiling = steering["bounds"].get(name, (0.0, 1.0))
        table.add_row(
            name,
            Text(plain(objective["reward"]["name"])),
            figure(steering["weights"].get(name)),
            figure((steering["strategy"] or {}).get(name)),
            figure(floor, 2),
            figure(ceiling, 2),
        )
    return table


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
