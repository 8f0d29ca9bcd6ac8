"""`equipoise arena report` on runs that an arena left."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli import app
from tests.arena_records import arena, write


def run(*words: str, state_dir: Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--state-dir", str(state_dir), "arena", "report", *words])


def test_the_state_directorys_arena_is_reported_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "arena").mkdir()
    write(tmp_path / "arena" / "runs.jsonl", arena({"gdpo/saw": 0.05}))
    found = run(state_dir=tmp_path)
    assert found.exit_code == 0, found.output
    assert found.stdout.split() == [str(tmp_path / "arena" / f"arena.{suffix}") for suffix in ("html", "md")]
    assert "45 runs of 9 entries, 0 failed" in found.stderr
    assert "gdpo/saw" in (tmp_path / "arena" / "arena.md").read_text()


def test_a_file_of_runs_and_a_place_may_be_named(tmp_path: Path) -> None:
    runs = write(tmp_path / "kept.jsonl", arena({"gdpo/saw": 0.05, "gdpo/dara": 0.0}, seeds=range(2)))
    html = tmp_path / "page.html"
    found = run(str(runs), "--out", str(html), "--default", "gdpo/dara", state_dir=tmp_path)
    assert found.exit_code == 0, found.output
    assert "judged here: gdpo/dara (as asked for)" in html.read_text()
    assert "judged here: gdpo/dara (as asked for)" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("words", "message"), [
    ((), "runs.jsonl; `equipoise arena` writes runs to runs.jsonl of its directory"),
    (("{}/kept.jsonl", "--default", "gdpo/none"), "no finished run of entry 'gdpo/none'"),
    (("{}/broken.jsonl",), "broken.jsonl, line 1: not JSON"),
    (("{}/kept.jsonl", "--out", "{}/a.md"), "expected the HTML file's, such as a.html"),
    (("{}/kept.jsonl", "--out", "{}/away/a.html"), "No such file or directory"),
])  # fmt: skip
def test_mistakes_are_one_line_each(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    write(tmp_path / "kept.jsonl", arena({}, seeds=[0]))
    (tmp_path / "broken.jsonl").write_text("{\n{}\n")
    found = run(*(word.format(tmp_path) for word in words), state_dir=tmp_path)
    assert found.exit_code == 2
    assert message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.html"))
