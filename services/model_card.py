"""README.md of a policy that leaves the installation: what it was trained for, and how well it does that.

It may be published as it is, so it names no path and no prompt. The hub reads the lines at its head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from orchestrator.measurement import held_out_cuts

FILE = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_TESTS = (("sampled", "test, sampled"), ("greedy", "test, greedy"))

Json = Mapping[str, Any]


def model_card(
    job_id: str, step: int, spec: Json, *, point: Json | None, weights: Json | None, is_adapter: bool
) -> str:
    """`point` is the front's, `weights` are those that the step was trained with; None where there are none."""
    base = hub_base(spec)
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["equipoise"],
    }
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    what = "An adapter" if is_adapter else "A language model"
    revision = (spec.get("policy") or {}).get("revision")
    begun = f"`{base}`" + (f" (revision `{revision}`)" if revision else "") if base else "a model of its owner's"
    lines = [
        f"# {_shown(spec['name'])}, step {step}",
        "",
        f"{what} that Equipoise trained for several objectives at once: job `{job_id}`, step {step}, from {begun}.",
        "",
        "## Held-out figures",
        "",
        *(_figures(spec, point, weights) if point else ["This step was not evaluated."]),
    ]
    written = yaml.safe_dump(head, sort_keys=True, allow_unicode=True)
    return f"---\n{written}---\n\n" + "\n".join(lines) + "\n"


def hub_base(spec: Json) -> str | None:
    """The hub id that a job's policy began with; None where that is a directory, another job's policy or our own."""
    model = str((spec.get("policy") or {}).get("model", ""))
    return model if not spec.get("init_checkpoint") and _HUB_ID.fullmatch(model) else None


def _figures(spec: Json, point: Json, weights: Json | None) -> list[str]:
    tests = {
        words: found
        for split, words in _TESTS
        if (found := (point.get("test") or {}).get(split) or {}).get("objectives")
    }
    header = ["objective", "reward", "validation", *tests, "weight"]
    rows = [
        [
            _shown(objective["name"]),
            f"`{objective['reward']['name']}`",
            *(_with_error(found, objective["name"]) for found in (point, *tests.values())),
            _number((weights or {}).get(objective["name"])),
        ]
        for objective in spec["objectives"]
    ]
    table = [header, ["---"] * len(header), *rows]
    collapsed = (
        ["", "The run had collapsed at this step, which is therefore not on its front."]
        if point.get("collapsed")
        else []
    )
    return ["| " + " | ".join(row) + " |" for row in table] + collapsed + ["", _how(spec, point)]


def _how(spec: Json, point: Json) -> str:
    evaluation, rollout = spec.get("evaluation") or {}, spec.get("rollout") or {}
    prompts, temperature = evaluation.get("prompts"), evaluation.get("temperature")
    cuts = held_out_cuts(spec)
    cut = "".join(f", {name} {cuts[name]}" for name in ("top_k", "min_p") if cuts.get(name))
    sampled = f"drawn at temperature {temperature} and top_p {cuts.get('top_p')}{cut}"
    drawn = "greedy" if temperature == 0 else sampled
    repeats = 1 if temperature == 0 else evaluation.get("rollouts_per_prompt")
    told = (
        f"Means over {f'the first {prompts}' if prompts else 'all'} prompts of the validation split, completions for "
        f"each: {repeats}, {drawn}, {rollout.get('max_tokens')} tokens at most; their mean length is "
        f"{_number(point.get('mean_tokens'))} tokens. Weights are those of this step."
    )
    errors = " After ± is the standard error, by the means of the prompts." if point.get("standard_errors") else ""
    return told + (" Those of the test split are means over all its prompts." if point.get("test") else "") + errors


def _shown(text: str) -> str:
    """One line of text, and neither HTML nor a cell's end."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _with_error(figures: Json, name: str) -> str:
    """An objective's mean over a split, and its standard error where that is told."""
    error = (figures.get("standard_errors") or {}).get(name)
    return _number(figures["objectives"].get(name)) + (f" ± {_number(error)}" if error else "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
