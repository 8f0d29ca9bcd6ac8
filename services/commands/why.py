"""`equipoise why`: what led to the weights of a step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.why import FIELDS, reasons
from services.terminal import AsJson, JobArgument, connect_client, fail, find_job, print_json, state_dir
from services.text import plain


def why(
    job: JobArgument,
    step: Annotated[int | None, typer.Option(min=1, help="a step that is committed; the latest by default")] = None,
    as_json: AsJson = False,
) -> None:
    """Why the weights of a step are what they are: a sentence for each objective.

    It says what the rule was led by, and where a person, a gradual change, a bound or a gate decided instead. With
    --json also the figures, as `weights_because` of the step has them. For example:

        equipoise why last
        equipoise why last --step 120 --json
    """
    with connect_client(state_dir()) as client:
        document = client.job(find_job(client, job))
        if "objectives" not in document["spec"]:
            fail(f"{document['id']} trains a reward model: it has no weights")
        at = document["step"] if step is None else step
        names = ("step", *FIELDS)
        steps = {"after": max(0, at - 2), "limit": min(2, at)}  # and the one before, where there is one
        found = client.metrics(document["id"], **steps, names=names)["data"] if at else []
    if not found or found[-1]["step"] != at:
        known = f"the last is {document['step']}" if document["step"] else "none is yet"
        fail(f"step {at} is not committed: {known}" if at else "no step is committed yet")
    rule = document["spec"]["weighting"]["name"]
    told = reasons(found[-1], found[0] if len(found) > 1 else None, rule)
    if as_json:
        made = {"job": document["id"], "step": at, "weighting": rule}
        because = found[-1].get("weights_because")
        print_json({**made, "reasons": [asdict(reason) for reason in told], "weights_because": because})
        return
    if not told:
        fail(f"step {at} was made by a version that kept no reasons: only later ones tell them")
    print(f"step {at}, {plain(rule)}, mode {found[-1]['weights_because']['mode']}")
    for reason in told:
        print(plain(reason.sentence))
