"""`equipoise plugins`: what installed packages offer, from this machine's own installation; no server is asked."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from orchestrator.plugins import installed
from services.tables import plugins_table
from services.terminal import output, print_json, say


def show_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON, for scripts")] = False,
) -> None:
    """Weightings, estimators and rewards of installed packages: where from, and what is wrong with them.

    Imports each. Ends with 1 where one can't be used.
    """
    found = installed()
    if as_json:
        print_json([dataclasses.asdict(plugin) for plugin in found])
    elif found:
        output().print(plugins_table(found))
    else:
        say("no plug-ins are installed here; README.md says how a package offers them")
    if any(plugin.problem is not None for plugin in found):
        raise typer.Exit(1)
