"""What every command shares: where output goes, how it ends in an error, and how it finds a server and a job."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from orchestrator.unprintable import UNSHOWN
from services.client import Client, NotFound, Retry
from services.settings import credentials_path, default_state_dir
from services.text import plain

Document = Mapping[str, Any]

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="a job's id, the start of it, or `last`")]
AsJson = Annotated[bool, typer.Option("--json", help="print the API's own document, for scripts")]

EXIT_ERROR = 2
_WHOLE_ID = re.compile(r"job-[0-9a-f]{12}")
_RETRY = Retry(attempts=3)  # a person waits: less than a second where there is no server
_state_dir = default_state_dir()


def use_state_dir(path: Path | None) -> None:
    """As the common option of all commands has it; the default one where that is absent."""
    global _state_dir
    _state_dir = (path or default_state_dir()).expanduser().absolute()


def state_dir() -> Path:
    """Of this command: known once the common options are read."""
    return _state_dir


def output() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def beside_output() -> Console:
    """For progress of a command whose output a script reads: on a terminal both are one."""
    return output() if sys.stdout.isatty() else Console(highlight=False, soft_wrap=True, stderr=True)


def say(message: str) -> None:
    """A line for a person, kept apart from what a script reads."""
    print(message, file=sys.stderr, flush=True)


def fail(*messages: str) -> NoReturn:
    """Ends the command with one clear line for each mistake."""
    for message in messages:
        say(f"equipoise: {plain(message)}")
    raise typer.Exit(EXIT_ERROR)


def print_json(document: Any) -> None:
    """As people read it, but for what could steer a terminal: that is escaped, as JSON may be."""
    print(_shown(json.dumps(document, indent=2, ensure_ascii=not _takes_all())))


def print_json_line(document: Any) -> None:
    """The same on one line, at once."""
    print(_shown(json.dumps(document, ensure_ascii=not _takes_all())), flush=True)


def _takes_all() -> bool:
    """Whether stdout has every character: those of an old locale have a few, and JSON may escape the others."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def print_all_signs() -> None:
    """From here on: what the encoding of stdout has no sign for is escaped, and no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _shown(text: str) -> str:
    """Those below a space JSON escapes itself."""
    return UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def connect_client(state_dir: Path) -> Client:
    """The server of EQUIPOISE_URL and EQUIPOISE_API_KEY, else the one that left its address in the state directory."""
    try:
        return Client.from_state(state_dir, retry=_RETRY)
    except (ValueError, OSError) as error:
        fail(str(error))


def key_source(state_dir: Path) -> str:
    """Where `connect_client` has its key from."""
    if os.environ.get("EQUIPOISE_API_KEY"):
        return "it was taken from EQUIPOISE_API_KEY"
    return f"it was taken from {credentials_path(state_dir)}"


def find_job(client: Client, wanted: str) -> str:
    """A job's id from `last`, the id, or the start of it that no other job shares: for that alone all are listed."""
    if wanted == "last":
        newest = client.jobs(limit=1)["data"]
        return newest[0]["id"] if newest else fail("there are no jobs yet: `equipoise submit SPEC` makes one")
    if _WHOLE_ID.fullmatch(wanted):
        try:
            return client.job(wanted)["id"]
        except NotFound:
            fail(_none(wanted))
    ids = [job["id"] for job in client.iter_jobs()]
    if wanted in ids:
        return wanted
    found = [job_id for job_id in ids if wanted and wanted in (job_id[: len(wanted)], job_id[4 : 4 + len(wanted)])]
    if len(found) == 1:
        return found[0]
    if found:
        fail(f"'{wanted}' is the start of {len(found)} jobs: {', '.join(found[:5])}")
    fail(_none(wanted))


def _none(wanted: str) -> str:
    return f"no job '{wanted}': `equipoise jobs` lists them"
