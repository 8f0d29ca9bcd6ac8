"""`equipoise spec`: every field of a job's spec, from this machine's own installation; no server is asked."""

from __future__ import annotations

from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.spec import JobSpec
from orchestrator.spec_fields import Section, sections
from orchestrator.specs.base import Spec
from orchestrator.specs.reward_job import RewardJobSpec
from services.tables import section_view
from services.terminal import fail, output, print_json


class Kind(StrEnum):
    """What a job trains."""

    alignment = "alignment"
    reward_model = "reward_model"


_SPECS: dict[Kind, type[Spec]] = {Kind.alignment: JobSpec, Kind.reward_model: RewardJobSpec}


def show_spec(
    section: Annotated[str | None, typer.Argument(metavar="SECTION", help="one part, such as rollout")] = None,
    kind: Annotated[Kind, typer.Option(help="of the job")] = Kind.alignment,
    as_json: Annotated[bool, typer.Option("--json", help="print the JSON schema, for editors and scripts")] = False,
) -> None:
    """The fields of a job: what each is, what it takes, and what it is when absent.

    For example:

        equipoise spec
        equipoise spec rollout
        equipoise spec objectives.reward.hosting
        equipoise spec --json > equipoise.schema.json
    """
    model = _SPECS[kind]
    if as_json:
        if section is not None:
            fail("--json: prints the schema of the whole spec; drop SECTION")
        print_json(model.model_json_schema())
        return
    found = sections(model)
    console = output()
    for part in found if section is None else _chosen(found, section):
        console.print(section_view(part, {other.path for other in found}))
        console.print()


def _chosen(found: list[Section], wanted: str) -> list[Section]:
    """That part and those inside it; brackets of lists may be left out."""
    plain_paths = {part.path.replace("[]", ""): part.path for part in found if part.path}
    name = wanted.replace("[]", "").strip(".")
    if name not in plain_paths:
        ends = [path for path in plain_paths if path.rpartition(".")[2] == name]
        near = ends or get_close_matches(name, plain_paths, n=3) or sorted(p for p in plain_paths if "." not in p)
        fail(f"no part '{wanted}' of a spec; there is {', '.join(near)}")
    path = plain_paths[name]
    return [part for part in found if part.path == path or part.path.startswith((f"{path}.", f"{path}[]."))]
