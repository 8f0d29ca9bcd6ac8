"""`equipoise fork` and `equipoise compare`: jobs from a checkpoint of another, and jobs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator import spec_yaml
from services import steer_words, submission
from services.picking import STEP_HELP, is_choice, step_of
from services.terminal import (
    AsJson,
    Document,
    JobArgument,
    connect_client,
    fail,
    find_job,
    output,
    print_json,
    say,
    state_dir,
)
from services.text import figure, plain


def fork(
    job: JobArgument,
    at: Annotated[str, typer.Option(metavar="STEP", help=STEP_HELP)] = "latest",
    weights: Annotated[str | None, typer.Option(metavar="NAME=WEIGHT,...", help="for one job")] = None,
    sweep: Annotated[Path | None, typer.Option(metavar="FILE", help="a YAML or JSON list, a job for each")] = None,
    changes: Annotated[Path | None, typer.Option(metavar="FILE", help="fields of the spec that differ")] = None,
    name: Annotated[str | None, typer.Option(help="what the new job is called")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="go on to step N, with all of the job's state")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue new jobs that start from a checkpoint of a job.

    All but the policy begins anew: steps, the optimiser's state, the weighting's, the order of prompts, the front.
    With --steps nothing of these does: so a job goes on that has ended, from its newest checkpoint, in a new job.

    For example:

        equipoise fork last --at best --weights accuracy=0.8
        equipoise fork last --at latest --sweep weights.yaml
        equipoise fork last --at 'accuracy>=0.8 by conciseness'
        equipoise fork last --steps 200
    """
    files: Any = None
    body: dict[str, Any] = {"checkpoint": int(at) if at.isascii() and at.isdigit() and len(at) < 16 else at}
    if name is not None:
        body["name"] = name
    if steps is not None:
        body["steps"] = steps
    if sweep is not None:
        body["sweep"] = _document(sweep)
    if changes is not None:
        body["changes"] = files = _document(changes)
        if isinstance(files, dict):
            body["changes"] = files = submission.anchored_changes(files)
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        if is_choice(at):
            body["checkpoint"] = step_of(client, job_id, at)
        if weights is not None:
            now = client.steering(job_id, log_limit=0)["weights"]
            try:
                body["weights"] = steer_words.weights([word.strip() for word in weights.split(",")], now)
            except ValueError as error:
                fail(f"--weights: {error}")
        with submission.naming_files(files if isinstance(files, dict) else {}):
            made = client.fork(job_id, **body)
    if as_json:
        print_json(made)
        return
    to = "" if steps is None else f", on to step {steps}"
    say(f"from step {made['lineage']['step']} of {plain(job_id)}{to}:")
    for found in made["data"]:
        print(found["id"])


def compare(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="ids, the starts of them, or `last`")],
    as_json: AsJson = False,
) -> None:
    """What several jobs found, side by side: volumes, and whose points are on the front of all together.

    For example:

        equipoise compare job-1a2b3c job-4d5e6f
    """
    with connect_client(state_dir()) as client:
        found = client.compare([find_job(client, job) for job in jobs])
    if as_json:
        print_json(found)
        return
    output().print(compare_table(found))
    for line in found["differences"]:
        say(plain(line))
    for line in found.get("measured_differently") or ():
        say(f"measured differently: {plain(line)}")
    for line in found.get("set_differently") or ():
        say(f"set differently: {plain(line)}")
    if found["comparable"]:
        say(f"hypervolume of all together: {figure(found['hypervolume'], 4)}")


def compare_table(found: Document) -> Table:
    """A row for each job."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("job", "name", "from", "status"):
        table.add_column(column)
    for column in ("step", "hypervolume", "adds", "on its front", "on all's"):
        table.add_column(column, justify="right")
    for job in found["data"]:
        origin = job["lineage"]
        shared = None if found["front"] is None else sum(point["job"] == job["id"] for point in found["front"])
        table.add_row(
            job["id"],
            Text(plain(job["name"])),
            Text(f"{plain(origin['parent'])} at {origin['step']}" if origin else ""),
            job["status"],
            str(job["step"]),
            figure(job["hypervolume"], 4),
            figure(job["adds"], 4),
            str(len(job["front"])),
            "" if shared is None else str(shared),
        )
    return table


def _document(path: Path) -> Any:
    try:
        document = spec_yaml.load(path.read_text(encoding="utf-8"))
        json.dumps(document, allow_nan=False)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}")
    except spec_yaml.DuplicateKey as error:
        fail(f"{path}: line {error.line}: {error.problem}; keep one of them")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # TypeError: a date
        fail(f"{path}: expected YAML of names, numbers and text")
    return document
