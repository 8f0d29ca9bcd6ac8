"""What to do with the policy of a kept checkpoint: commands for a shell, ready to be copied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.dashboard.elements import Command, Tag, text
from services.dashboard.through import download_path
from services.serving import adapter_command, whole_command

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_BASE = "BASE"


def show_use(job_id: str, step: int, spec: Mapping[str, Any]) -> None:
    """A card, where it is called."""
    lines = commands(job_id, step, spec)
    with Tag("section", "", "use-it stack", aria_label="Use it"):
        with Tag("div", "", "section-head"):
            Tag("h3", "Use it")
            with Tag("div", "", "section-tools"):
                Tag("a", "Download", "button", href=download_path(job_id, step), title="its policy, as a tar file")
        for label, command in lines:
            Command(label, command)
        notes = (
            "The first line asks the server of EQUIPOISE_URL with EQUIPOISE_API_KEY, where it is not on that machine."
        )
        if any(f" {_BASE} " in command for _, command in lines):
            notes += f" {_BASE} is the model that the job began with: {_begun_with(spec)}."
        text(notes, "muted", "p")


def commands(job_id: str, step: int, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each is for, and the command. In all of them the policy is where the first one puts it."""
    place = f"./{job_id}-step-{step}"  # as the folder in the tar file is called
    found = [("fetch it", f"equipoise download {job_id} {step} {place}")]
    lora = adapter_of(spec)
    if lora is None:
        found.append(("serve it", whole_command(place)))
    else:
        begun = _begun_with(spec)
        is_on_hub = _HUB_ID.fullmatch(begun) is not None
        base, revision = (begun, spec["policy"].get("revision")) if is_on_hub else (_BASE, None)
        if served := adapter_command(place, base=base, revision=revision, rank=lora["rank"], drawing=place):
            found.append(("serve the adapter with its base", served))
        found.append(("or make a whole model of both", f"equipoise merge {place} {place}-whole"))
        found.append(("and serve that", whole_command(f"{place}-whole")))
    return [*found, ("publish it, under a name of yours", f"hf upload ORG/NAME {place}")]


def _begun_with(spec: Mapping[str, Any]) -> str:
    return str(spec.get("init_checkpoint") or spec["policy"]["model"])


def adapter_of(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The constants of the adapter that a job's checkpoints have alone; None where they have whole policies."""
    policy = spec.get("policy") or {}
    lora: Mapping[str, Any] | None = policy.get("lora")
    if lora is None:
        return None
    is_merged = lora.get("merge", True)  # absent in a spec of before there was a choice
    if is_merged is None:
        is_merged = spec.get("init_checkpoint") is not None
    return None if is_merged else lora
