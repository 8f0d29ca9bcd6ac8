"""Commands that end in one line before anything is asked of a server, or after what it sent is of no use."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from typer.testing import CliRunner

import rewards
from orchestrator.spec import parse_spec
from services import cli, terminal
from services.cli import app
from services.client import AuthenticationError, Client, PermissionDenied
from services.commands import why as why_command

RUNNER = CliRunner()
SPEC = {
    "name": "a job", "steps": 1, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
    "objectives": [{"name": "accuracy", "reward": {"name": "math"}}],
}  # fmt: skip


class Server:
    """Of one job, whose checkpoint is `sent`."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent

    def __call__(self, _: Path) -> "Server":
        return self

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def jobs(self, *, limit: int) -> dict[str, Any]:
        return {"data": [{"id": "job-1"}][:limit]}

    def job(self, job_id: str) -> dict[str, Any]:
        return {"id": job_id, "spec": SPEC}

    def iter_events(self, _job_id: str) -> list[dict[str, Any]]:
        return []

    def steering(self, _job_id: str, *, log_limit: int) -> dict[str, Any]:
        return {"version": 2, "log": [][:log_limit]}

    def delete_job(self, job_id: str, *, files: bool) -> dict[str, Any]:
        return {"id": job_id, "deleted": True} | ({"files": True} if files else {})

    def download(self, _job_id: str, _step: int, to: Path) -> Path:
        to.write_bytes(self.sent)
        return to


def line(*words: str) -> str:
    """The one line of a command that fails."""
    done = RUNNER.invoke(app, [*words])
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.output.count("\n") == 1
    return done.output.removeprefix("equipoise: ").rstrip()


def test_what_a_command_starts_imports_our_packages_whatever_folder_it_is_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver is `python -m ...`, and people call their own folders `rewards`."""
    (tmp_path / "rewards.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr("sys.argv", ["equipoise", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    child = [sys.executable, "-c", "import rewards; print(rewards.__file__)"]
    found = subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip()
    assert found == rewards.__file__


def archive(*names: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return made.getvalue()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (["submit"], ["--gpus", "2"], "--gpus needs --dry-run: it says what a machine would have, and chooses none"),
        (["submit"], ["--gpus", "0"], "--gpus needs --dry-run: "),
        (["submit"], ["--gpu-gib", "24"], "--gpu-gib needs --dry-run: "),
        (["submit"], ["--memory-gib", "24"], "--memory-gib needs --dry-run: "),
        (["submit"], ["--follow", "--json"], "--follow tells a person what happens: drop --json"),
        (["submit"], ["--dry-run", "--follow"], "--follow: a dry run queues no job to follow; drop one of them"),
        (["rewards", "train"], ["--dry-run", "--follow"], "--follow: a dry run queues no job to follow"),
        (
            ["rewards", "train"],
            ["--dry-run", "--local", "out"],
            "--dry-run: of a server's jobs; --local asks no server",
        ),
        (["rewards", "train"], ["--follow", "--local", "out"], "--follow: of a server's jobs; --local asks no server"),
    ],
)
def test_options_that_would_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SPEC))
    assert line(*command, "job.yaml", *words).startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (archive("model/config.json")[:900], "what the server sent can't be unpacked: "),
        (b"<html>", "what the server sent can't be unpacked: "),
        (archive("../outside"), "what the server sent can't be unpacked: "),
        (archive("a/x", "b/x"), "what the server sent can't be unpacked: expected one directory in it, not 2"),
    ],
    ids=["cut", "no tar", "outside", "two"],
)
def test_a_download_that_cannot_be_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, words: str
) -> None:
    monkeypatch.setattr(cli, "connect_client", Server(sent))
    assert line("download", "last", "40", str(tmp_path / "model")).startswith(words)
    assert list(tmp_path.iterdir()) == []


class Steps(Server):
    """Of a job at step 2; its first step was made by an older version."""

    spec: dict[str, Any] = {**SPEC, "weighting": {"name": "fixed"}}  # noqa: RUF012

    def job(self, job_id: str) -> dict[str, Any]:
        return {"id": job_id, "step": 2, "spec": self.spec}

    def metrics(self, _: str, *, after: int, limit: int, names: Sequence[str]) -> dict[str, Any]:
        weights = {"strategy": {"accuracy": 1.0}, "applied": {"accuracy": 1.0}}
        because = {"mode": "auto", "share": 0.0, "figures": {"preference": {"accuracy": 1.0}}, "held": {}, "gates": {}}
        rows = [{"step": 1, "weights": weights}, {"step": 2, "weights": weights, "weights_because": because}]
        assert {"step", "weights", "weights_because"} <= set(names)
        return {"data": rows[after : after + limit]}


def test_why_the_weights_of_a_step_are_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(why_command, "connect_client", Steps(b""))
    told = "accuracy stays at 1.00: the preference as it is (steering version ?)"
    assert RUNNER.invoke(app, ["why", "last"]).output == f"step 2, fixed, mode auto\n{told}\n"
    document = json.loads(RUNNER.invoke(app, ["why", "last", "--step", "2", "--json"]).output)
    assert (document["job"], document["step"], document["weighting"]) == ("job-1", 2, "fixed")
    assert document["reasons"][0]["decided_by"] == "rule"
    assert document["weights_because"]["figures"] == {"preference": {"accuracy": 1.0}}
    assert line("why", "last", "--step", "1").startswith("step 1 was made by a version that kept no reasons")
    assert line("why", "last", "--step", "3") == "step 3 is not committed: the last is 2"
    monkeypatch.setattr(Steps, "spec", {"kind": "reward_model"})
    assert line("why", "last") == "job-1 trains a reward model: it has no weights"


def test_a_spec_is_printed_to_be_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "connect_client", Server(b""))
    done = RUNNER.invoke(app, ["show", "last", "--spec"])
    assert parse_spec(yaml.safe_load(done.stdout)) == parse_spec(SPEC)
    assert done.stderr == "what the job was steered to while it ran is not in it; `equipoise events` has that\n"
    assert line("show", "last", "--spec", "--json") == "--spec: of --json's document, drop one of them"


def test_what_is_deleted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "connect_client", Server(b""))
    assert RUNNER.invoke(app, ["delete", "last"]).output == "job-1 deleted\n"
    assert RUNNER.invoke(app, ["delete", "last", "--files"]).output == "job-1 deleted with its files\n"


@pytest.mark.parametrize(
    ("wanted", "asked", "found"),
    [
        ("last", ["/v1/jobs?limit=1"], "job-0123456789ab"),
        ("job-0123456789ab", ["/v1/jobs/job-0123456789ab"], "job-0123456789ab"),
        ("0123", ["/v1/jobs?limit=100"], "job-0123456789ab"),
        ("job-0", ["/v1/jobs?limit=100"], "job-0123456789ab"),
        ("", ["/v1/jobs?limit=100"], "no job '': `equipoise jobs` lists them"),
        (
            "job-ffffffffffff",
            ["/v1/jobs/job-ffffffffffff"],
            "no job 'job-ffffffffffff': `equipoise jobs` lists them",
        ),
    ],
)
def test_only_the_start_of_an_id_takes_the_whole_list(
    capsys: pytest.CaptureFixture[str], wanted: str, asked: list[str], found: str
) -> None:
    seen: list[str] = []
    job = {"id": "job-0123456789ab"}

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        if request.url.path == "/v1/jobs":
            return httpx.Response(200, json={"data": [job], "has_more": False})
        if request.url.path.endswith(job["id"]):
            return httpx.Response(200, json=job)
        return httpx.Response(404, json={"error": {"code": "not_found", "message": "no such job"}})

    with Client("http://test", "key", transport=httpx.MockTransport(answer)) as client:
        if found.startswith("no job"):
            with pytest.raises(typer.Exit):
                terminal.find_job(client, wanted)
            assert capsys.readouterr().err == f"equipoise: {found}\n"
        else:
            assert terminal.find_job(client, wanted) == found
    assert seen == asked


def served(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[tuple[str, Any]]:
    """A server of these answers, by method and path; and what it was sent."""
    sent: list[tuple[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        operation = f"{request.method} {request.url.path}"
        if request.method != "GET":
            sent.append((operation, json.loads(request.content or b"null")))
        return httpx.Response(200, json=answers[operation])

    monkeypatch.setattr(
        cli, "connect_client", lambda _: Client("http://t", "key", transport=httpx.MockTransport(answer))
    )
    return sent


JOB, STOOD = {"id": "job-1", "status": "paused"}, {"version": 4, "mode": "auto", "weights": {"a": 0.5, "b": 0.5}}


@pytest.mark.parametrize("words", [["pause"], ["pause", "--latest"], ["resume"], ["cancel"]])
def test_what_a_job_became_is_printed_for_scripts_too(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    served(monkeypatch, {"GET /v1/jobs": {"data": [JOB]}, f"POST /v1/jobs/job-1/{words[0]}": JOB})
    assert json.loads(RUNNER.invoke(app, [*words, "last", "--json"]).stdout) == JOB
    assert RUNNER.invoke(app, [*words, "last"]).stdout == "job-1 paused\n"


def test_a_steer_goes_back_to_a_version_and_says_what_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = "/v1/jobs/job-1/steering", {"version": 5, "effective_step": 9, "notes": ["nothing\x1b changes"]}
    answers = {"GET /v1/jobs": {"data": [JOB]}, f"GET {path}": STOOD, f"PUT {path}": done}
    sent = served(monkeypatch, answers)
    told = RUNNER.invoke(app, ["steer", "last", "--to-version", "2"])
    assert told.stdout == "version 5 takes effect at step 9\n"
    assert told.stderr == "nothing  changes\n"
    assert json.loads(RUNNER.invoke(app, ["steer", "last", "a=0.7", "--json"]).stdout) == done
    assert sent == [
        (f"PUT {path}", {"to_version": 2}),
        (f"PUT {path}", {"weights": {"a": 0.7, "b": pytest.approx(0.3)}}),
    ]
    told = RUNNER.invoke(app, ["steer", "last", "--to-version", "2", "--over", "10"])
    assert told.stdout == "version 5 takes effect gradually, from step 9 to step 18\n"
    assert sent[-1] == (f"PUT {path}", {"to_version": 2, "over": 10})
    assert line("steer", "last", "--over", "10").startswith("nothing to change")
    assert line("steer", "last", "--to-version", "2", "--mode", "auto").startswith(
        "--to-version goes back to a steering"
    )


@pytest.mark.parametrize(("fits", "code"), [([True, False], 0), ([None, False], 0), ([False, False], 1), ([], 0)])
def test_a_dry_run_of_a_job_that_fits_nowhere_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: list[bool | None], code: int
) -> None:
    plan = {"spec": {"kind": "reward_model"}, "estimate": {"layouts": [{"fits": each} for each in fits]}}
    served(monkeypatch, {"POST /v1/jobs": plan})
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    done = RUNNER.invoke(app, ["submit", str(path), "--dry-run", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (code, plan)


def test_a_download_to_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "connect_client", Server(archive("model/config.json")))
    assert line("download", "last", "40", "/proc/foo") == "can't write /proc/foo: No such file or directory"
    target = tmp_path / "new" / "model"
    assert RUNNER.invoke(app, ["download", "last", "40", str(target)]).exit_code == 0
    assert [path.name for path in target.iterdir()] == ["config.json"]


@pytest.mark.parametrize("command", ["up", "serve", "demo"])
def test_a_state_directory_that_cannot_be_is_told_by_its_option(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "file", "File exists"), (Path("/proc/x"), "No such file or directory")):
        words = ["--redis", "redis://127.0.0.1:1/0"] if command == "serve" else []
        said = line(command, "--state-dir", str(path), *words)
        assert said == f"--state-dir: {path}: {why}; name a directory, or where one can be made"


def test_an_export_that_the_server_does_not_make_names_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    class Serve(Server):
        def export(self, *_: Any) -> None:
            raise PermissionDenied(403, "exports_disabled", "no")

    monkeypatch.setattr(cli, "connect_client", Serve(b""))
    assert line("export", "last", "40", "./my-model").endswith("fetch it here: equipoise download last 40 my-model")


@pytest.mark.parametrize(
    ("words", "step", "asked"),
    [
        ("40", 40, None),
        ("latest", 30, None),
        ("best", 20, (None, "weights")),
        ("accuracy>=0.8, brevity<=3 by brevity", 20, (["accuracy>=0.8", "brevity<=3"], "brevity")),
        ("accuracy>=0.8", 20, (["accuracy>=0.8"], None)),
        ("by brevity", 20, (None, "brevity")),
    ],
)
def test_a_step_may_be_said_in_words(monkeypatch: pytest.MonkeyPatch, words: str, step: int, asked: Any) -> None:
    exported, fronts = [], []

    class Serve(Server):
        def export(self, _: str, at: int, path: str) -> dict[str, str]:
            exported.append(at)
            return {"path": path}

        def checkpoints(self, _: str) -> dict[str, Any]:
            return {"data": [{"step": 30}, {"step": 20}]}

        def front(self, _: str, *, require: Any, by: Any) -> dict[str, Any]:
            fronts.append((require, by))
            return {"picked": {"step": 20, "objectives": {"accuracy": 0.9, "brevity": 0.5}, "test": None,
                               "sets": {"hard": {"objectives": {"accuracy": 0.25}}}}}  # fmt: skip

    monkeypatch.setattr(cli, "connect_client", Serve(b""))
    result = RUNNER.invoke(app, ["export", "last", words, "./my-model"])
    assert result.exit_code == 0, result.output
    assert exported == [step]
    assert fronts == ([] if asked is None else [asked])
    assert ("step 20: accuracy 0.900, brevity 0.500; hard: accuracy 0.250" in result.output) == (asked is not None)


def test_a_front_without_what_was_asked_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Serve(Server):
        def front(self, _: str, **__: Any) -> dict[str, Any]:
            return {"picked": None, "points": [], "objectives": ["accuracy"]}

    monkeypatch.setattr(cli, "connect_client", Serve(b""))
    told = (
        "no point of the front that has accuracy>=0.9 has its checkpoint kept; `equipoise front` shows what they reach"
    )
    assert line("download", "last", "accuracy>=0.9", "./x").endswith(told)
    assert RUNNER.invoke(app, ["front", "last", "--require", "accuracy>=0.9"]).output == "nothing is evaluated yet\n"
    assert line("export", "last", "newest", "./x").startswith(
        "'newest': expected a step that is kept, `latest`, `best`"
    )


@pytest.mark.parametrize("key", [None, "eqp_mine"])
def test_a_refused_key_is_told_with_where_it_was_taken_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str | None
) -> None:
    def refuse(_: Path) -> None:
        raise AuthenticationError(401, "unauthenticated", "this key is unknown, expired or revoked")

    if key is None:
        monkeypatch.delenv("EQUIPOISE_API_KEY", raising=False)
    else:
        monkeypatch.setenv("EQUIPOISE_API_KEY", key)
    monkeypatch.setattr(cli, "connect_client", refuse)
    monkeypatch.setattr("sys.argv", ["equipoise", "--state-dir", str(tmp_path), "jobs"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    source = "EQUIPOISE_API_KEY" if key else f"{tmp_path}/api.json"
    said = capsys.readouterr().err
    assert (caught.value.code, said) == (
        2,
        f"equipoise: this key is unknown, expired or revoked; it was taken from {source}\n",
    )
