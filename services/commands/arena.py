"""`equipoise arena`: every weighting rule on the same tasks, seeds and budget; stopped and resumed at will, and told
by `equipoise arena report`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.live import Live
from rich.table import Table

from orchestrator.arena import protocol
from orchestrator.arena.conduct import Arena, ArenaStopped
from orchestrator.arena.entries import entries
from orchestrator.arena.job_task import JobTask, job_task
from orchestrator.arena.ledger import FILE, Ledger, LedgerError
from orchestrator.arena.plan import Planned, plan
from orchestrator.arena.processes import ProcessWorker
from orchestrator.arena.tasks import TASKS
from orchestrator.spec import JobSpec, load_spec, parse_spec
from orchestrator.spec_errors import SpecError, nearest
from services.submission import anchored_changes
from services.terminal import fail, output, say, state_dir

commands = typer.Typer(help="Compare every weighting rule on the same tasks.", invoke_without_command=True)
MOST_WORKERS = 8  # where none are named
STATES = ("done", "running", "failed", "left", "waiting")


@commands.callback()
def arena(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help=f"how much: {', '.join(protocol.PRESETS)}")] = "full",
    rules: Annotated[
        list[str] | None, typer.Option(help="entries: a name, `saw`, or a pattern such as `gdpo/*`; repeat it")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="tasks; repeat it")] = None,
    task: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the spec of a job of your own, in the tasks' place")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="runs of each entry and task")] = None,
    first_seed: Annotated[
        int, typer.Option(min=0, max=10_000, help="where seeds begin, so that machines can share an arena by seeds")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=100_000, help="training steps of a run")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="runs side by side")] = None,
    out: Annotated[Path | None, typer.Option(help="directory of the results")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what is there")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="with --resume: also those that failed")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="stop after so many runs")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="the task that is kept for the end, once")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="the runs and what has become of them")] = False,
    task_spec: Annotated[str | None, typer.Option(help="print a task as a job that can be submitted")] = None,
) -> None:
    """Compare every weighting rule on the same tasks, seeds and budget.

    A run is an ordinary job of 40 steps, a minute or two on two cores; all of them take a day. Each is written to
    runs.jsonl of the directory when it ends. For example:

        equipoise arena --preset smoke
        equipoise arena --rules gdpo/fixed --rules gradient --seeds 3
        equipoise arena --resume --limit 10
        equipoise arena --task job.yaml --rules gdpo/fixed --rules my_plugin --out mine
        equipoise arena report
    """
    if context.invoked_subcommand is not None:
        return
    if task_spec is not None:
        _print_task(task_spec)
        return
    if retry_failed and not resume:
        fail("--retry-failed: goes with --resume")
    if task is not None and (tasks is not None or held_out):
        fail("--task: stands in the place of --tasks and --held-out")
    own = None if task is None else _own(task)
    runs = _planned(preset, tasks, rules, seeds, first_seed, steps, held_out, own)
    directory = (out or state_dir() / "arena").expanduser().absolute()
    lanes = workers or default_workers()
    threads = max(1, (os.cpu_count() or 1) // lanes)

    def arena_on(ledger: Ledger) -> Arena:
        return Arena(
            runs=runs,
            ledger=ledger,
            hire=lambda number: ProcessWorker(number, directory, state_dir(), threads=threads),
            workers=lanes,
            limit=limit,
            retry_failed=retry_failed,
        )

    try:
        if list_them:
            _print_list(arena_on(Ledger.peek(directory)))
            return
        with Ledger(directory) as ledger:
            if ledger.runs and not resume:
                fail(_what_is_there(arena_on(ledger), directory))
            _run(arena_on(ledger), directory)
    except (LedgerError, ArenaStopped) as error:
        fail(str(error))


@commands.command("report")
def report(
    directory: Annotated[Path | None, typer.Argument(help="of the results, or a file of runs")] = None,
    out: Annotated[Path | None, typer.Option(help="the HTML file; the Markdown goes beside it")] = None,
    default: Annotated[
        str | None, typer.Option(help="the entry whose gains are told; else that of a job that names no rule")
    ] = None,
) -> None:
    """What the runs say: which rule is better than which, with intervals and what is significant; at any time."""
    runs = (directory or state_dir() / "arena").expanduser()
    runs = runs / FILE if runs.is_dir() or directory is None else runs
    _report(runs, out or runs.with_name("arena.html"), default)


def _report(runs: Path, html: Path, default: str | None) -> None:
    """Reads the runs, writes both files, and prints where they are."""
    from orchestrator.arena.report import write_report

    if html.suffix == ".md":
        fail(f"--out: {html} would be the Markdown's own name; expected the HTML file's, such as {html.stem}.html")
    if not runs.is_file():
        fail(f"no file {runs}; `equipoise arena` writes runs to {FILE} of its directory")
    try:
        figures = write_report(runs, html, html.with_suffix(".md"), default)
    except (ValueError, OSError) as error:
        fail(str(error))
    say(f"{figures['runs']} runs of {figures['rules']} entries, {figures['failed']} failed")
    output().print(f"{html}\n{html.with_suffix('.md')}", markup=False)


def default_workers() -> int:
    """One for each core, some GiB each: an engine and a learner take turns, so that a run keeps little more busy.

    On two cores: 43 runs an hour with two workers of one thread, 39 with one of two.
    """
    return min(MOST_WORKERS, max(1, os.cpu_count() or 1))


def _planned(
    preset: str,
    tasks: list[str] | None,
    rules: list[str] | None,
    seeds: int | None,
    first_seed: int,
    steps: int | None,
    held_out: bool,
    own: JobTask | None,
) -> list[Planned]:
    if preset not in protocol.PRESETS:
        fail(
            f"--preset: no preset '{preset}'{nearest(preset, list(protocol.PRESETS))}; "
            f"there are {', '.join(protocol.PRESETS)}"
        )
    try:
        return plan(
            protocol.PRESETS[preset],
            tasks=tasks,
            rules=rules,
            seeds=seeds,
            first_seed=first_seed,
            steps=steps,
            held_out=held_out,
            own=own,
            on_left_out=lambda what: say(f"left out: {what}"),
        )
    except ValueError as error:
        fail(str(error))


def _own(file: Path) -> JobTask:
    """The job as a task, its relative paths made absolute."""
    try:
        spec = load_spec(file)
        if not isinstance(spec, JobSpec):
            fail(f"--task: {file}: kind: expected an alignment, got {spec.kind}")
        document = anchored_changes(spec.model_dump(mode="json", exclude_unset=True))
        return job_task(parse_spec(document))
    except SpecError as error:
        fail(*(f"--task: {': '.join(filter(None, problem))}" for problem in error.problems))


def _print_task(name: str) -> None:
    if name not in TASKS:
        fail(f"--task-spec: no task '{name}'{nearest(name, list(TASKS))}; there are {', '.join(TASKS)}")
    task, preset = TASKS[name], protocol.PRESETS["full"]
    document = task.document(entries(len(task.objectives))[0], preset, seed=0, steps=preset.steps)
    print(yaml.safe_dump(document, sort_keys=False), end="")


def _what_is_there(arena: Arena, directory: Path) -> str:
    counts = Counter(run["status"] for run in arena.ledger.runs)
    there = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return (
        f"{directory / FILE} has {len(arena.ledger.runs)} runs already ({there}); --resume makes the {arena.left} of "
        "yours that are left, another --out begins anew"
    )


def _run(arena: Arena, directory: Path) -> None:
    console = output()
    if console.is_terminal:
        with Live(progress(arena), console=console, refresh_per_second=1) as live:
            arena.on_change = lambda changed: live.update(progress(changed))
            arena.run()
    else:
        told = 0

        def tell(changed: Arena) -> None:
            nonlocal told
            for run in changed.made[told:]:
                what = f"{run['seconds']['total']:.0f} s" if run["status"] == "done" else f"failed: {run['reason']}"
                say(f"{run['task']} {run['entry']} seed {run['seed']}: {what}; {left_words(changed)}")
            told = len(changed.made)

        arena.on_change = tell
        arena.run()
    for planned, state in arena.states():
        if state == "waiting" and arena.limit is None:
            say(f"{planned.title}: not made, as it takes its targets from static runs that are not there")
    for run in arena.made:
        if run["status"] == "failed":
            say(f"{run['task']} {run['entry']} seed {run['seed']} failed: {run['reason']}")
    console.print(f"{len(arena.made)} runs made, {arena.left} left: {directory / FILE}", markup=False)


def progress(arena: Arena) -> Table:
    """Runs by task and state, those under way, and the time left."""
    table = Table("task", *STATES, title=left_words(arena), title_justify="left")
    counts: dict[str, Counter[str]] = {}
    running = []
    for planned, state in arena.states():
        counts.setdefault(planned.task.name, Counter())[state] += 1
        if state == "running":
            running.append(planned.title)
    for task, states in counts.items():
        table.add_row(task, *(str(states[state] or "") for state in STATES))
    table.caption = "\n".join(running)
    return table


def left_words(arena: Arena) -> str:
    """Of what this call makes; and of all where that is more."""
    of_all = f" of {arena.left}" if arena.coming < arena.left else ""
    seconds = arena.coming_s
    if seconds is None:
        return f"{arena.coming}{of_all} runs left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{arena.coming}{of_all} runs left, about {f'{hours} h ' if hours else ''}{minutes} min"


def _print_list(arena: Arena) -> None:
    table = Table("task", "entry", "role", "seed", "steps", "state")
    for planned, state in arena.states():
        entry = planned.entry
        table.add_row(planned.task.name, entry.name, entry.role, str(planned.seed), str(planned.steps), state)
    output().print(table)
