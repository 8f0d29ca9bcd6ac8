"""The lists and single documents that commands print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.rules import NEEDS, Rule
from services.text import ago, duration, figure, plain

Document = Mapping[str, Any]


def jobs_table(jobs: Sequence[Document]) -> Table:
    ranked = ("priority",) if any(job.get("priority") for job in jobs) else ()
    columns = ("id", "name", *ranked, "status", "step", "time left", "created")
    table = _table(*columns, right=("priority", "step", "time left"))
    for job in jobs:
        table.add_row(
            job["id"],
            Text(plain(job["name"])),
            *(str(job.get("priority", 0)) for _ in ranked),
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
        "priority": str(job.get("priority") or ""),
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


def rewards_table(rewards: Sequence[Document]) -> Table:
    table = _table("reward", "range", "options", "what it rewards")
    for reward in rewards:
        low, high = ("–" if bound is None else f"{bound:g}" for bound in reward["range"])  # null is no bound
        options = ", ".join(reward["options"].get("properties", {})) or "–"
        table.add_row(
            Text(plain(reward["name"])), f"{low} to {high}", Text(plain(options)), Text(plain(reward["summary"]))
        )
    return table


def rules_table(rules: list[Rule], *, wide: bool) -> Table:
    """Of one kind. In a narrow terminal, what a rule is from and costs stands below what it does."""
    table = _table("name", "what it does", *(("source", "needs", "cost") if wide else ()))
    table.columns[0].no_wrap = True
    for rule in rules:
        needs = ", ".join(rule.needs)
        if wide:
            cells = (rule.name, rule.summary, rule.source, needs or "–", rule.cost)
            table.add_row(*(Text(plain(cell)) for cell in cells))
        else:
            more = f"{rule.source}; needs {needs or 'nothing'}; costs {rule.cost}"
            table.add_row(Text(rule.name), Text(plain(rule.summary)).append(f"\n{plain(more)}", style="dim"))
    return table


def rule_view(rule: Rule) -> RenderableType:
    """All of one rule: description, facts, options, and how a spec selects it."""
    facts = Table.grid(padding=(0, 2))
    needs = "; ".join(f"{need} ({NEEDS[need]})" if need in NEEDS else need for need in rule.needs)
    for name, value in {"source": rule.source, "needs": needs or "nothing", "cost": rule.cost}.items():
        facts.add_row(Text(name, style="dim"), Text(plain(value)))
    paragraphs = [" ".join(part.split()) for part in rule.description.split("\n\n")]
    title = Text(f"{plain(rule.name)}: {rule.kind.path} of a spec", style="bold")
    parts: list[RenderableType] = [title, *(Text(plain(part)) for part in paragraphs), Text(), facts, Text()]
    if rule.options:
        parts += [_options_table(rule), Text()]
    return Group(*parts, Text("In a spec:\n", style="dim"), Text(rule.example.rstrip("\n")))


def checkpoints_table(checkpoints: Sequence[Document]) -> Table:
    table = _table("step", "on the front", "directory", right=("step",))
    for checkpoint in checkpoints:
        table.add_row(str(checkpoint["step"]), "yes" if checkpoint["on_front"] else "", Text(plain(checkpoint["path"])))
    return table


def _options_table(rule: Rule) -> Table:
    table = _table("option", "default", "allowed", "what it is")
    table.columns[0].no_wrap = True
    for option in rule.options:
        default = "required" if option.required else json.dumps(option.default, ensure_ascii=False)
        cells = (option.name, "–" if default == "null" else default, option.allowed, option.description)
        table.add_row(*(Text(plain(cell)) for cell in cells))
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
