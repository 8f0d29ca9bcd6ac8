"""`equipoise rewards`: what a spec may name, from this machine's own installation, and what it gives for a file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator import spec_yaml
from rewards import registry
from services.commands import reward_training
from services.reward_runs import Run, RunError
from services.tables import reward_view, rewards_table
from services.terminal import AsJson, fail, output, print_json, say

RewardName = Annotated[str, typer.Argument(metavar="NAME", help="as `equipoise rewards list` shows it")]

commands = typer.Typer(help="The rewards that a spec may name; trying, training and judging them.")


@commands.callback(invoke_without_command=True)
def all_rewards(context: typer.Context, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is None:
        _print_list(as_json)


@commands.command("list")
def list_rewards(as_json: AsJson = False) -> None:
    """The rewards of this installation. Plug-ins are listed without importing them."""
    _print_list(as_json)


@commands.command()
def show(name: RewardName, as_json: AsJson = False) -> None:
    """One reward with its options; a plug-in is imported for it."""
    try:
        found = _document(registry.describe_one(name))
    except (ValueError, RuntimeError) as error:  # RuntimeError: a plug-in that does not load
        fail(str(error))
    if as_json:
        print_json(found)
    else:
        output().print(reward_view(found))


@commands.command()
def run(
    name: RewardName,
    source: Annotated[Path, typer.Option("--input", metavar="FILE", help="JSONL: prompt, completion, answer, ...")],
    target: Annotated[Path, typer.Option("--output", metavar="FILE", help="a new file: the rows with `rewards`")],
    options: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE|FILE", help="of the reward; repeated, or a YAML file")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest completion allowed, as rollout.max_tokens")] = 1024,
    thoughts_end: Annotated[
        str | None, typer.Option(metavar="TEXT", help="score what follows it, as rollout.reasoning.end: </think>")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="rows scored together")] = 64,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="null for rows that can't be scored")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the output where it is there already")] = False,
) -> None:
    """Score the rows of a file under a reward.

    A row has prompt (text or chat messages) and completion, where the reward needs them also answer, domain,
    details, completion_tokens and truncated. Stopped, the same command goes on where it was. For example:

        equipoise rewards run math --input in.jsonl --output out.jsonl
        equipoise rewards run conciseness --options free_tokens=20 --input in.jsonl --output out.jsonl
    """
    if target.exists() and not force:
        fail(f"{target} exists already: name a new file, or give --force")
    try:
        wanted = Run(
            name=name,
            options=read_options(options or ()),
            source=source,
            target=target,
            max_tokens=max_tokens,
            thoughts_end=thoughts_end or None,
            batch=batch,
            keep_going=keep_going,
        )
        problems = _run(wanted)
    except RunError as error:
        fail(*(f"{source}: {problem}" for problem in error.problems))
    except (ValueError, RuntimeError) as error:  # options, or a plug-in that does not load
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or source}: {error.strerror or error}")
    print(target)
    for problem in problems:
        say(f"{source}: {problem}")
    if problems:
        raise typer.Exit(1)


commands.command()(reward_training.train)
commands.command("eval")(reward_training.evaluate_model)


def _run(wanted: Run) -> list[str]:
    rows = wanted.check()
    with progress_bar(wanted.name, rows) as on_progress:
        return wanted.run(on_progress)


@contextlib.contextmanager
def progress_bar(words: str, total: int | None) -> Iterator[Callable[..., None]]:
    """On stderr, where that is a terminal; what is yielded takes how much is done, and of how much."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(words, total=total)
        yield lambda done, of=total: progress.update(task, completed=done, total=of)


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the value as YAML has it, or the name of a file with a mapping; later ones win. Raises ValueError."""
    found: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if sign:
            try:
                found[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise ValueError(f"--options {key}: not a YAML value") from None
            continue
        try:
            document = spec_yaml.load(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ValueError(f"--options {text}: {why}; expected KEY=VALUE or a file") from None
        except spec_yaml.DuplicateKey as error:
            raise ValueError(f"--options {text}: line {error.line}: {error.problem}; keep one of them") from None
        except yaml.YAMLError:
            raise ValueError(f"--options {text}: not valid YAML") from None
        if not isinstance(document, dict):
            raise ValueError(f"--options {text}: expected a mapping of options")
        found |= {str(name): option for name, option in document.items()}
    return found


def _print_list(as_json: bool) -> None:
    found = [
        {"name": one.name, "summary": None, "range": None, "options": None, "plugin": one.plugin}
        if one.info is None
        else _document(one.info)
        for one in registry.listed()
    ]
    if as_json:
        print_json(found)
    else:
        output().print(rewards_table(found))


def _document(info: registry.RewardInfo) -> dict[str, Any]:
    """As the API has it: JSON has no infinities."""
    document = dataclasses.asdict(info)
    document["range"] = [end if math.isfinite(end) else None for end in info.range]
    return document
