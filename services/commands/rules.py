"""`equipoise rules`: what a spec may name, from this machine's own installation; no server is asked."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.rules import Rule, RuleKind, find_rules, rules
from services.tables import rule_view, rules_table
from services.terminal import AsJson, fail, output, print_json

WIDE = 140  # columns of a terminal


def show_rules(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one rule, with all its options")] = None,
    kind: Annotated[RuleKind | None, typer.Option(help="only rules of this kind")] = None,
    as_json: AsJson = False,
) -> None:
    """The rules that a spec may name: what they do, where they are from, what they cost.

    Installed plug-ins are among them. For example:

        equipoise rules --kind weighting
        equipoise rules gramian:upgrad
    """
    found = _found(name, kind)
    if as_json:
        print_json([dataclasses.asdict(rule) for rule in found])
    elif name is not None:
        for rule in found:
            output().print(rule_view(rule))
    else:
        _print_list(found)


def _found(name: str | None, kind: RuleKind | None) -> list[Rule]:
    if name is None:
        return rules(kind)
    try:
        found = find_rules(name)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a plug-in that does not load
        fail(str(error))
    if kind is not None and all(rule.kind != kind for rule in found):
        fail(f"'{name}' is a rule of kind {', '.join(rule.kind for rule in found)}")
    return [rule for rule in found if kind in (None, rule.kind)]


def _print_list(found: list[Rule]) -> None:
    console = output()
    for kind in dict.fromkeys(rule.kind for rule in found):
        console.print(Text(f"{kind.heading} ({kind.path})", style="bold"))
        console.print(rules_table([rule for rule in found if rule.kind == kind], wide=console.width >= WIDE))
        console.print()
