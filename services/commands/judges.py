"""`equipoise judges`: the operator's judges, from this machine's own file; no server is asked."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from rewards.judges import profiles
from services.terminal import fail, output, print_json, say
from services.text import plain

_PROMPT, _COMPLETION, _ANSWER = "What is 2 + 2?", "2 + 2 = 4", "4"

commands = typer.Typer(help="The operator's judges, by the file that EQUIPOISE_JUDGES names.", no_args_is_help=False)


@commands.callback(invoke_without_command=True)
def list_judges(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="names alone, for scripts")] = False,
) -> None:
    """The judges that specs may name here, and whether their files can be read.

    For example:

        equipoise judges
        equipoise judges check strict
    """
    if context.invoked_subcommand is not None:
        return
    found = _profiles()
    if as_json:
        print_json(sorted(found))
        return
    if not found:
        say(f"no judges: {profiles.VARIABLE} names no file")
        return
    table = Table("judge", "model", "at", "state", box=None)
    for name, profile in sorted(found.items()):
        table.add_row(name, plain(profile.model), plain(profile.base_url), plain(_state(profile)))
    output().print(table)


@commands.command()
def check(name: Annotated[str, typer.Argument(metavar="NAME", help="one that `equipoise judges` lists")]) -> None:
    """Make one call, and say what came of it."""
    from rewards.base import RewardBatch
    from rewards.judges.client import JudgeError
    from rewards.judges.judge import Judge, JudgeOptions

    if (profile := _profiles().get(name)) is None:
        fail(f"no such judge; there are {', '.join(profiles.names()) or 'none'}")
    if (state := _state(profile)) != "ready":
        fail(state)
    judge = Judge(JudgeOptions(profile=name, rubric="correctness"))
    batch = RewardBatch(
        prompts=(_PROMPT,), completions=(_COMPLETION,), answers=(_ANSWER,),
        completion_tokens=(8,), truncated=(False,), max_tokens=64,
    )  # fmt: skip
    started = time.monotonic()
    try:
        (score,) = judge.score(batch)
    except JudgeError as error:
        fail(str(error))
    finally:
        figures = judge.figures()
        judge.close()
    tokens = f"{figures['input_tokens']:.0f} tokens in, {figures['output_tokens']:.0f} out"
    print(f"{name}: scored {score:.2f} in {time.monotonic() - started:.1f} s, {tokens}, cost {figures['cost']:.6f}")


def _profiles() -> dict[str, profiles.Profile]:
    try:
        return profiles.load()
    except profiles.ProfileFileError as error:
        fail(error.detail)


def _state(profile: profiles.Profile) -> str:
    try:
        profile.headers()
        profile.tls()
    except profiles.ProfileFileError as error:
        return error.detail
    return "ready"
