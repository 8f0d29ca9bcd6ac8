"""`equipoise rewards train | eval`: reward models, as a job of a server or here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from orchestrator.specs.reward_job import RewardJobSpec
from services import submission
from services.terminal import connect_client, fail, output, print_json, say, state_dir
from services.text import figure, plain


def train(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="a YAML or JSON file with kind: reward_model")],
    follow_it: Annotated[bool, typer.Option("--follow", help="watch it until it ends")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check it and say what would run")] = False,
    local: Annotated[
        Path | None, typer.Option(metavar="DIR", help="train in this process, without a server, into a directory")
    ] = None,
) -> None:
    """Train a reward model on ratings or pairs, as a job.

    For example:

        equipoise rewards train deploy/jobs/reward_model.yaml --follow
        equipoise rewards train reward.yaml --local ./my-reward
    """
    if dry_run and follow_it:
        fail("--follow: a dry run queues no job to follow; drop one of them")
    if local is not None and (dry_run or follow_it):
        fail(f"{'--dry-run' if dry_run else '--follow'}: of a server's jobs; --local asks no server, so drop one")
    document = _read(spec)
    if local is not None:
        _train_here(document, local.expanduser().absolute())
        return
    with connect_client(state_dir()) as client:
        submission.send(client, document, dry_run=dry_run, follow_it=follow_it)


def evaluate_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="directory of a reward model")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="JSONL of ratings or pairs")],
    target: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="of eval.json and eval.html; here if absent"),
    ] = None,
    head: Annotated[str | None, typer.Option(help="by which pairs are judged, not the score")] = None,
    batch: Annotated[int, typer.Option(min=1, help="completions in one forward pass")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print eval.json's document")] = False,
) -> None:
    """Accuracy on pairs, best of four, calibration and fit of a reward model, with plots.

    For example:

        equipoise rewards eval ./my-reward held_out.jsonl
    """
    from rewards import training
    from services.commands.rewards import progress_bar

    chosen: dict[str, Any] = {} if head is None else {"head": head}
    try:
        with progress_bar("scoring", None) as on_progress:
            report = training.evaluate(model, data, on_progress=on_progress, batch_size=batch, device=device, **chosen)
        document, page = report.write(target or Path.cwd())
    except (ValueError, OSError) as error:
        fail(*str(error).splitlines())
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report.to_dict())
    say(f"{document} and {page}")


def _read(path: Path) -> dict[str, Any]:
    document = submission.load(path)
    if document.get("kind") != "reward_model":
        fail(f"{path}: expected kind: reward_model; `equipoise submit` takes other jobs")
    return document


def _train_here(document: Mapping[str, Any], directory: Path) -> None:
    """After Ctrl-C, the same command goes on from the last checkpoint."""
    from rewards import training
    from services.commands.rewards import progress_bar

    spec = RewardJobSpec.model_validate(document)
    device = {"auto": "cpu"}.get(spec.resources.device, spec.resources.device)
    settings = training.TrainSettings.from_spec(spec.training, device=device)
    try:
        with progress_bar("training", None) as on_progress:
            result = training.train(
                settings,
                directory=directory,
                on_step=lambda figures: on_progress(figures["step"], figures["total_steps"]),
                should_stop=lambda: None,
            )
    except (ValueError, FloatingPointError, OSError) as error:
        fail(*str(error).splitlines())
    print(result.model)
    if result.evaluation is not None:
        _print_report(result.evaluation.to_dict())
        say(f"{directory / 'eval.json'} and {directory / 'eval.html'}")


def _print_report(report: Mapping[str, Any]) -> None:
    names = ("rows", "pairwise_accuracy", "best_of_4_accuracy", "ece")
    console = output()
    tables = {
        "All rows": {"": {name: report[name] for name in names}},
        "Heads": report["heads"],
        "Domains": report["domains"],
    }
    for title, rows in tables.items():
        if rows:
            console.print(Text(title, style="bold"))
            console.print(_table(rows))


def _table(rows: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table.add_column("")
    for column in columns:
        table.add_column(Text(plain(column)), justify="right")
    for name, row in rows.items():
        cells = [figure(row.get(column), 0 if column == "rows" else 3) for column in columns]
        table.add_row(Text(plain(name)), *cells)
    return table
