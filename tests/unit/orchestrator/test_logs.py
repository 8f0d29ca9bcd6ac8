import io
import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from orchestrator import logs

log = logging.getLogger("equipoise.test")
CANARY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs, "_known_secrets", set())
    monkeypatch.delenv("EQUIPOISE_LOG_FORMAT", raising=False)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def start(format: str, **options: str) -> io.StringIO:
    stream = io.StringIO()
    logs.setup(format, level=logging.INFO, stream=stream, **options)
    return stream


def written(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_say_when_who_and_for_what() -> None:
    stream = start("json", job_id="job-1")
    with logs.request("r-1"):
        log.warning("it is %s", "late")
    log.info("done", extra={"job_id": "job-2"})
    first, second = written(stream)
    assert first.pop("at").endswith("Z")
    assert first == {
        "level": "warning", "logger": "equipoise.test", "message": "it is late", "request_id": "r-1", "job_id": "job-1",
    }  # fmt: skip
    assert (second["job_id"], "request_id" in second) == ("job-2", False)


def test_text_lines_say_of_which_day_and_zone_they_are() -> None:
    stream = start("text")
    before = int(time.time())
    log.warning("late")
    at, rest = stream.getvalue().split(" ", 1)
    assert rest == "WARNING equipoise.test: late\n"
    assert before <= datetime.strptime(at, "%Y-%m-%dT%H:%M:%S%z").timestamp() <= time.time()


def test_a_file_has_the_same_lines_masked_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 4000)
    stream, file = start("json", job_id="job-1"), tmp_path / "job-1" / "driver.log"
    logs.hide(CANARY)
    logs.write_also(file)
    for i in range(200):
        log.warning("line %d %s", i, CANARY)
    kept = [path.read_text() for path in (file.with_name("driver.log.1"), file)]
    assert sum(map(len, kept)) <= 8000
    assert stream.getvalue().endswith("".join(kept))
    assert {path.name for path in file.parent.iterdir()} == {"driver.log", "driver.log.1"}
    logging.getLogger().handlers[-1].close()


def test_a_file_that_can_not_be_written_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "job-1").write_text("")
    stream = start("text")
    logs.write_also(tmp_path / "job-1" / "driver.log")
    log.warning("it goes on")
    assert "this log is not kept there" in stream.getvalue()
    assert stream.getvalue().endswith("equipoise.test: it goes on\n")


@pytest.mark.parametrize("format", logs.FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "name\n12:00:00 ERROR equipoise: forged", "name\r\n12:00:00 ERROR forged", "name\r12:00:00 ERROR forged",
        "\x1b[2J\x1b[31mred", "\x9b31m", "a\x00b", "\x08\x08\x08", "\x7f", "\u2028ERROR forged", "\u202eesrever",
        "\x85x", "\x0b\x0c",
    ],
)  # fmt: skip
def test_nothing_that_was_sent_forges_a_line_or_moves_a_cursor(format: str, text: str) -> None:
    stream = start(format)
    log.warning("job %s", text)
    log.warning("last")
    output = stream.getvalue()
    assert not logs._CONTROL.search(output)
    beginnings = [line for line in output.split("\n") if line and not line.startswith("    ")]
    assert len(beginnings) == 2
    if format == "json":
        assert written(stream)[0]["message"] == f"job {text}"


@pytest.mark.parametrize("format", logs.FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        f"eqp_{CANARY}", f"eqp_0123456789abcdef_{CANARY}", f"whsec_{CANARY}", f"Authorization: Bearer {CANARY}",
        f"redis://:{CANARY}@host:6379/0", f"redis://user:{CANARY}@host", f"unix://u:{CANARY}@/tmp/x",
        f"authorization: Basic {CANARY}",
        f"{{'password': '{CANARY}'}}", f'{{"secret": "{CANARY}"}}', f"api_key='{CANARY}'",
    ],
)  # fmt: skip
def test_secrets_are_masked_in_messages_arguments_and_tracebacks(format: str, text: str) -> None:
    stream = start(format)
    log.warning(text)
    log.warning("sent %s", text)
    log.warning("sent %r", [text])
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    output = stream.getvalue()
    assert CANARY not in output
    assert output.count(logs.MASK) >= 4
    assert "ValueError" in output


@pytest.mark.parametrize("format", logs.FORMATS)
def test_the_secrets_of_this_process_are_masked_whatever_they_look_like(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_API_KEY", "my-own-key")
    monkeypatch.setenv("EQUIPOISE_REDIS_URL", "redis://:p%40ssword@host/0")
    stream = start(format)
    log.warning("my-own-key and p@ssword and %s", "p%40ssword")
    output = stream.getvalue()
    assert "my-own-key" not in output
    assert "ssword" not in output


def test_ordinary_words_stay() -> None:
    text = (
        "step 3: mean_tokens 12.5, see https://example.com/a:b@c and the bearer of news, a basic understanding; no key"
    )
    assert logs.masked(text) == text


def test_a_traceback_stays_readable_as_text() -> None:
    stream = start("text")
    try:
        raise RuntimeError("out of memory")
    except RuntimeError:
        log.exception("it died")
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("ERROR equipoise.test: it died")
    assert lines[-1] == "    RuntimeError: out of memory"


def test_the_format_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_LOG_FORMAT", "json")
    assert start("").getvalue() == ""
    monkeypatch.setenv("EQUIPOISE_LOG_FORMAT", "xml")
    with pytest.raises(ValueError, match="EQUIPOISE_LOG_FORMAT: expected text or json"):
        start("")
