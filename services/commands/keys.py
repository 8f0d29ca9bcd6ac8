"""`equipoise keys`: who may talk to the server, and to do what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator.state.gpu_hours import MAX_QUOTA_HOURS
from orchestrator.state.keystore import Scope
from services.terminal import AsJson, Document, connect_client, fail, output, print_json, say, state_dir
from services.text import plain

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([1-9]\d{0,8})([smhd])")

commands = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke; GPU-hours of their owners.")


@commands.command()
def create(
    name: Annotated[str, typer.Option(help="what it is for")],
    scope: Annotated[list[Scope], typer.Option(help="what it may do; may be given several times")],
    owner: Annotated[str | None, typer.Option(help="whose jobs it sees; yours if absent")] = None,
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="such as 12h or 90d; else never")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is printed this once.

    For example:

        equipoise keys create --name ci --scope read --scope submit --expires 90d
    """
    expires_in_s = None if expires is None else _seconds(expires)
    with connect_client(state_dir()) as client:
        made = client.create_key(
            name=name, scopes=[each.value for each in scope], owner=owner, expires_in_s=expires_in_s
        )
    if as_json:
        print_json(made)
        return
    if not {Scope.READ, Scope.ADMIN} & set(scope):
        say("it may not read: jobs can't be followed with it, nor the dashboard seen; --scope read is for that")
    say(f"key {made['id']} of {plain(made['owner'])}, shown this once:")
    print(made["key"])


@commands.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="only this owner's")] = None, as_json: AsJson = False
) -> None:
    """List keys, newest first; never their secrets."""
    with connect_client(state_dir()) as client:
        found = list(client.iter_keys(owner=owner))
    if as_json:
        print_json(found)
    elif found:
        output().print(_table(found))
    else:
        say("no keys but the one in the server's state directory: `equipoise keys create` makes one")


@commands.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="as `equipoise keys list` shows it")]) -> None:
    """Refuse a key from now on."""
    if not key_id.isalnum():
        fail(f"'{key_id}' is no key's id: `equipoise keys list` shows them")
    with connect_client(state_dir()) as client:
        print(f"{client.revoke_key(key_id)['id']} revoked")


@commands.command()
def quota(
    owner: Annotated[str | None, typer.Argument(help="whose; yours if absent")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="of a month that it may take from now on")] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="it may take any number")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the GPU-hours that an owner took this month, and may take; or set how many it may.

    For example:

        equipoise keys quota acme --gpu-hours 200
    """
    if gpu_hours is not None and no_limit:
        fail("give --gpu-hours or --no-limit, not both")
    if gpu_hours is not None and not 0 < gpu_hours <= MAX_QUOTA_HOURS:
        fail(f"--gpu-hours: expected a number above 0, at most {MAX_QUOTA_HOURS:,}; --no-limit takes a quota away")
    with connect_client(state_dir()) as client:
        found: Document
        if gpu_hours is not None or no_limit:
            found = client.set_quota(owner or client.own_key()["owner"], gpu_hours=gpu_hours)
        else:
            found = client.own_key() if owner is None else client.quota(owner)
    name, hours = found["owner"], found["gpu_hours"]
    if as_json:
        print_json({"owner": name, "gpu_hours": hours})
        return
    limit = "any number" if hours["quota"] is None else f"{hours['quota']:.6g}"
    print(f"{plain(name)}: {hours['used']:.6g} GPU-hours this month, of {limit}; renews {_day(hours['renews_at'])}")


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        fail(f"--expires: expected a number with s, m, h or d, such as 90d, not '{text}'")
    return int(match.group(1)) * _UNITS_S[match.group(2)]


def _table(keys: Sequence[Document]) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("id", "name", "owner", "scopes", "created", "last used", "state"):
        table.add_column(heading, no_wrap=heading == "id", overflow="fold")
    for key in keys:
        table.add_row(
            Text(key["id"]),
            Text(plain(key["name"])),
            Text(plain(key["owner"])),
            Text(" ".join(key["scopes"])),
            Text(_day(key["created_at"])),
            Text(_day(key["last_used_at"])),
            Text(_state(key)),
        )
    return table


def _state(key: Document) -> str:
    if key["revoked_at"] is not None:
        return f"revoked {_day(key['revoked_at'])}"
    if key["expires_at"] is None:
        return "valid"
    over = key["expires_at"] <= datetime.now(UTC).timestamp()
    return f"{'expired' if over else 'until'} {_day(key['expires_at'])}"


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
