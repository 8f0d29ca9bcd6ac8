"""`equipoise prompts`: what the policy of a job would read, told by this machine alone: no server is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.checks.rendered import rendered
from orchestrator.spec import JobSpec, parse_job
from orchestrator.storage.remote import RemoteAway
from services import submission
from services.terminal import AsJson, fail, output, print_json, state_dir
from services.text import plain


def show_prompts(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="a YAML or JSON file")],
    split: Annotated[str, typer.Option(help="whose rows: train, validation, test or sets.NAME")] = "train",
    rows: Annotated[int, typer.Option(min=0, max=1000, help="how many of its first rows")] = 3,
    as_json: AsJson = False,
) -> None:
    """Prompts as the policy would read them: through its chat template, with special tokens, and their lengths.

    It reads every split as a job does, with the policy's own tokenizer, and needs no GPU. For example:

        equipoise prompts job.yaml
        equipoise prompts job.yaml --split validation --rows 20
    """
    job = parse_job(submission.load(spec))
    if not isinstance(job, JobSpec):
        fail(f"{spec}: a reward model's job has no prompts for a policy; give that of an alignment")
    try:
        found = rendered(job, state_dir(), split=split, rows=rows)
    except ImportError as error:
        fail(f"this takes an installation that can run jobs: {error}")
    except (ValueError, RemoteAway) as error:
        fail(str(error))
    if as_json:
        print_json(found)
        return
    for row in found["rows"]:
        _print_row(row)
    _print_figures(found)


def _print_row(row: dict[str, Any]) -> None:
    console = output()
    console.print(f"row {row['row']}, {row['tokens']} tokens", style="bold", markup=False)
    for line in row["rendered"].split("\n"):
        console.print(f"  {plain(line)}", markup=False)
    for name in ("answer", "domain", "details"):
        if row[name]:
            console.print(f"{name:8} {plain(row[name])}", markup=False, style="cyan")
    if row["special_tokens"]:
        told = f"the row's own text has special tokens, which the policy takes for its own: {row['special_tokens']}"
        console.print(plain(told), markup=False, style="yellow")
    console.print()


def _print_figures(found: dict[str, Any]) -> None:
    room = found["room"]
    for name, figures in found["splits"].items():
        dropped = f", {figures['dropped']} more dropped as too long" if figures["dropped"] else ""
        lengths = f"{figures['median_tokens']} tokens in the median, {figures['longest_tokens']} at most"
        written = figures["with_special_tokens"]
        special = f"; {written} have special tokens in their own text" if written else ""
        output().print(f"{name:12} {figures['prompts']} prompts{dropped}; {lengths}{special}", markup=False)
    bound = "no context that is known" if room is None else f"{room} tokens"
    output().print(f"{'room':12} {bound}, beside rollout.max_tokens", markup=False)
