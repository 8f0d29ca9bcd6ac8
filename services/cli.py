"""`equipoise`: everything from a terminal. What is here talks to a server; what is one is in commands/server.py."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from orchestrator.guardrails import in_force
from policies.models import ADAPTER_CONFIG, ModelError
from services import steer_words, submission
from services.client import ApiError, AuthenticationError, Client, NotSendable, PermissionDenied
from services.client.types import Job, JobDetail
from services.commands import (
    arena,
    datasets,
    judges,
    keys,
    lineage,
    plugins,
    prompts,
    recover,
    rewards,
    rules,
    server,
    spec,
    webhooks,
    why,
)
from services.follow import follow_to_end, front_table
from services.picking import STEP_HELP, picked, picked_line, step_of
from services.serving import serve_command
from services.tables import checkpoints_table, job_view, jobs_table, training_view
from services.terminal import (
    AsJson,
    JobArgument,
    connect_client,
    fail,
    find_job,
    key_source,
    output,
    print_all_signs,
    print_json,
    print_json_line,
    say,
    state_dir,
    use_state_dir,
)
from services.text import event_line, plain
from services.trackers.base import NotInstalled
from services.trackers.choice import chosen

app = typer.Typer(
    name="equipoise",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _common(
    state_dir: Annotated[
        Path | None,
        typer.Option(help="where jobs, checkpoints and the server's address are kept", envvar="EQUIPOISE_STATE_DIR"),
    ] = None,
) -> None:
    """Aligns a language model to several rewards at once, and keeps your hand on the trade-off.

    A first look:

        equipoise demo

    Your own job, with a server in another terminal (`equipoise up`):

        equipoise submit job.yaml --follow
        equipoise steer last accuracy=0.7
        equipoise front last
        equipoise export last best ./my-model
    """
    use_state_dir(state_dir)


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="a YAML or JSON file, or a job's report")],
    follow_it: Annotated[bool, typer.Option("--follow", help="watch it until it ends")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check it and say what would run, and on what")] = False,
    gpus: Annotated[int | None, typer.Option(min=0, help="of --dry-run: GPUs that there are")] = None,
    gpu_gib: Annotated[float | None, typer.Option(min=1, help="of --dry-run: memory of each, GiB")] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=1, help="of --dry-run: memory of the machine, for a job on CPU, GiB")
    ] = None,
    name: Annotated[str | None, typer.Option(help="instead of the name in the file")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job.

    A dry run ends with exit code 1 where the job fits nowhere. For example:

        equipoise submit deploy/jobs/quickstart.yaml --follow
        equipoise submit job.yaml --dry-run --json
    """
    if dry_run and follow_it:
        fail("--follow: a dry run queues no job to follow; drop one of them")
    if follow_it and as_json:
        fail("--follow tells a person what happens: drop --json, or use `equipoise events --follow --json`")
    for option, value in (("--gpus", gpus), ("--gpu-gib", gpu_gib), ("--memory-gib", memory_gib)):
        if value is not None and not dry_run:
            fail(f"{option} needs --dry-run: it says what a machine would have, and chooses none")
    document = submission.load(spec, name)
    with connect_client(state_dir()) as client:
        submission.send(
            client,
            document,
            dry_run=dry_run,
            follow_it=follow_it,
            as_json=as_json,
            gpus=gpus,
            gpu_gib=gpu_gib,
            memory_gib=memory_gib,
        )


@app.command("follow")
def follow_job(
    job: JobArgument,
    tensorboard: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="also write TensorBoard's files below this directory")
    ] = None,
    wandb: Annotated[list[str] | None, typer.Option(metavar="PROJECT", help="also log to this project of W&B")] = None,
    mlflow: Annotated[
        list[str] | None, typer.Option(metavar="URI", help="also log to the MLflow server (or store) at this URI")
    ] = None,
) -> None:
    """Watch a job. Ctrl-C stops watching, not the job.

    Trackers get what a crash can't undo any more, a checkpoint late; what they miss, the next call sends. For example:

        equipoise follow last --tensorboard ./runs --wandb my-project
    """
    try:
        trackers = chosen(tensorboard=tensorboard or (), wandb=wandb or (), mlflow=mlflow or ())
    except NotInstalled as error:
        fail(str(error))
    with connect_client(state_dir()) as client:
        follow_to_end(client, find_job(client, job), output(), trackers)


@app.command()
def jobs(
    by: Annotated[str | None, typer.Option(help="only those that the key of this name submitted")] = None,
    owner: Annotated[str | None, typer.Option(help="of this owner; for the server's own key")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect_client(state_dir()) as client:
        found = list(client.iter_jobs(submitted_by=by, owner=owner))
    if as_json:
        print_json(found)
    elif found:
        output().print(jobs_table(found))
    elif by is not None or owner is not None:
        say("no job is like that")
    else:
        say("no jobs yet: `equipoise submit SPEC` makes one")


@app.command()
def show(
    job: JobArgument,
    spec_alone: Annotated[bool, typer.Option("--spec", help="its spec as YAML, to submit the job again")] = False,
    as_json: AsJson = False,
) -> None:
    """A job's state, objectives and weights; with --json its spec too.

    To make a job again, from its record or from its report:

        equipoise show last --spec > again.yaml
        equipoise submit again.yaml
        equipoise submit report.html
    """
    if spec_alone and as_json:
        fail("--spec: of --json's document, drop one of them")
    with connect_client(state_dir()) as client:
        document = client.job(find_job(client, job))
        if spec_alone:
            _print_spec(client, document)
        elif as_json:
            print_json(document)
        elif document["spec"].get("kind") == "reward_model":
            output().print(training_view(document))
        else:
            output().print(job_view(document, client.steering(document["id"], log_limit=0)))


@app.command()
def events(
    job: JobArgument,
    follow_them: Annotated[bool, typer.Option("--follow", help="wait for more until the job ends")] = False,
    as_json: AsJson = False,
) -> None:
    """What happened to a job, oldest first."""
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        for event in client.stream_events(job_id) if follow_them else client.iter_events(job_id):
            if as_json:
                print_json_line(event)
            else:
                print(event_line(event), flush=True)


@app.command()
def steer(
    job: JobArgument,
    weights: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="weights of objectives")] = None,
    mode: Annotated[str | None, typer.Option(help="who decides: auto (the strategy), blend, or manual (you)")] = None,
    blend: Annotated[float | None, typer.Option(help="your share in mode blend, 0 to 1")] = None,
    to_version: Annotated[
        int | None,
        typer.Option(min=1, help="back to the steering as it stood under that version; beside it only --over"),
    ] = None,
    guardrail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC,max=NUMBER",
            help="in place of the metric's guardrails; min, max, for_steps and action count, METRIC alone takes them "
            "away; may be repeated",
        ),
    ] = None,
    over: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="gradually, in so many steps; at once by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the weights of a job while it trains.

    Objectives that you don't name share what is left, in their present proportion. For example:

        equipoise steer last accuracy=0.7
        equipoise steer last accuracy=2 conciseness=1 clarity=1 --mode manual
        equipoise steer last --mode auto
        equipoise steer last accuracy=0.3 --over 20
        equipoise steer last --guardrail entropy,min=0.1,action=pause
        equipoise steer last --to-version 1
    """
    if to_version is not None and (weights or guardrail or mode is not None or blend is not None):
        fail("--to-version goes back to a steering as a whole: give it alone or with --over, and then the rest")
    named = (("mode", mode), ("blend", blend), ("to_version", to_version))
    change: dict[str, Any] = {key: value for key, value in named if value is not None}
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        now = client.steering(job_id, log_limit=0)
        try:
            if weights:
                change["weights"] = steer_words.weights(weights, now["weights"])
            if guardrail:
                rules = in_force(client.job(job_id)["spec"], now)
                change["guardrails"] = steer_words.guardrails(guardrail, rules)
        except ValueError as error:
            fail(str(error))
        if not change:
            fail("nothing to change: give NAME=VALUE, --mode, --blend, --guardrail or --to-version")
        if over is not None:
            change["over"] = over
        done = client.steer(job_id, if_match=now["version"], **change)
        if as_json:
            print_json(done)
            return
        print(f"version {done['version']} takes effect {_when(done['effective_step'], over or 1)}")
        notes = done.get("notes", [])
        for note in notes:
            say(plain(note))
        if weights and not notes and (mode or now["mode"]) == "auto":
            say("mode auto: the strategy decides, starting from this preference; --mode manual applies it as it is")


@app.command()
def pause(
    job: JobArgument,
    latest: Annotated[
        bool, typer.Option("--latest", help="write no checkpoint: the steps since the newest one run again")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint and let go of the machine."""
    _request(job, lambda client, job_id: client.pause(job_id, checkpoint="latest" if latest else "save"), as_json)


@app.command()
def resume(job: JobArgument, as_json: AsJson = False) -> None:
    """Go on from the newest checkpoint."""
    _request(job, lambda client, job_id: client.resume(job_id), as_json)


@app.command()
def cancel(job: JobArgument, as_json: AsJson = False) -> None:
    """End a job for good; its checkpoints stay."""
    _request(job, lambda client, job_id: client.cancel(job_id), as_json)


@app.command()
def delete(
    job: JobArgument,
    files: Annotated[bool, typer.Option("--files", help="its checkpoints, rollouts and report too")] = False,
) -> None:
    """Forget a job that has ended, for good; its directory stays on the server's disk without --files."""
    with connect_client(state_dir()) as client:
        told = client.delete_job(find_job(client, job), files=files)
    beside = "" if not files else " with its files" if told.get("files") else "; the server has no directory of it"
    print(f"{told['id']} deleted{beside}")


@app.command()
def front(
    job: JobArgument,
    require: Annotated[
        list[str] | None, typer.Option(metavar="NAME>=VALUE", help="pick a point that has this; also with <=")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="pick the best by this objective, or by `weights`")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The Pareto front: what its points reach on every objective; and one of them, by conditions.

    Conditions are on the validation split, and only points whose checkpoint is kept are picked. For example:

        equipoise front last --require 'accuracy>=0.8' --by conciseness
    """
    with connect_client(state_dir()) as client:
        document = client.front(find_job(client, job), require=require, by=by)
    if as_json:
        print_json(document)
        return
    if document["points"]:
        output().print(front_table(document))
    else:
        say("nothing is evaluated yet")
    if document["points"] and (require is not None or by is not None):
        print(picked_line(picked(document, require or ()), document["objectives"]))


@app.command()
def checkpoints(job: JobArgument, as_json: AsJson = False) -> None:
    """The checkpoints that are kept, and where."""
    with connect_client(state_dir()) as client:
        found = client.checkpoints(find_job(client, job))["data"]
    if as_json:
        print_json(found)
    elif found:
        output().print(checkpoints_table(found))
    else:
        say("no checkpoint yet")


@app.command()
def export(
    job: JobArgument,
    step: Annotated[str, typer.Argument(help=STEP_HELP)],
    directory: Annotated[Path, typer.Argument(help="a new directory on the server's machine")],
) -> None:
    """Copy a checkpoint's model to where transformers and vLLM load it.

    Its files are compared with their checksums first. For example:

        equipoise export last best ./my-model
        equipoise export last 'accuracy>=0.8 by conciseness' ./my-model
    """
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        at = step_of(client, job_id, step)
        try:
            done = client.export(job_id, at, str(directory.expanduser().absolute()))
        except PermissionDenied as error:
            if error.code != "exports_disabled":
                raise
            instead = f"equipoise download {job} {at} {directory}"
            fail(f"this server, or this key, writes no exports; fetch it here: {instead}")
    print(done["path"])
    if not Path(done["path"]).exists():
        say(f"that is on the server's machine; `equipoise download {job} {at} {directory}` fetches it to this one")
    _tell_of_use(Path(done["path"]))


@app.command()
def download(
    job: JobArgument,
    step: Annotated[str, typer.Argument(help=STEP_HELP)],
    directory: Annotated[Path, typer.Argument(help="a new directory on this machine")],
) -> None:
    """Fetch a checkpoint's model from a server that may be elsewhere.

    For example:

        equipoise download last best ./my-model
    """
    target = directory.expanduser().absolute()
    if target.exists():
        fail(f"{target} exists already: name a new directory")
    parent = _parent_of(target)
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        at = step_of(client, job_id, step)
        try:
            with tempfile.TemporaryDirectory(dir=parent) as scratch:
                sent = client.download(job_id, at, Path(scratch) / "model.tar")
                _unpacked(sent, Path(scratch)).rename(target)
        except OSError as error:
            fail(f"can't write {target}: {error.strerror or error}")
        except tarfile.TarError as error:
            fail(f"what the server sent can't be unpacked: {error}")
    print(target)
    _tell_of_use(target)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="what `export` or `download` made of a job with policy.lora")],
    directory: Annotated[Path, typer.Argument(help="a new directory")],
    base: Annotated[
        str | None, typer.Option(help="directory or hub id of the adapter's base, if it is not where it was")
    ] = None,
) -> None:
    """Make a whole model of an adapter and its base, on this machine.

    Its weights are to the last bit those that the job's engines had. For example:

        equipoise export last best ./my-adapter
        equipoise merge ./my-adapter ./my-model
    """
    try:
        from policies.merging import merge_adapter
    except ImportError as error:
        fail(f"merging needs {error.name}, which this installation lacks: do it where jobs run")
    try:
        made = merge_adapter(adapter.expanduser().absolute(), directory.expanduser().absolute(), base=base)
    except ModelError as error:
        fail(str(error))
    print(made)
    _tell_of_use(made)


def _tell_of_use(directory: Path) -> None:
    if (directory / ADAPTER_CONFIG).is_file():
        say(f"an adapter, for PEFT or vLLM's --lora-modules; `equipoise merge {directory} NEW` makes a whole model")
    if command := serve_command(directory):
        say(f"to serve it: {command}")


def _unpacked(sent: Path, folder: Path) -> Path:
    """The directory in a tar file, in `folder`. Raises OSError, TarError."""
    with tarfile.open(sent) as archive:
        archive.extractall(folder, filter="data")  # nothing outside, no links, no devices
        names = {name.split("/")[0] for name in archive.getnames()}
    if len(names) != 1:
        raise tarfile.ReadError(f"expected one directory in it, not {len(names)}")
    return folder / names.pop()


def _parent_of(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{target.parent}: {error.strerror}")
    return target.parent


@app.command()
def report(job: JobArgument, open_it: Annotated[bool, typer.Option("--open", help="in the browser")] = False) -> None:
    """The path of a job's HTML report; it is fetched to here where the server has it elsewhere."""
    with connect_client(state_dir()) as client:
        job_id = find_job(client, job)
        path = state_dir() / "jobs" / job_id / "report.html"
        if not path.exists():  # the server is elsewhere, or its state
            path = Path(f"{job_id}.html").absolute()
            text = client.report(job_id)
            try:
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                fail(f"can't write {path}: {error.strerror or error}")
    print(path)
    if open_it:
        webbrowser.open(path.as_uri())


for command, name in (
    (spec.show_spec, "spec"),
    (prompts.show_prompts, "prompts"),
    (rules.show_rules, "rules"),
    (why.why, "why"),
    (lineage.fork, "fork"),
    (lineage.compare, "compare"),
    (recover.recover_jobs, "recover"),
    (server.up, "up"),
    (server.demo, "demo"),
    (server.serve, "serve"),
    (server.worker, "worker"),
    (server.scripts, "scripts"),
):
    app.command(name)(command)
for group, name in (
    (plugins.commands, "plugins"),
    (judges.commands, "judges"),
    (rewards.commands, "rewards"),
    (keys.commands, "keys"),
    (datasets.commands, "datasets"),
    (webhooks.commands, "webhooks"),
    (arena.commands, "arena"),
):
    app.add_typer(group, name=name)


def main() -> NoReturn:
    """The console script: every error is one line on stderr and exit code 2."""
    print_all_signs()
    os.environ["PYTHONSAFEPATH"] = "1"  # children import what we do, not what the current folder has of the same names
    try:
        code = app(standalone_mode=False)
    except AuthenticationError as error:
        say(f"equipoise: {plain(error)}; {plain(key_source(state_dir()))}")
        code = 2
    except ApiError as error:
        say(f"equipoise: {plain(error)}")
        code = 2
    except NotSendable as error:
        say(f"equipoise: {plain(str(error))}")
        code = 2
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # typer's usage errors share no public base; anything else is raised again
        show = getattr(error, "format_message", None)  # what typer raises for words that it does not understand
        if show is None:
            raise
        if message := plain(show()):
            say(f"equipoise: {message} (see `equipoise --help`)")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _print_spec(client: Client, job: JobDetail) -> None:
    print(submission.again(job["spec"], client.iter_events(job["id"])), end="")
    if job["spec"].get("kind") == "reward_model":
        return
    if client.steering(job["id"], log_limit=0)["version"] > 1:
        say("what the job was steered to while it ran is not in it; `equipoise events` has that")


def _when(step: int, over: int) -> str:
    return f"at step {step}" if over == 1 else f"gradually, from step {step} to step {step + over - 1}"


def _request(job: str, ask: Callable[[Client, str], Job], as_json: bool) -> None:
    with connect_client(state_dir()) as client:
        done = ask(client, find_job(client, job))
    if as_json:
        print_json(done)
    else:
        print(f"{done['id']} {done['status']}")


if __name__ == "__main__":
    main()
