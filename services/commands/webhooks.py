"""`equipoise webhooks`: where to be told of what happens to jobs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator.state.keys import is_name
from services.client.types import Webhook
from services.terminal import AsJson, connect_client, fail, output, print_json, say, state_dir
from services.text import ago, plain

_USUAL = ["job.succeeded", "job.failed", "job.paused", "guardrail.breached", "collapse.detected"]

commands = typer.Typer(no_args_is_help=True, help="Webhooks: add, list, test, delete.")


class Format(StrEnum):
    """What a delivery is."""

    JSON = "json"
    SLACK = "slack"


WebhookId = Annotated[str, typer.Argument(metavar="ID", help="as `equipoise webhooks list` shows it")]


@commands.command()
def add(
    url: Annotated[str, typer.Argument(help="https, of a public host")],
    event: Annotated[list[str], typer.Option(help="may be given several times")] = _USUAL,
    form: Annotated[
        Format, typer.Option("--format", help="json: signed, for programs; slack: a sentence for people")
    ] = Format.JSON,
    as_json: AsJson = False,
) -> None:
    """Be told from now on. The secret that signs deliveries is printed this once.

    For example:

        equipoise webhooks add https://hooks.slack.com/services/T0/B0/X --format slack
        equipoise webhooks add https://example.com/hook --event job.succeeded --event job.failed
    """
    with connect_client(state_dir()) as client:
        made = client.create_webhook(url=url, events=event, format=form.value)
    if as_json:
        print_json(made)
        return
    say(f"webhook {made['id']} is told of {', '.join(made['events'])}")
    if form is Format.JSON:
        say("its secret, shown this once:")
        print(made["secret"])
    say(f"try it: equipoise webhooks test {made['id']}")


@commands.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List webhooks, oldest first; never their secrets."""
    with connect_client(state_dir()) as client:
        found = client.webhooks()["data"]
    if as_json:
        print_json(found)
    elif found:
        output().print(_table(found))
    else:
        say("no webhooks: `equipoise webhooks add URL` makes one")


@commands.command("test")
def try_webhook(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Deliver a test now, once. Ends with 1 where it was not taken."""
    with connect_client(state_dir()) as client:
        tried = client.test_webhook(_checked(webhook))
    if as_json:
        print_json(tried)
    else:
        print(f"taken, with status {tried['status']}" if tried["delivered"] else f"not taken: {plain(tried['error'])}")
    if not tried["delivered"]:
        raise typer.Exit(1)


@commands.command()
def delete(webhook: WebhookId) -> None:
    """Tell it nothing any more, what waits included."""
    with connect_client(state_dir()) as client:
        client.delete_webhook(_checked(webhook))
    print(f"{webhook} deleted")


def _checked(webhook: str) -> str:
    if not is_name(webhook):
        fail(f"'{webhook}' is no webhook's id: `equipoise webhooks list` shows them")
    return webhook


def _table(webhooks: Sequence[Webhook]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("id", "address", "format", "events", "last delivery", "state"):
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    for webhook in webhooks:
        last, error = webhook["last_delivered_at"], webhook["last_error"]
        state = f"{webhook['status']}: {plain(error)}" if error else webhook["status"]
        table.add_row(
            Text(webhook["id"]),
            Text(plain(webhook["url"])),
            Text(webhook["format"]),
            Text(" ".join(webhook["events"])),
            Text("" if last is None else ago(last)),
            Text(state),
        )
    return table
