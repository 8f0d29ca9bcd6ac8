"""The CLI as a person runs it: a process of its own, against a real server on a real Redis.

What only asks one thing is forked (tests/cli_forks.py); what is about starting, signals or output as it comes is not.
"""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Lease
from orchestrator.storage.checkpoints import write_checkpoint
from services.client import Client
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings, read_credentials, write_credentials
from tests.cli_forks import LIMIT_S, Commands, environment_of
from tests.support import self_signed

SPEC = """
name: tiny
steps: 4
policy: {model: quickstart, dtype: float32}
data: {type: quickstart, train: 64, validation: 16, test: 16}
objectives:
  - {name: accuracy, reward: {name: math}, weight: 0.6}
  - {name: conciseness, reward: {name: conciseness}, weight: 0.3}
  - {name: clarity, reward: {name: clarity}, weight: 0.1}
rollout: {max_tokens: 64}
"""


def heed_ctrl_c() -> None:
    """As from a terminal: a test run that was put in the background passes on that SIGINT is to be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(
    state_dir: Path, *words: str, program: Sequence[str] = ("-m", "services.cli"), **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment_of(state_dir, environment),
        cwd=state_dir, start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = LIMIT_S) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


class Installation:
    """A state directory, a server on it, and the CLI that finds it there."""

    def __init__(self, commands: Commands, state_dir: Path, store: JobStore) -> None:
        self.commands, self.state_dir, self.store = commands, state_dir, store
        self.spec = state_dir / "spec.yaml"
        self.spec.write_text(SPEC)

    def run(self, *words: str) -> tuple[int, str, str]:
        return self.commands.run(self.state_dir, *words)

    def succeed(self, *words: str) -> str:
        code, output, errors = self.run(*words)
        assert code == 0, errors
        return output

    def fail(self, *words: str) -> str:
        """The one line that it says."""
        code, output, errors = self.run(*words)
        assert (code, output) == (2, ""), (code, output, errors)
        assert errors.startswith("equipoise: ")
        assert errors.count("\n") == 1, errors
        return errors.removeprefix("equipoise: ").rstrip("\n")

    def submit(self) -> str:
        return self.succeed("submit", str(self.spec)).strip()

    def claim(self, job_id: str) -> Lease:
        lease = self.store.claim(job_id, nonce=uuid.uuid4().hex, ttl_s=60).lease
        assert lease is not None
        self.store.set_status(lease, JobStatus.RUNNING)
        return lease


@pytest.fixture
def cli(commands: Commands, redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    connection = connect(redis_url)
    store = JobStore(connection, owner=f"cli-{uuid.uuid4().hex}")
    server = ApiServer("127.0.0.1", 0)
    credentials, _ = write_credentials(tmp_path, server.url)
    server.start(store, Settings(state_dir=tmp_path, key_sha256=digest(credentials.key), local_exports=True))
    yield Installation(commands, tmp_path, store)
    server.stop()
    connection.close()


def step_record(step: int) -> dict[str, Any]:
    names = ("accuracy", "conciseness", "clarity")
    third = dict.fromkeys(names, 1 / 3)
    return {
        "objectives": {name: {"mean": 0.5 + step / 10, "std": 0.1, "zero_share": 0.0} for name in names},
        "weights": {"strategy": third, "applied": third},
        "evaluation": None, "tokens": 1000, "mean_tokens": 30.0, "entropy": 0.5, "kl": 0.0,
        "timings_s": {"rollout": 0.5, "score": 0.1, "learn": 0.3, "sync": 0.1, "evaluate": 0.0, "step": 1.0},
    }  # fmt: skip


FRONT = {
    "objectives": ["accuracy", "conciseness", "clarity"], "hypervolume": 0.61, "hypervolume_base": 0.5,
    "points": [
        {"step": 1, "objectives": {"accuracy": 0.71, "conciseness": 0.5, "clarity": 0.9}, "mean_tokens": 30.0,
         "on_front": True, "collapsed": False, "checkpoint": True, "test": None},
    ],
}  # fmt: skip


def wait_for(process: subprocess.Popen[str], stream: str, met: Callable[[str], bool]) -> str:
    """Reads lines until one fits; the process may go on."""
    lines = []
    while True:
        line = (process.stdout if stream == "stdout" else process.stderr).readline()  # type: ignore[union-attr]
        assert line, "".join(lines)
        lines.append(line)
        if met(line):
            return line


# -- submitting ---------------------------------------------------------------------------------------------


def test_a_job_goes_from_submission_to_the_list(cli: Installation) -> None:
    code, output, errors = cli.run("jobs")
    assert (code, output, errors) == (0, "", "no jobs yet: `equipoise submit SPEC` makes one\n")
    assert cli.succeed("jobs", "--json") == "[]\n"
    job_id = cli.submit()
    named = cli.succeed("submit", str(cli.spec), "--name", "another name").strip()
    assert [job["id"] for job in json.loads(cli.succeed("jobs", "--json"))] == [named, job_id]
    listed = cli.succeed("jobs")
    assert "another name" in listed
    assert "queued" in listed


def test_a_dry_run_says_what_would_run_and_submits_nothing(cli: Installation) -> None:
    plan = cli.succeed("submit", str(cli.spec), "--dry-run")
    for part in ("tiny: valid", "accuracy, conciseness, clarity", "steps        4 of 256 completions, 1024 in all"):
        assert part in plan
    for part in ("parameters   656,064", "on 2 GPUs of 80.0 GiB", "on CPU, ", "activations and logits"):
        assert part in plan
    assert "does not fit" not in plan
    assert "is it meant?" not in plan
    code, crowded, _ = cli.run("submit", str(cli.spec), "--dry-run", "--gpus", "1", "--gpu-gib", "1")
    assert code == 1  # it fits nowhere
    assert "on 1 GPU of 1.0 GiB that all share" in crowded
    assert "does not fit: " in crowded
    assert "  would help: optimizer.tokens_per_microbatch: " in crowded
    cli.spec.write_text(SPEC.replace("steps: 4", "steps: 4\noptimizer: {warmup_steps: 8}"))
    odd = cli.succeed("submit", str(cli.spec), "--dry-run")
    assert "is it meant?  optimizer.warmup_steps: the job ends after 4 updates" in odd
    assert cli.succeed("jobs", "--json") == "[]\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 4", "steps: 4\nrolout: {}", "rolout: unknown field, did you mean 'rollout'?"),
        ("steps: 4", "steps: 0", "steps: Input should be greater than or equal to 1"),
        ("0.6", "-1", "objectives.0.weight: Input should be greater than or equal to 0"),
        ("name: tiny", "name: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_one_line_that_names_the_field(cli: Installation, old: str, new: str, line: str) -> None:
    cli.spec.write_text(SPEC.replace(old, new))
    assert line in cli.fail("submit", str(cli.spec), "--dry-run")


def test_files_that_the_server_misses_are_one_line(cli: Installation) -> None:
    data = "{type: files, train: no/train.jsonl, validation: /no/validation.jsonl}"
    spec = SPEC.replace("model: quickstart", f"model: {cli.state_dir}").replace(
        "{type: quickstart, train: 64, validation: 16, test: 16}", data
    )
    cli.spec.write_text(spec)
    message = cli.fail("submit", str(cli.spec))
    assert "policy.model: " in message
    assert f"{cli.state_dir}/no/train.jsonl" in message  # relative paths are the caller's


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["submit", "/no/such.yaml"], "/no/such.yaml: No such file or directory"),
        (["rules", "gradent"], "no rule 'gradent', did you mean 'gradient'"),
        (["sumbit"], "No such command 'sumbit'. Did you mean 'submit'? (see `equipoise --help`)"),
        (["keys", "quota", "."], "owner: '.' is no id"),
        (["jobs", "--colour"], "No such option: --colour (see `equipoise --help`)"),
        (["steer"], "Missing argument 'JOB'. (see `equipoise --help`)"),
        (["show", "last"], "there are no jobs yet: `equipoise submit SPEC` makes one"),
        (["show", "job-1"], "no job 'job-1': `equipoise jobs` lists them"),
        (["worker", "--redis", "http://x"], "--redis: "),
        (
            ["worker", "--redis", "x", "--launcher", "ray-jobs"],
            "--launcher ray-jobs needs --ray-address and --redis-url",
        ),
        (
            [
                "worker",
                "--redis",
                "x",
                "--launcher",
                "ray-jobs",
                "--redis-url-file",
                "x",
                "--ray-address",
                "ray://head:1",
            ],
            "--ray-address: the address of Ray's job server, such as ",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(cli: Installation, words: list[str], line: str) -> None:
    assert cli.fail(*words).startswith(line)


def test_a_role_label_that_ray_would_refuse_is_told_at_the_start(commands: Commands, tmp_path: Path) -> None:
    words = ["worker", "--redis", "redis://127.0.0.1:1", "--launcher", "ray-jobs", "--ray-address", "http://head:1"]
    code, _, errors = commands.run(tmp_path, *words, "--redis-url-file", "x", EQUIPOISE_RAY_ROLE_LABEL="my role")
    assert code == 2
    assert errors.startswith("equipoise: EQUIPOISE_RAY_ROLE_LABEL: 'my role' is no label's name")


def test_without_a_server_the_line_says_how_to_start_one(commands: Commands, tmp_path: Path) -> None:
    code, _, errors = commands.run(tmp_path / "..", "jobs", EQUIPOISE_STATE_DIR=str(tmp_path / "none"))
    assert code == 2
    assert errors.startswith("equipoise: no Equipoise server was ever started")
    assert errors.endswith("start one with `equipoise up`\n")
    unused = ApiServer("127.0.0.1", 0)
    write_credentials(tmp_path, unused.url)
    unused.stop()
    code, _, errors = commands.run(tmp_path, "jobs")
    assert (code, errors) == (2, f"equipoise: no Equipoise server at {unused.url}: start one with `equipoise up`\n")
    code, _, errors = commands.run(tmp_path, "jobs", EQUIPOISE_URL="http://127.0.0.1:9", EQUIPOISE_API_KEY="x")
    assert (code, errors) == (
        2,
        "equipoise: no Equipoise server at http://127.0.0.1:9: start one with `equipoise up`\n",
    )


# -- looking ------------------------------------------------------------------------------------------------


def test_jobs_are_named_by_last_or_the_start_of_their_id(cli: Installation) -> None:
    first, second = cli.submit(), cli.submit()
    for name, wanted in (("last", second), (first, first), (first[:-2], first), (first[4:12], first)):
        assert json.loads(cli.succeed("show", name, "--json"))["id"] == wanted
    assert cli.fail("show", "job-").startswith("'job-' is the start of 2 jobs: ")
    shown = cli.succeed("show", "last")
    for part in (second, "tiny", "queued", "auto, version 1", "accuracy", "0.600"):
        assert part in shown


def test_results_are_shown_as_tables_and_as_documents(cli: Installation) -> None:
    job_id = cli.submit()
    assert cli.run("front", "last")[2] == "nothing is evaluated yet\n"
    assert cli.run("checkpoints", "last")[2] == "no checkpoint yet\n"
    assert "the report is written when the job ends or pauses" in cli.fail("report", "last")

    def fill(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "config.json").write_text("{}")

    lease = cli.claim(job_id)
    cli.store.commit(lease, step=1, digest="1", record=step_record(1))
    path, manifest = write_checkpoint(cli.state_dir / "checkpoints", step=1, fence=lease.fence, fill=fill)
    cli.store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)
    cli.store.set_front(lease, FRONT)
    report = cli.state_dir / "jobs" / job_id / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<p>report</p>")

    assert "0.710" in cli.succeed("front", "last")
    assert json.loads(cli.succeed("front", "last", "--json"))["hypervolume"] == 0.61
    assert str(path) in cli.succeed("checkpoints", "last")
    assert json.loads(cli.succeed("checkpoints", "last", "--json"))[0]["step"] == 1
    assert cli.succeed("report", "last").strip() == str(report)
    elsewhere, credentials = cli.state_dir / "another-machine", read_credentials(cli.state_dir)
    assert credentials is not None
    elsewhere.mkdir()
    there = {"EQUIPOISE_URL": credentials.url, "EQUIPOISE_API_KEY": credentials.key}
    code, output, errors = cli.commands.run(elsewhere, "report", "last", **there)
    assert (code, output) == (0, f"{elsewhere / job_id}.html\n"), errors
    assert Path(output.strip()).read_text() == "<p>report</p>"
    assert "conciseness" in cli.succeed("rewards")
    assert {"math"} <= {reward["name"] for reward in json.loads(cli.succeed("rewards", "--json"))}

    exported = cli.succeed("export", "last", "1", "model").strip()  # relative to where the person stands
    assert exported == str(cli.state_dir / "model")
    assert (cli.state_dir / "model" / "config.json").exists()
    assert "exists" in cli.fail("export", "last", "1", "model")
    assert cli.fail("export", "last", "7", "other") == "the job has not come to step 7 yet"
    downloaded = cli.succeed("download", "last", "1", "fetched").strip()
    assert [path.name for path in Path(downloaded).iterdir()] == [path.name for path in Path(exported).iterdir()]
    assert "exists" in cli.fail("download", "last", "1", "fetched")
    assert cli.fail("download", "last", "7", "other") == "the job has not come to step 7 yet"
    assert not [path for path in Path(downloaded).parent.iterdir() if path.name.startswith("tmp")]


def test_events_are_lines_and_following_them_ends_with_the_job(cli: Installation) -> None:
    job_id = cli.submit()
    assert "job.queued" in cli.succeed("events", job_id)
    following = start(cli.state_dir, "events", job_id, "--follow", "--json")
    assert json.loads(wait_for(following, "stdout", bool))["type"] == "job.queued"
    cli.store.request_cancel(job_id)
    code, output, _ = finish(following)
    assert code == 0
    assert json.loads(output.splitlines()[-1])["type"] == "job.cancelled"


# -- steering and life --------------------------------------------------------------------------------------


def test_a_steer_fills_the_other_weights_and_says_when(cli: Installation) -> None:
    cli.submit()
    assert cli.succeed("steer", "last", "accuracy=0.2", "--mode", "manual") == "version 2 takes effect at step 1\n"
    steering = json.loads(json.dumps(_steering(cli)))
    assert steering["weights"] == pytest.approx({"accuracy": 0.2, "conciseness": 0.6, "clarity": 0.2})
    assert steering["mode"] == "manual"
    cli.succeed("steer", "last", "--mode", "blend", "--blend", "0.25")
    assert (_steering(cli)["mode"], _steering(cli)["blend"]) == ("blend", 0.25)


def _steering(cli: Installation) -> dict[str, Any]:
    credentials = read_credentials(cli.state_dir)
    assert credentials is not None
    with Client(credentials.url, credentials.key) as client:
        return client.steering(next(client.iter_jobs())["id"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["acuracy=1"], "no objective 'acuracy', did you mean 'accuracy'?"),
        (["accuracy=-1"], "accuracy: expected a number of 0 or more, got '-1'"),
        (["accuracy=2"], "the weights given sum to 2"),
        (["accuracy=0", "conciseness=0", "clarity=0"], "at least one weight must be above 0"),
        (["--mode", "automatic"], "mode: Input should be 'auto', 'blend' or 'manual'"),
        (["--blend", "2"], "blend: Input should be less than or equal to 1"),
        (["--blend", "nan"], "what is asked can't be sent: "),
        ([], "nothing to change: give NAME=VALUE, --mode, --blend, --guardrail or --to-version"),
    ],
)
def test_a_wrong_steer_is_one_line(cli: Installation, words: list[str], line: str) -> None:
    cli.submit()
    assert cli.fail("steer", "last", *words).startswith(line)


def test_pause_resume_and_cancel(cli: Installation) -> None:
    job_id = cli.submit()
    assert cli.succeed("pause", "last") == f"{job_id} paused\n"
    assert cli.succeed("resume", "last") == f"{job_id} queued\n"
    assert cli.succeed("cancel", "last") == f"{job_id} cancelled\n"
    stays = cli.fail("resume", "last")
    assert stays.startswith(f"a job that is cancelled stays so: `equipoise fork {job_id} --steps N` goes on")
    assert cli.fail("steer", "last", "--mode", "auto") == "a job that is cancelled can't be steered"


def test_following_prints_a_line_per_step_and_the_front_at_the_end(cli: Installation) -> None:
    following = start(cli.state_dir, "submit", str(cli.spec), "--follow")
    job_id = wait_for(following, "stdout", bool).strip()  # and progress is elsewhere, as a script reads this
    lease = cli.claim(job_id)
    cli.store.set_total_steps(lease, 4)
    for step in (1, 2):
        cli.store.commit(lease, step=step, digest=str(step), record=step_record(step))
    wait_for(following, "stderr", lambda line: line.startswith("step 2/4  accuracy 0.700 (+0.100)"))
    cli.store.set_front(lease, FRONT)
    cli.store.finish(lease, JobStatus.SUCCEEDED)
    code, output, errors = finish(following)
    assert (code, output) == (0, "")
    assert f"{job_id} succeeded (step 2/4)" in errors
    assert "Pareto front: hypervolume 0.6100 (0.5000 at the start)" in errors


@pytest.mark.parametrize("end", ["failed", "cancelled", "paused"])
def test_following_a_job_that_does_not_succeed_is_exit_code_1(cli: Installation, end: str) -> None:
    job_id = cli.submit()
    if end == "failed":
        cli.store.finish(cli.claim(job_id), JobStatus.FAILED, "CUDA out of memory")
    else:
        cli.succeed({"cancelled": "cancel", "paused": "pause"}[end], "last")
    code, output, _ = cli.run("follow", "last")
    assert code == 1
    assert f"{job_id} {end}" in output
    assert ("CUDA out of memory" in output) == (end == "failed")


def test_ctrl_c_detaches_and_the_job_goes_on(cli: Installation) -> None:
    following = start(cli.state_dir, "submit", str(cli.spec), "--follow")
    wait_for(following, "stderr", lambda line: "job.queued" in line)
    following.send_signal(signal.SIGINT)
    code, output, errors = finish(following)
    job_id = json.loads(cli.succeed("jobs", "--json"))[0]["id"]
    assert (code, output) == (130, f"{job_id}\n")  # a script that reads the id reads nothing else
    assert errors.startswith(f"detached, the job goes on; `equipoise follow {job_id}` shows it")
    assert cli.store.job(job_id).status is JobStatus.QUEUED


# -- serving ------------------------------------------------------------------------------------------------


def test_up_serves_until_a_signal_and_keeps_its_jobs_and_key(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    up = start(tmp_path, "up", "--port", "0")
    assert "listens on http://127.0.0.1:" in wait_for(up, "stderr", bool)
    key = wait_for(up, "stderr", lambda line: "key, shown this once" in line).split()[-1]
    assert finish(start(tmp_path, "jobs", "--json"))[1] == "[]\n"
    code, _, errors = finish(start(tmp_path, "up"))
    assert (code, errors) == (2, f"equipoise: another `equipoise up` already serves {tmp_path}\n")
    up.send_signal(signal.SIGTERM)
    code, output, errors = finish(up)
    assert (code, output) == (0, "")
    assert errors.endswith("stopped\n")
    assert "WARNING" not in errors
    assert not list((tmp_path / "redis").glob("*.sock"))

    again = start(tmp_path, "up", "--port", "0", "--host", "0.0.0.0")
    text = wait_for(again, "stderr", lambda line: "WARNING" in line)
    assert "0.0.0.0 is open to other machines" in text
    credentials = read_credentials(tmp_path)
    assert credentials is not None
    assert credentials.key == key
    again.send_signal(signal.SIGINT)
    code, _, errors = finish(again)
    assert code == 0
    assert key not in errors


def test_up_speaks_tls_and_the_commands_trust_it(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    code, _, errors = finish(start(tmp_path, "up", "--tls-key", str(key)))
    assert (code, errors) == (2, "equipoise: --tls-key needs --tls-cert\n")
    code, _, errors = finish(start(tmp_path, "up", "--behind-proxy", "10.0.0.1,proxy"))
    assert (code, errors.count("\n")) == (2, 1)
    assert "--behind-proxy: 'proxy' is no address" in errors
    files = ("--tls-cert", str(cert), "--tls-key", str(key))
    up = start(tmp_path, "up", "--port", "0", "--host", "0.0.0.0", *files)
    assert "listens on https://127.0.0.1:" in wait_for(up, "stderr", bool)
    wait_for(up, "stderr", lambda line: "commands on this machine" in line)
    assert finish(start(tmp_path, "jobs", "--json"))[:2] == (0, "[]\n")
    up.send_signal(signal.SIGTERM)
    code, _, errors = finish(up)
    assert (code, "WARNING" in errors) == (0, False)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    taken = ApiServer("127.0.0.1", 0)
    code, _, errors = finish(start(tmp_path, "up", "--port", str(taken.port)))
    taken.stop()
    line = f"can't listen on 127.0.0.1:{taken.port}: Address already in use; choose another with --port"
    assert (code, errors) == (2, f"equipoise: {line}\n")
    assert not list((tmp_path / "redis").glob("*.sock"))


def test_serve_and_worker_share_a_redis(redis_url: str, tmp_path: Path) -> None:
    serve = start(tmp_path, "serve", "--redis", redis_url, "--port", "0", EQUIPOISE_API_KEY="eqp_mine")
    worker = start(
        tmp_path, "worker", "--redis", redis_url, "--owner", "of-this-test", "--state-dir", str(tmp_path / "worker")
    )  # fmt: skip
    try:
        wait_for(worker, "stderr", lambda line: "waiting for jobs" in line)
        wait_for(serve, "stderr", lambda line: "listens" in line)
        credentials = read_credentials(tmp_path)
        assert credentials is not None
        assert credentials.key == "eqp_mine"
        with Client(credentials.url, credentials.key) as client:
            deadline = time.monotonic() + 60
            while not client.ready():
                assert time.monotonic() < deadline
    finally:
        for process in (worker, serve):
            process.send_signal(signal.SIGTERM)
            assert finish(process)[0] == 0


# -- the demo, with a driver that only pretends to train -------------------------------------------------------

DEMO = """
import functools, sys
import services.demo
import services.local
from services.cli import main

def command(job_id, owner, state_dir):
    return [sys.executable, "-c", DRIVER, job_id, owner, str(state_dir)]

DRIVER = {driver!r}
services.demo._make_policy = lambda *_, **__: None  # the pretender needs none; the real one has tests of its own
services.local.SubprocessLauncher = functools.partial(services.local.SubprocessLauncher, command=command)
services.local.Worker = functools.partial(services.local.Worker, poll_s=0.05)
main()
"""
# Two steps in all; the first life waits after its first step until it is told to stop.
PRETENDER = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
job, owner, state_dir = sys.argv[1:]
store = JobStore(connect(os.environ["EQUIPOISE_REDIS_URL"]), owner=owner)
lease = store.claim(job, nonce="x", ttl_s=30).lease
def stop(*_):
    store.release(lease)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
store.set_total_steps(lease, 2)
store.set_status(lease, JobStatus.RUNNING)
store.set_progress(lease, {{"stage": "training", "eta_s": 1.0}})
step = store.job(job).step + 1
store.commit(lease, step=step, digest=str(step), record={record!r})
store.register_checkpoint(lease, step=step, path="/x", digest="x")
if step == 1:
    time.sleep(60)
store.set_front(lease, {front!r})
(Path(state_dir) / "jobs" / job / "report.html").write_text("report")
store.finish(lease, JobStatus.SUCCEEDED)
"""


def test_the_demo_stops_cleanly_goes_on_and_ends_with_the_front(tmp_path: Path) -> None:
    script = DEMO.format(driver=PRETENDER.format(record=step_record(1), front=FRONT))

    def demo(*options: str) -> subprocess.Popen[str]:
        return start(tmp_path, "demo", *options, program=["-c", script])

    first = demo("--steps", "2", "--weighting", "fixed")
    wait_for(first, "stdout", lambda line: line.startswith("step 1/2"))
    first.send_signal(signal.SIGINT)
    code, _, errors = finish(first)
    assert code == 130
    assert errors.startswith("stopping: the job writes a checkpoint first")
    assert errors.endswith("stopped; `equipoise demo` goes on where it was\n")

    code, output, errors = finish(demo("--steps", "3"))
    assert code == 0, errors
    assert "at step 1" in errors
    assert "keeps the options it was started with" in errors
    assert "step 2/2" in output
    assert "Pareto front: hypervolume 0.6100" in output
    job = next(iter((tmp_path / "jobs").iterdir()))
    assert output.endswith(f"report: {job / 'report.html'}\n")

    third = demo("--steps", "2")  # the former one is over, so this is another
    wait_for(third, "stdout", lambda line: line.startswith("step 1/2"))
    third.send_signal(signal.SIGTERM)
    assert finish(third)[0] == 130
    assert len(list((tmp_path / "jobs").iterdir())) == 2


def test_the_demo_uses_a_server_that_runs_already(tmp_path: Path) -> None:
    script = DEMO.format(driver=PRETENDER.format(record=step_record(1), front=FRONT))
    up = start(tmp_path, "up", "--port", "0", program=["-c", script])
    wait_for(up, "stderr", lambda line: "Ctrl-C stops it" in line)
    demo = start(tmp_path, "demo", "--steps", "2", program=["-c", script])
    wait_for(demo, "stderr", lambda line: "using the server that runs at" in line)
    wait_for(demo, "stdout", lambda line: line.startswith("step 1/2"))
    demo.send_signal(signal.SIGINT)
    code, _, errors = finish(demo)
    assert (code, errors) == (130, "detached, the job goes on; `equipoise demo` shows it again\n")
    up.send_signal(signal.SIGTERM)
    code, _, errors = finish(up)
    assert code == 0
    assert "stopping: the running job writes a checkpoint first" in errors
