"""The lists and single documents that commands print."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.checks.layout import readable
from orchestrator.plugins import Plugin
from orchestrator.rules import NEEDS, Rule
from orchestrator.spec_fields import Option, Section
from services.terminal import Document
from services.text import ago, amount, at_told, duration, figure, plain, taken

_PARTS = {
    "arriving": "new weights",
    "kv_cache": "KV cache",
    "moments": "AdamW",
    "reference": "reference policy",
    "objective_gradients": "objectives' gradients",
    "checkpoint": "copy for a checkpoint",
    "overhead": "activations and CUDA graphs",
    "working": "activations and logits",
    "runtime": "runtime",
}


def jobs_table(jobs: Sequence[Document]) -> Table:
    ranked = ("priority",) if any(job.get("priority") for job in jobs) else ()
    by = ("by",) if len({job.get("submitted_by") for job in jobs}) > 1 else ()
    columns = ("id", "name", *by, *ranked, "status", "step", "time left", "created")
    table = _table(*columns, right=("priority", "step", "time left"))
    for job in jobs:
        table.add_row(
            job["id"],
            Text(plain(job["name"])),
            *(Text(plain(job.get("submitted_by") or "")) for _ in by),
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
        "stage": ", ".join(filter(None, (plain(job["progress"].get("stage", "")), at_told(job["progress"])))),
        "created": ago(job["created_at"]) + (f" by {plain(job['submitted_by'])}" if job.get("submitted_by") else ""),
        **taken(job.get("gpu_hours"), job.get("cost")),
        "weighting": plain(job["spec"]["weighting"]["name"]),
        "steering": f"{steering['mode']}, version {steering['version']}",
    }
    for name, value in rows.items():
        if value:
            facts.add_row(Text(name, style="dim"), Text(value))
    return Group(facts, Text(), _objectives(job["spec"], steering))


def training_view(job: Document) -> RenderableType:
    """A job that trains a reward model."""
    facts, training = Table.grid(padding=(0, 2)), job["spec"]["training"]
    rows = {
        "job": f"{job['id']}  {plain(job['name'])}",
        "status": job["status"] + (f": {plain(job['reason'])}" if job["reason"] else ""),
        "step": f"{job['step']} of {job['total_steps'] or '?'}",
        "checkpoint": "none yet" if job["checkpoint_step"] is None else f"step {job['checkpoint_step']}",
        "stage": plain(job["progress"].get("stage", "")),
        "created": ago(job["created_at"]) + (f" by {plain(job['submitted_by'])}" if job.get("submitted_by") else ""),
        **taken(job.get("gpu_hours"), job.get("cost")),
        "backbone": plain(training["model"]),
        "objective": training["objective"],
        "heads": ", ".join(plain(head["name"]) for head in training["heads"]),
    }
    for name, value in rows.items():
        if value:
            facts.add_row(Text(name, style="dim"), Text(value))
    return facts


def rewards_table(rewards: Sequence[Document]) -> Table:
    table = _table("reward", "range", "options", "what it rewards")
    for reward in rewards:
        options = ", ".join((reward["options"] or {}).get("properties", {})) or "–"
        summary = (
            reward["summary"] or f"plug-in {reward['plugin']}; `equipoise rewards show {reward['name']}` imports it"
        )
        cells = (reward["name"], _ends(reward["range"]), options, summary)
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def plugins_table(plugins: Sequence[Plugin]) -> Table:
    table = _table("kind", "name", "from", "package", "problem")
    for plugin in plugins:
        cells = (plugin.kind, plugin.name, plugin.module, plugin.package, plugin.problem or "–")
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def reward_view(reward: Document) -> RenderableType:
    """All of one reward: what it is, its range, and its options."""
    facts = Table.grid(padding=(0, 2))
    known = {"range": _ends(reward["range"]), "plug-in": reward["plugin"] or ""}
    for name, value in known.items():
        if value:
            facts.add_row(Text(name, style="dim"), Text(plain(value)))
    parts: list[RenderableType] = [
        Text(plain(reward["name"]), style="bold"),
        Text(plain(reward["summary"])),
        Text(),
        facts,
    ]
    schema = reward["options"]
    if schema.get("properties"):
        table = _table("option", "default", "type", "what it is")
        table.columns[0].no_wrap = True
        for name, option in schema["properties"].items():
            default = "required" if name in schema.get("required", ()) else json.dumps(option.get("default"))
            kind = option.get("type") or " or ".join(str(one.get("type", "...")) for one in option.get("anyOf", ()))
            cells = (name, "–" if default == "null" else default, kind, option.get("description", ""))
            table.add_row(*(Text(plain(cell)) for cell in cells))
        parts += [Text(), table]
    return Group(*parts)


def _ends(ends: Sequence[float | None] | None) -> str:
    """`0 to 1`, or `0 to ∞`: JSON has no infinity, and says null."""
    if ends is None:
        return "–"
    low, high = ("∞" if end is None or math.isinf(end) else f"{end:g}" for end in ends)
    return f"{'-' if low == '∞' else ''}{low} to {high}"


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
        parts += [_options_table(rule.options), Text()]
    return Group(*parts, Text("In a spec:\n", style="dim"), Text(rule.example.rstrip("\n")))


def checkpoints_table(checkpoints: Sequence[Document]) -> Table:
    table = _table("step", "on the front", "directory", right=("step",))
    for checkpoint in checkpoints:
        table.add_row(str(checkpoint["step"]), "yes" if checkpoint["on_front"] else "", Text(plain(checkpoint["path"])))
    return table


def estimate_view(estimate: Document) -> RenderableType:
    """A dry run's GPUs and memory: a table for each device, and under it what does not fit."""
    parts: list[RenderableType] = []
    if estimate["parameters"] is not None:
        parts.append(Text(f"parameters   {estimate['parameters']:,}"))
    if estimate["unknown"]:
        parts.append(Text(f"memory       not known: {plain(estimate['unknown'])}"))
    if estimate.get("disk"):
        parts.append(Text(f"disk         {disk_line(estimate['disk'])}"))
    for layout in estimate["layouts"]:
        parts += [Text(), Text(layout_line(layout), style="bold")]
        if layout["processes"]:
            parts.append(_processes_table(layout["processes"]))
        cache = layout["kv_cache"]
        if cache is not None and cache["sequences"] is not None:
            held = f"{cache['sequences']} sequences of {cache['sequence_tokens']} tokens"
            parts.append(Text(f"an engine's cache holds {held}, {readable(cache['token_bytes'])} each token"))
        for problem in layout["problems"]:
            parts.append(Text(f"does not fit: {plain(problem['message'])}", style="red"))
            parts += [Text(f"  would help: {plain(remedy)}") for remedy in problem["remedies"]]
    return Group(*parts)


def judge_line(judge: Document) -> str:
    """What a dry run says of a judge's calls."""
    training, evaluation = judge["training"], judge["evaluation"]
    told = f"{training['calls']:,} calls of judge '{plain(judge['profile'])}' for training"
    if evaluation is None:
        told += ", not known how many for evaluations"
    elif evaluation["calls"]:
        told += f", {evaluation['calls']:,} for evaluations"
    costs = [part["cost"] for part in (training, evaluation) if part is not None and part["cost"] is not None]
    return told + (f": up to {amount(sum(costs))}, prompts and rubric aside" if any(costs) else "")


def disk_line(disk: Document) -> str:
    each, policy = readable(disk["checkpoint_bytes"]), readable(disk["policy_bytes"])
    free = "" if disk["free_bytes"] is None else f"; {readable(disk['free_bytes'])} free"
    return f"up to {readable(disk['bytes'])} of checkpoints: {each} each, {policy} a policy of the front{free}"


def layout_line(layout: Document) -> str:
    total = "" if layout["bytes"] is None else f", {readable(layout['bytes'])} in all"
    weights = f", weights by {layout['transport']}"
    if layout["device"] == "cpu":
        there = f" of {readable(layout['memory_bytes'])}" if layout.get("memory_bytes") and total else ""
        return f"on CPU{f', rewards on {_gpus(layout)}' if layout['gpus'] else ''}{weights}{total}{there}"
    shared = " that all share" if layout["shared"] else ""
    rewards = f", {layout['reward_gpus']:g} for rewards" if layout["reward_gpus"] else ""
    host = f", and {readable(layout['host_bytes'])} of the machine's memory" if layout.get("host_bytes") else ""
    return f"on {_gpus(layout)} of {readable(layout['gpu_bytes'])}{shared}{rewards}{weights}{total}{host}"


def _gpus(layout: Document) -> str:
    return "1 GPU" if layout["gpus"] == 1 else f"{layout['gpus']:g} GPUs"


def _processes_table(processes: Sequence[Document]) -> Table:
    table = _table("process", "GPUs", "memory", "of which", right=("GPUs", "memory"))
    for process in processes:
        name = process["name"] + (f" x {process['count']}" if process["count"] > 1 else "")
        parts = ", ".join(f"{_PARTS.get(part, part)} {readable(size)}" for part, size in process["parts"].items())
        table.add_row(Text(plain(name)), str(process["gpus"] or "–"), readable(process["bytes"]), Text(plain(parts)))
    return table


def section_view(section: Section, sections: Collection[str]) -> RenderableType:
    """A part of a spec and its fields; those that are parts themselves, of `sections`, only say so."""
    title = Text(section.path or "a job", style="bold")
    names = {path.removesuffix("[]") for path in sections}
    inside = {option.name for option in section.options if _inner(section.path, option.name) in names}
    paragraphs = [" ".join(part.split()) for part in section.description.split("\n\n") if part]
    return Group(title, *(Text(plain(part)) for part in paragraphs), _options_table(section.options, inside))


def _inner(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _options_table(options: Iterable[Option], parts: Collection[str] = ()) -> Table:
    table = _table("option", "default", "allowed", "what it is")
    table.columns[0].no_wrap = True
    for option in options:
        default = "required" if option.required else json.dumps(option.default, ensure_ascii=False)
        cells = [option.name, "–" if default == "null" else default, option.allowed, option.description]
        if option.name in parts:
            cells[1:3] = "required" if option.required else "its own", "a part of its own"
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
