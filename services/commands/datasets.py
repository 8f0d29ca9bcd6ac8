"""`equipoise datasets`: prompts that a server keeps, for specs to name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from services.client.types import DatasetFormat
from services.terminal import AsJson, Document, connect_client, fail, output, print_json, say, state_dir
from services.text import ago, plain

_FORMATS: tuple[DatasetFormat, ...] = ("jsonl", "csv", "parquet")

DatasetId = Annotated[str, typer.Argument(metavar="ID", help="as `equipoise datasets list` shows it")]

commands = typer.Typer(no_args_is_help=True, help="Prompts that the server keeps.")


@commands.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl, .csv or .parquet")],
    name: Annotated[str | None, typer.Option(help="what people call it; the file's name if absent")] = None,
    prompt_column: Annotated[str, typer.Option(help="where a row has its prompt")] = "prompt",
    answer_column: Annotated[str, typer.Option(help="and its ground truth; '' where it has none")] = "answer",
    domain_column: Annotated[str, typer.Option(help="what kind of prompt it is, by which rewards are picked")] = "",
    detail_column: Annotated[
        list[str] | None, typer.Option(help="a further column that a reward may read; may be repeated")
    ] = None,
) -> None:
    """Check every row of a file, and keep it on the server.

    A spec names it by what is printed. For example:

        equipoise datasets upload train.csv --prompt-column question
    """
    suffix = file.suffix.removeprefix(".").lower()
    kind = next((known for known in _FORMATS if known == suffix), None)
    if kind is None:
        fail(f"{file}: expected a .jsonl, .csv or .parquet file")
    try:
        with file.open("rb") as content, connect_client(state_dir()) as client:
            made = client.upload_dataset(
                content,
                name=name or file.name,
                format=kind,
                prompt=prompt_column,
                answer=answer_column,
                domain=domain_column,
                details=detail_column or (),
            )
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")
    say(f"{made['rows']} rows; in a spec:")
    print(f"dataset:{made['id']}")


@commands.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connect_client(state_dir()) as client:
        found = list(client.iter_datasets())
    if as_json:
        print_json(found)
    elif found:
        output().print(_table(found))
    else:
        say("no datasets yet: `equipoise datasets upload FILE` makes one")


@commands.command()
def show(
    dataset_id: DatasetId,
    rows: Annotated[int, typer.Option(min=0, max=100, help="how many of its first rows")] = 3,
    as_json: AsJson = False,
) -> None:
    """A dataset and its first rows."""
    with connect_client(state_dir()) as client:
        dataset = client.dataset(_checked(dataset_id))
        preview = client.dataset_rows(dataset["id"], limit=rows)["data"] if rows else []
    if as_json:
        print_json({**dataset, "preview": preview})
        return
    output().print(_table([dataset]))
    for row in preview:
        answer = "" if row["answer"] is None else f"  ->  {row['answer']}"
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        output().print(Text(plain(f"{row['row']}: {prompt}{answer}")))


@commands.command()
def delete(dataset_id: DatasetId) -> None:
    """Delete a dataset for good; jobs that have yet to begin with it fail."""
    with connect_client(state_dir()) as client:
        print(f"{client.delete_dataset(_checked(dataset_id))['id']} deleted")


def _checked(text: str) -> str:
    """Without what would make another path of it."""
    dataset_id = text.removeprefix("dataset:")
    if not dataset_id.replace("-", "").isalnum():
        fail(f"'{text}' is no dataset's id: `equipoise datasets list` shows them")
    return dataset_id


def _table(datasets: Sequence[Document]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("id", "name", "format", "rows", "columns", "created"):
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    for dataset in datasets:
        named = dataset["columns"]
        columns = [named["prompt"], named["answer"] or "-", *filter(None, [named["domain"]]), *named["details"]]
        cells = (dataset["id"], dataset["name"], dataset["format"], str(dataset["rows"]), ", ".join(columns))
        table.add_row(*(Text(plain(cell)) for cell in cells), ago(dataset["created_at"]))
    return table
