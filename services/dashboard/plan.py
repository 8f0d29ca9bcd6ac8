"""What a dry run found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from services.client.types import Estimate, Plan
from services.dashboard.elements import Tag, text
from services.dashboard.watch import trains_reward
from services.tables import disk_line, judge_line, layout_line


def show_plan(plan: Plan) -> None:
    """What would run."""
    spec = plan["spec"]
    if trains_reward(spec):
        Tag("h3", "Nothing is wrong with it. It would train:")
        _facts(_training_facts(spec["training"]))
        _whole(spec)
        return
    Tag("h3", _verdict(plan.get("estimate")))
    _facts(
        {
            "steps": f"{spec['steps']:,}",
            "rollouts a step": f"{plan['rollouts_per_step']:,}",
            "rollouts in all": f"{plan['rollouts']:,}",
            "evaluations": f"{plan['evaluations']:,}",
            "objectives": ", ".join(objective["name"] for objective in spec["objectives"]),
            "weighting": spec["weighting"]["name"],
        }
    )
    if plan.get("judges"):
        with Tag("ul"):
            for judge in plan.get("judges", ()):
                text(judge_line(judge), tag="li")
    if "estimate" in plan:
        _show_estimate(plan["estimate"])
    if plan.get("doubts"):
        Tag("h4", "Is this meant?")
        with Tag("ul"):
            for doubt in plan.get("doubts", ()):
                with Tag("li"):
                    text(doubt["param"], tag="code")
                    text(f": {doubt['message']}")
    _whole(spec)


def _verdict(estimate: Estimate | None) -> str:
    """In one line, whether it can run, as far as that is known."""
    if estimate is not None and estimate["layouts"] and all(each["fits"] is False for each in estimate["layouts"]):
        return "Valid, but it fits nowhere here"
    if estimate is not None and estimate["unknown"]:
        return "Valid, but nobody can tell here whether it fits. It would run:"
    return "Nothing is wrong with it. It would run:"


def _show_estimate(estimate: Estimate) -> None:
    """Where it would run, and what does not fit there."""
    Tag("h4", "What it takes")
    with Tag("ul"):
        if estimate["unknown"]:
            text(f"memory is not known: {estimate['unknown']}", tag="li")
        if disk := estimate.get("disk"):
            text(f"on disk {disk_line(disk)}", tag="li")
        for layout in estimate["layouts"]:
            with Tag("li"):
                text(layout_line(layout))
                for misfit in layout["problems"]:
                    text(f"does not fit: {misfit['message']}", "problem", "p")
                    for remedy in misfit["remedies"]:
                        text(f"would help: {remedy}", "muted", "p")


def _training_facts(training: Mapping[str, Any]) -> dict[str, str]:
    return {
        "backbone": training["model"],
        "objective": training["objective"],
        "heads": ", ".join(head["name"] for head in training["heads"]) or "one score",
        "epochs": f"{training['epochs']:,}",
        "train": ", ".join(training["train"]),
        "validation": ", ".join(training["validation"]) or "none",
    }


def _facts(facts: Mapping[str, str]) -> None:
    with Tag("dl", "", "facts"):
        for term, told in facts.items():
            Tag("dt", term)
            text(told, tag="dd")


def _whole(spec: Mapping[str, Any]) -> None:
    with Tag("details", "", ""):
        Tag("summary", "The whole spec, every default written out")
        text(yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True, width=100), "spec", "pre").attributes(
            tabindex="0"
        )
