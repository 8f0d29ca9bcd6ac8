"""Commands that serve: all on one machine (`up`, `demo`), or one part of it (`serve`, `worker`)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.settings import (
    DEFAULT_PORT,
    Credentials,
    Limits,
    Listen,
    Settings,
    checkpoint_store,
    gpu_gib,
    memory_gib,
    secret,
    write_credentials,
)
from services.terminal import fail, say, state_dir

if TYPE_CHECKING:
    from orchestrator.launch.launchers import Launcher
    from orchestrator.state.redis_safety import SettingsWatch
    from services.processes import StopSignals
    from services.server import ApiServer

_REDIS_WAIT_S = 5.0  # for one that starts as we do

RedisUrl = Annotated[
    str,
    typer.Option(
        help="such as redis://:password@host:6379/0, or file:///path of a file that holds it",
        envvar="EQUIPOISE_REDIS_URL",
    ),
]
AliveFile = Annotated[
    Path | None,
    typer.Option(help="touched at every turn, for whoever watches that this works", envvar="EQUIPOISE_ALIVE_FILE"),
]
Host = Annotated[str, typer.Option(help="address to listen on; anything but loopback opens it to other machines")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")]

TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM)", envvar="EQUIPOISE_TLS_CERT"
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE", help="its key, if in a file of its own", envvar="EQUIPOISE_TLS_KEY"),
]
BehindProxy = Annotated[
    str,
    typer.Option(
        "--behind-proxy",
        metavar="ADDRESS",
        envvar="EQUIPOISE_BEHIND_PROXY",
        help="of a proxy in front that speaks TLS, whose X-Forwarded headers are believed; several with commas",
    ),
]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="instead of the common option's")]


Accepted = Annotated[
    str,
    typer.Option(
        "--accept-redis-settings",
        envvar="EQUIPOISE_ACCEPT_REDIS_SETTINGS",
        help="settings of Redis that lose data and are meant, such as appendfsync; several with commas",
    ),
]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", help="text, or json: one object a line", envvar="EQUIPOISE_LOG_FORMAT")
]


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


class LauncherName(StrEnum):
    subprocess = "subprocess"
    ray_jobs = "ray-jobs"
    ray_job = "ray-job"


class Weighting(StrEnum):
    fixed = "fixed"
    hv_gradient = "hv_gradient"
    hypervolume = "hypervolume"
    gradient = "gradient"


def up(
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    behind_proxy: BehindProxy = "",
    state_dir: StateDir = None,
    log_format: LogFormat = None,
) -> None:
    """Serve everything on this machine: Redis, API and worker.

    Ctrl-C stops it cleanly; jobs go on at the next start.
    """
    from services.local import run_until_stopped

    state = _made(state_dir)
    _log_to_stderr(log_format)
    run_until_stopped(state, _listen(host, port, tls_cert, tls_key, behind_proxy))


def demo(
    device: Annotated[Device | None, typer.Option(help="where it trains; found by itself if absent")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="instead of the example's own")] = None,
    weighting: Annotated[Weighting | None, typer.Option(help="who sets the weights")] = None,
    state_dir: StateDir = None,
) -> None:
    """Align a tiny model to three rewards, and get a report.

    Nothing to set up, no network. Ctrl-C stops it; the same command goes on where it was. For example:

        equipoise demo --weighting hypervolume --steps 40
    """
    from services.demo import run_demo

    state = _made(state_dir)
    _log_to_stderr()
    code = run_demo(state, device=device, steps=steps, weighting=weighting)
    raise typer.Exit(code)


def serve(
    redis: RedisUrl,
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    behind_proxy: BehindProxy = "",
    state_dir: StateDir = None,
    accept_redis_settings: Accepted = "",
    log_format: LogFormat = None,
) -> None:
    """Serve the API alone, on a Redis of yours.

    Its key is EQUIPOISE_API_KEY, or in the file EQUIPOISE_API_KEY_FILE, else one that is kept in the state
    directory. A key in EQUIPOISE_METRICS_KEY_FILE is good for GET /metrics alone.
    """
    from services import audit

    state = _made(state_dir)
    _log_to_stderr(log_format, redis)
    audit.log.setLevel(logging.INFO)
    listen = _listen(host, port, tls_cert, tls_key, behind_proxy)
    _serve(redis, listen, state, _check_redis(redis, accept_redis_settings))


def worker(
    redis: RedisUrl,
    capacity: Annotated[int, typer.Option(min=1, max=64, help="jobs at once")] = 1,
    state_dir: StateDir = None,
    owner: Annotated[
        list[str] | None, typer.Option(help="only this owner's jobs; may be given several times; all if absent")
    ] = None,
    accept_redis_settings: Accepted = "",
    log_format: LogFormat = None,
    launcher: Annotated[
        LauncherName,
        typer.Option(help="where drivers run: here, as jobs of a Ray cluster, or each as a RayJob of Kubernetes"),
    ] = LauncherName.subprocess,
    ray_address: Annotated[
        str | None,
        typer.Option(help="of ray-jobs: Ray's job server, http://HEAD:8265", envvar="EQUIPOISE_RAY_JOBS_ADDRESS"),
    ] = None,
    redis_url_file: Annotated[
        Path | None,
        typer.Option(
            help="of ray-jobs and ray-job: the Redis URL's file on the cluster", envvar="EQUIPOISE_REDIS_URL_FILE"
        ),
    ] = None,
    ray_cluster: Annotated[
        str,
        typer.Option(help="of ray-job: the RayCluster that each job's is like", envvar="EQUIPOISE_RAY_CLUSTER"),
    ] = "ray",
    alive_file: AliveFile = None,
) -> None:
    """Run queued jobs, on this machine or on a Ray cluster, from a Redis of yours.

    Several workers may share one Redis. It works for all owners, in turns. It also delivers webhooks.
    With ray-jobs or ray-job, the state directory is a volume that the cluster shares, and drivers go on when this
    stops.
    """
    _log_to_stderr(log_format, redis)
    state = _chosen(state_dir)
    if launcher is LauncherName.ray_jobs:
        drivers = _ray_jobs(ray_address, redis_url_file, state)
    elif launcher is LauncherName.ray_job:
        drivers = _ray_job(ray_cluster, redis_url_file, state)
    else:
        drivers = _subprocesses(redis, state)
    late = _check_redis(redis, accept_redis_settings)
    _work(redis, capacity, drivers, state, owner, alive_file, late)


def scripts(
    redis: RedisUrl,
    alive_file: AliveFile = None,
    accept_redis_settings: Accepted = "",
    log_format: LogFormat = None,
) -> None:
    """Keep the store's scripts in a Redis whose other users may load none (deploy/README.md)."""
    from orchestrator.state.redis_calls import connect
    from orchestrator.state.script_keeper import ScriptKeeper
    from services.processes import StopSignals, running

    _log_to_stderr(log_format, redis)
    late = _check_redis(redis, accept_redis_settings)
    signals = StopSignals()
    keeper = ScriptKeeper(connect(redis), alive_file=alive_file)
    with signals.handled(), _checked(late, signals), running(keeper):
        say("scripts: watching Redis (Ctrl-C stops it)")
        signals.received.wait()


def _chosen(option: Path | None) -> Path:
    return option.expanduser().absolute() if option else state_dir()


def _made(option: Path | None) -> Path:
    path = _chosen(option)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--state-dir: {path}: {error.strerror}; name a directory, or where one can be made")
    return path


def _listen(host: str, port: int, tls_cert: Path | None, tls_key: Path | None, proxies: str) -> Listen:
    try:
        return Listen.chosen(host, port, tls_cert=tls_cert, tls_key=tls_key, proxies=proxies)
    except ValueError as error:
        fail(str(error))


def _credentials(api: ApiServer, state_dir: Path) -> tuple[Credentials, bool, Path | None]:
    """With whether they are new, and the file of a key that somebody keeps in one of his own.

    Such a key is not written to another file, where drivers could read it too.
    """
    key = secret("EQUIPOISE_API_KEY")
    if key and not os.environ.get("EQUIPOISE_API_KEY"):
        file = Path(os.environ["EQUIPOISE_API_KEY_FILE"])
        return Credentials(url=api.url, key=key, ca_file=api.ca_file), False, file
    return *write_credentials(state_dir, api.url, key, ca_file=api.ca_file), None


def _serve(redis: str, listen: Listen, state_dir: Path, late: SettingsWatch | None) -> None:
    from orchestrator import logs
    from orchestrator.launch.ray_jobs import check_environment
    from orchestrator.state.redis_calls import connect
    from orchestrator.state.store import JobStore
    from services.keys import digest
    from services.processes import StopSignals, announce, api_server
    from services.server import ServerError

    signals = StopSignals()
    with signals.handled(), _checked(late, signals):
        try:
            api = api_server(listen)
            credentials, is_new, key_file = _credentials(api, state_dir)
            metrics_key = secret("EQUIPOISE_METRICS_KEY")
            logs.hide(credentials.key, metrics_key)
            limits = Limits.from_environment()
            check_environment()  # jobs are compared with the cluster's machines as they are submitted
            settings = Settings(
                state_dir=state_dir,
                key_sha256=digest(credentials.key),
                follow_key_file=key_file is None,
                key_file=key_file,
                metrics_key_sha256=digest(metrics_key) if metrics_key else None,
                keyless_probes=os.environ.get("EQUIPOISE_KEYLESS_PROBES") == "1",
                limits=limits,
                dashboard=api.dashboard(),
                checkpoint_store=checkpoint_store(),
                gpu_gib=gpu_gib(),
                memory_gib=memory_gib(),
            )
            api.start(JobStore(connect(redis)), settings)
        except (ServerError, ValueError, OSError) as error:
            fail(str(error))
        announce(api, state_dir, credentials.key if is_new else None, key_file=key_file)
        signals.received.wait()
        api.stop()


def _subprocesses(redis: str, state_dir: Path) -> Launcher:
    from orchestrator.launch.launchers import SubprocessLauncher

    return SubprocessLauncher(redis, state_dir)


def _ray_jobs(address: str | None, redis_url_file: Path | None, state_dir: Path) -> Launcher:
    """The password must not be in what Ray shows of a job, so the file is asked for even where there is none."""
    from orchestrator.launch.ray_jobs import RayJobsLauncher, check_environment

    if address is None or redis_url_file is None:
        fail("--launcher ray-jobs needs --ray-address and --redis-url-file")
    try:
        check_environment()
    except ValueError as error:
        fail(str(error))
    try:
        return RayJobsLauncher(address, state_dir, redis_url_file=redis_url_file)
    except ValueError as error:
        fail(f"--ray-address: {error}")


def _ray_job(cluster: str, redis_url_file: Path | None, state_dir: Path) -> Launcher:
    from orchestrator.launch.kube_jobs import RayJobLauncher, in_cluster
    from orchestrator.launch.ray_jobs import check_environment

    if redis_url_file is None:
        fail("--launcher ray-job needs --redis-url-file")
    try:
        check_environment()
    except ValueError as error:
        fail(str(error))
    try:
        api, namespace = in_cluster()
    except ValueError as error:
        fail(f"--launcher ray-job: {error}")
    return RayJobLauncher(api, namespace, cluster, state_dir, redis_url_file=redis_url_file)


def _work(
    redis: str,
    capacity: int,
    launcher: Launcher,
    state_dir: Path,
    owners: list[str] | None,
    alive_file: Path | None,
    late: SettingsWatch | None,
) -> None:
    from orchestrator.launch.worker import Worker
    from orchestrator.state.keys import is_name
    from orchestrator.state.redis_calls import connect
    from orchestrator.state.store import JobStore
    from services.processes import StopSignals, dispatching, running

    for owner in owners or ():
        if not is_name(owner):
            fail("--owner: 1 to 255 letters, digits, _ or - are allowed")
    try:
        checkpoint_store()  # its drivers will open it: better told now than by each of them
        limits = Limits.from_environment()
    except ValueError as error:
        fail(str(error))
    store = JobStore(connect(redis))
    poll_s = 2.0 if launcher.survives_worker else 0.5  # each poll is a request to the cluster
    worker = Worker(
        store,
        launcher,
        state_dir=state_dir,
        capacity=capacity,
        owners=owners,
        poll_s=poll_s,
        alive_file=alive_file,
        most_running=limits.most_running,
    )
    signals = StopSignals()
    signals.on_second = worker.request_kill
    with signals.handled(), _checked(late, signals), dispatching(store), running(worker):
        say("worker: waiting for jobs (Ctrl-C stops it)")
        signals.received.wait()
        if launcher.survives_worker:
            say("stopping: drivers go on, and the next worker finds them again")
        else:
            say("stopping: drivers write a checkpoint and hand their jobs back; Ctrl-C again to stop at once")


def _check_redis(url: str, accepted: str) -> SettingsWatch | None:
    """Refuses a Redis that would lose data; a doubt is a warning. What is left to do where it does not answer."""
    import redis

    from orchestrator.state.redis_calls import connect
    from orchestrator.state.redis_safety import SettingsWatch, UnsafeRedis, check_settings

    try:
        client = connect(url)
    except ValueError as error:
        fail(f"--redis: {error}")
    names = [name.strip() for name in accepted.split(",") if name.strip()]
    deadline = time.monotonic() + _REDIS_WAIT_S
    while True:
        try:
            warnings = check_settings(client, names)
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                say(f"WARNING: Redis does not answer yet; its settings are checked as soon as it does ({error})")
                return SettingsWatch(client, names)
            time.sleep(0.2)
            continue
        except ValueError as error:
            fail(f"--accept-redis-settings: {error}")
        except UnsafeRedis as error:
            fail(*str(error).splitlines())
        for warning in warnings:
            say(f"WARNING: {warning}")
        client.close()
        return None


@contextmanager
def _checked(late: SettingsWatch | None, signals: StopSignals) -> Iterator[None]:
    """A Redis that answers later, and would lose data, ends the process as a signal does, and with the same words."""
    from services.processes import running

    if late is None:
        yield
        return
    late.on_refusal = signals.received.set
    with running(late):
        yield
    if late.refusal is not None:
        fail(*str(late.refusal).splitlines())


def _log_to_stderr(log_format: str | None = None, redis_url: str = "") -> None:
    """And the drivers that are started here, into their own files."""
    from orchestrator import logs

    try:
        logs.setup(log_format)
    except ValueError as error:
        fail(f"--log-format: {error}")
    logs.hide_password(redis_url)
    if log_format:
        os.environ[logs.FORMAT_VARIABLE] = log_format
