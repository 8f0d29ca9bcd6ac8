"""`equipoise recover`: jobs that Redis has lost, from their directories."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Annotated

import typer

from services.terminal import fail, print_json, say, state_dir
from services.text import plain


def recover_jobs(
    redis: Annotated[
        str | None,
        typer.Option(help="of `serve` and `worker`; the state directory's own if absent", envvar="EQUIPOISE_REDIS_URL"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would become of each")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Put back jobs that Redis has lost, from their directories.

    They come back paused; `equipoise resume JOB` lets them go on from their newest checkpoint.
    """
    from orchestrator.errors import StoreUnavailable
    from orchestrator.state.embedded_redis import EmbeddedRedis
    from orchestrator.state.redis_calls import connect
    from orchestrator.state.store import JobStore
    from orchestrator.storage.checkpoint_store import StoreAway
    from orchestrator.storage.recovery import Finding, recover

    directory = state_dir()
    with ExitStack() as stack:
        try:
            url = redis or stack.enter_context(EmbeddedRedis(directory / "redis")).url
            client = stack.enter_context(connect(url))
            found = list(recover(JobStore(client), directory, dry=dry_run))
        except (StoreUnavailable, StoreAway, ValueError) as error:
            fail(str(error))
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        print(f"{plain(each.job_id)}  {each.finding}  {plain(each.note)}")
    recovered = sum(each.finding is Finding.RECOVERED for each in found)
    lost = sum(each.finding is Finding.LOST for each in found)
    say(f"{recovered} of {len(found)} {'to recover' if dry_run else 'recovered'}, {lost} lost")
