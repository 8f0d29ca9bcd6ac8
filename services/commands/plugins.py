"""`equipoise plugins`: what installed packages offer, from this machine's own installation, and how to begin one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.plugins import installed
from orchestrator.rules import RuleKind, rules
from rewards import registry
from services.plugin_packages import Kind, write_package
from services.tables import plugins_table
from services.terminal import fail, output, print_json, say

commands = typer.Typer(help="Weightings, estimators and rewards of installed packages; and a package to begin with.")


@commands.callback(invoke_without_command=True)
def show_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON, for scripts")] = False,
) -> None:
    """Weightings, estimators and rewards of installed packages: where from, and what is wrong with them.

    Imports each. Ends with 1 where one can't be used.
    """
    if context.invoked_subcommand is not None:
        return
    found = installed()
    if as_json:
        print_json([dataclasses.asdict(plugin) for plugin in found])
    elif found:
        output().print(plugins_table(found))
    else:
        say("no plug-ins are installed here; `equipoise plugins new` writes a package that offers one")
    if any(plugin.problem is not None for plugin in found):
        raise typer.Exit(1)


@commands.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as a spec will say it, such as politeness")],
    kind: Annotated[Kind, typer.Option(help="a reward, or a rule of weighting")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="a new folder; ./NAME if absent")] = None,
) -> None:
    """Write a small package with a plug-in that works, and its test, to be made your own.

    For example:

        equipoise plugins new politeness --kind reward
        equipoise plugins new worst_first --kind rule
    """
    taken = registry.names() if kind is Kind.REWARD else [rule.name for rule in rules(RuleKind.WEIGHTING)]
    if name in taken:
        fail(f"NAME: there is a {kind.value} {name!r} already; give it another name")
    folder = to or Path(name)
    try:
        files = write_package(folder, name, kind)
    except ValueError as error:
        fail(f"NAME: {error}")
    except FileExistsError:
        fail(f"{folder} is there already, and nothing is overwritten; give another --to")
    except OSError as error:
        fail(f"{folder}: {error.strerror}")
    for file in files:
        print(file)
    say(f"its README.md says how it is tried and installed: {folder / 'README.md'}")
