"""The arena's report: complete in itself, safe with hostile text, and plain about what failed and what is missing."""

import errno
import gzip
import json
import math
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.arena import svg
from orchestrator.arena.analysis import Analysis, analyse
from orchestrator.arena.files import replace_file
from orchestrator.arena.report import render_html, render_markdown, write_report
from orchestrator.arena.results import read_results
from orchestrator.arena.tasks import TASKS
from tests.arena_records import Json, arena, failed, record, write
from tests.benchmarks import arena as benchmark

HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>|`{{ 7*7 }}` [a](javascript:alert(1))\n# &amp;"""
RULES = {"gdpo/saw": 0.05, "gdpo/gradient": 0.0, "gdpo/dara": -0.05}


def analysed(folder: Path, records: list[Json]) -> Analysis:
    return analyse(read_results(write(folder / "runs.jsonl", records)))


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_report_tells_result_claims_failures_and_how_to_repeat(tmp_path: Path) -> None:
    records = [*arena(RULES), failed("gdpo/pama", "weights are not finite", seed=3)]
    figures = write_report(write(tmp_path / "runs.jsonl", records), tmp_path / "a.html", tmp_path / "a.md")
    html, markdown = (tmp_path / "a.html").read_text(), (tmp_path / "a.md").read_text()
    assert len(html) < 2**20
    for text in (html, markdown):
        assert "The default that is judged here: gdpo/saw" in text
        assert "best static weights" in text
        assert "gdpo/pama seed 3 failed: weights are not finite" in text
        assert "held_out: not run" in text
        assert "python -m tests.benchmarks.arena" in text
        assert "not testable here" in text
        assert "a CPU" in text
        assert "torch 2.13" in text
        assert "2026-11-28" in text
        assert re.search(r"gdpo/dara: -0\.\d+ \[.*\], significantly", text)  # what lost
    json.dumps(figures, allow_nan=False)
    assert figures["runs"] == 55
    assert figures["seeds"] == 5
    assert figures["rules"] == 11
    assert figures["rules_without_grid"] == 5
    assert figures["seeds_by_task"] == {"sums3": {"5": 11}}
    assert figures["default"] == "gdpo/saw"
    assert figures["gain_static_low"][0] > 0
    assert set(figures["claims"].values()) <= {"reproduced", "not reproduced", "not testable here"}
    assert set(figures["claims_why"]) == set(figures["claims"])
    assert figures["by_rule"]["sums3"]["gdpo/dara"]["reached_static"] == [0, 5]


def test_why_static_weights_are_not_beaten_is_told(tmp_path: Path) -> None:
    text = render_markdown(analysed(tmp_path, arena({"gdpo/saw": -0.05})))
    assert re.search(
        r"Why not on sums3: .* in hindsight from 8 weightings, by their validation over seeds 0-4, which takes 8 times "
        r"the budget .* the difference to them is -0\.\d+; one run's standard error from its test prompts is 0\.\d+",
        text,
    )
    assert re.search(r"the best of its run, by its own volume, in (\d+) of \1 runs on sums3: .* sums3 counts how", text)
    assert "Why not" not in render_markdown(analysed(tmp_path, arena({"gdpo/saw": 0.05})))


def test_runs_whose_last_policy_is_not_their_best_have_settled(tmp_path: Path) -> None:
    """Though the volume of all their policies together still rises a little, as it does at most evaluations."""
    records = arena({"gdpo/saw": -0.05}, tasks=("sums3", "sums5"))
    settled = [one for one in records if one["task"] == "sums5"]
    for one in settled:
        *_, before, last = one["validation"]
        before["objectives"], last["objectives"] = last["objectives"], before["objectives"]
        last["hypervolume"] = before["hypervolume"] + 0.001
    told = f"45 of 45 runs on sums3 and 0 of {len(settled)} runs on sums5: within this budget, sums3 counts how fast"
    assert told in render_markdown(analysed(tmp_path, records))
    assert "in 0 of 45 runs on sums5.\n" in render_markdown(analysed(tmp_path, settled))


def test_tables_of_the_markdown_have_even_rows(tmp_path: Path) -> None:
    text = render_markdown(analysed(tmp_path, arena({**RULES, "gdpo/a|b": 0.0}, tasks=("sums3", "sums5"))))
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 5  # the lead, two tasks, claims, conditions
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_every_pair_of_objectives_has_its_bands(tmp_path: Path, objectives: int) -> None:
    names = tuple(f"o{i}" for i in range(objectives))
    page = render_html(analysed(tmp_path, arena(RULES, seeds=range(2), objectives=names)))
    titles = [picture.get("aria-label") or "" for picture in pictures(page)]
    assert sum(" and o" in title for title in titles) == math.comb(objectives, 2)
    assert sum("weights of" in title for title in titles) == 3
    assert {"sums3: gain over fixed equal weights", "sums3: hypervolume over steps (validation)"} <= set(titles)
    assert sum(title.startswith("sums3: cost against gain") for title in titles) == 1
    bands = [p for p in pictures(page) if " and o" in (p.get("aria-label") or "")]
    assert all(len(p.findall("polygon")) == len(p.findall("polyline")) == 2 for p in bands)


def texts(picture: ElementTree.Element) -> list[str]:
    return [found.text or "" for found in picture.iter("text")]


def told(picture: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Where each dot is, by what it says."""
    return {
        dot.findtext("title") or "": (float(dot.get("cx", "nan")), float(dot.get("cy", "nan")))
        for dot in picture.iter("circle")
    }


def test_gains_are_shown_best_first_with_interval_and_seeds(tmp_path: Path) -> None:
    page = render_html(analysed(tmp_path, arena(RULES, seeds=range(3))))
    picture = next(p for p in pictures(page) if (p.get("aria-label") or "").startswith("sums3: gain over fixed"))
    dots = told(picture)
    names = [text for text in texts(picture) if "/" in text]
    assert names[-1] == "gdpo/saw"  # drawn from below
    assert "gdpo/fixed" not in names
    saw, dara = (next(dots[t] for t in dots if re.match(rf"gdpo/{name}: .*\[", t)) for name in ("saw", "dara"))
    assert saw[0] > dara[0]
    assert saw[1] < dara[1]  # higher up
    by_seed = [dots[t][0] for t in dots if t.startswith("gdpo/saw, seed")]
    assert len(by_seed) == 3
    assert sum(by_seed) / 3 == pytest.approx(saw[0], abs=0.1)  # the mean, in rounded places


def test_entries_far_below_stay_in_the_picture_of_costs(tmp_path: Path) -> None:
    many = {f"gdpo/r{i}": 0.001 * i for i in range(8)}
    page = render_html(analysed(tmp_path, arena({**many, "gdpo/pama": -0.25}, seeds=range(2))))
    picture = next(p for p in pictures(page) if "cost against gain" in (p.get("aria-label") or ""))
    assert re.search(r"\(\d+ far below, at the lower edge\)", picture.get("aria-label") or "")
    heights = {text.split(":")[0]: up for text, (_, up) in told(picture).items()}
    assert max(heights.values()) == heights["gdpo/pama"] < svg.HEIGHT - svg.BOTTOM
    assert max(heights[name] for name in many) < 0.8 * heights["gdpo/pama"]  # the others have most of the height


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    names = (HOSTILE + "1", HOSTILE + "2")
    records = arena(
        {f"gdpo/{HOSTILE}": 0.05}, seeds=range(2), tasks=(HOSTILE,), objectives=names, versions={HOSTILE: HOSTILE}
    )
    records.append(failed("gdpo/pama", HOSTILE, task=HOSTILE))
    found = analysed(tmp_path, records)
    page, markdown = render_html(found), render_markdown(found)
    assert "alert(" in page  # it is there,
    assert "<script" not in page  # as text
    assert "<img" not in page
    assert "49" not in re.findall(r"<h2>(.*?)</h2>", page, re.DOTALL)[0]
    assert pictures(page)  # and well-formed
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert "](javascript" not in markdown
    assert not re.search(r"^# &", markdown, re.MULTILINE)


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = render_html(analysed(tmp_path, arena(RULES)))
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.findall(r"""(?:src|href)=["']|url\(|@import|<script|<link""", page)


def test_one_seed_has_means_without_intervals(tmp_path: Path) -> None:
    found = analysed(tmp_path, arena(RULES, seeds=[4]))
    for text in (render_html(found), render_markdown(found)):
        assert "one seed, so there are no intervals" in text
        assert "(1 seed)" in text
        assert "nan" not in text


def test_a_single_run_has_a_report(tmp_path: Path) -> None:
    """What an arena leaves that was stopped at once: no baseline, no default, no pairs."""
    found = analysed(tmp_path, [record("gdpo/static(4,1,1)", weights=[])])
    assert "There is no default to judge" in render_html(found)
    assert "Nothing is missing" not in render_markdown(found)


def test_the_page_begins_with_how_the_default_stands_on_each_task(tmp_path: Path) -> None:
    """Ahead, level, behind and too few seeds, computed from the figures, on a page that says what its words mean."""
    lifts = {"sums3": 0.06, "sums4": 0.0, "sums5": -0.06}
    records = [one for name, lift in lifts.items() for one in arena({"gdpo/auto": lift}, tasks=(name,))]
    records += arena({"gdpo/auto": 0.06}, tasks=("held_out",), seeds=range(2))
    found = analysed(tmp_path, records)
    for text in (unescape(render_html(found)), render_markdown(found)):
        lead = text[text.index("Which rule should I use?") : text.index("What was found")]
        assert "An entry is ESTIMATOR/RULE" in lead
        assert "Hypervolume is how much of" in lead
        assert all(TASKS[name].what in lead for name in (*lifts, "held_out"))
        assert "seen before the default was chosen" in lead
        told = text[text.index("What was found") :]
        assert re.search(
            r"against that of the best static weights: ahead on sums3 \(\+0.*5 seeds\).*, both intervals above 0; "
            r".*behind on .*sums5 \(-0.*5 seeds\), both intervals below 0; too few seeds to tell on held_out",
            told,
        )
        for name, stands in (("sums3", "ahead"), ("sums5", "behind"), ("held_out", "too few seeds to tell")):
            assert f"against best static: {stands}" in next(
                line for line in lead.splitlines() if TASKS[name].what in line
            )


def test_differences_tell_of_how_many_seeds_they_are(tmp_path: Path) -> None:
    records = [one for one in arena(RULES) if one["entry"] != "gdpo/saw" or one["seed"] == 0]
    text = render_markdown(analysed(tmp_path, records))
    row = next(line for line in text.splitlines() if line.startswith("| gdpo/saw"))
    assert row.startswith("| gdpo/saw (not ranked) | 1 | ")
    assert "(1 of 5 seeds)" in row
    assert "without seed" not in text
    assert "| sums3 | gdpo/saw | 1-4 |" in text  # a row of the table of runs that are not there


def test_a_front_that_was_tested_in_part_is_told_and_called_no_bound(tmp_path: Path) -> None:
    records = arena(RULES)
    assert "What noise adds to it: from +0.000 (" in render_markdown(analysed(tmp_path, records))
    told = "which takes from their test hypervolumes. They are no lower bounds: noise adds."
    assert told not in render_markdown(analysed(tmp_path, records))
    for one in records[:3]:
        one["validation"][-2]["on_front"] = True
    for text in (render_html(analysed(tmp_path, records)), render_markdown(analysed(tmp_path, records))):
        assert told in text
        assert f"In 3 of {len(records)} runs" in text


def test_both_pages_say_how_to_run_the_held_out_task_and_how_fast_static_was_reached(tmp_path: Path) -> None:
    found = analysed(tmp_path, arena(RULES))
    for text in (render_html(found), render_markdown(found)):
        assert "equipoise arena --preset full --out DIR --resume --held-out" in text
        assert "time to static" in text
        assert "softmin/hv_gradient by seeds 3 and 4 of sums3 and sums5 and seeds 0 and 1 of sums4" in text
        assert "the rest is not significant or has too few seeds to tell" in text.replace("\n", " ")
    table = next(line for line in render_markdown(found).splitlines() if line.startswith("| entry |"))
    assert table.rstrip().endswith("| minus front (8 times the budget) |")


def test_the_table_and_the_plot_have_one_order(tmp_path: Path) -> None:
    """Entries with fewer than 3 seeds come last in both, however lucky these are."""
    records = arena({**RULES, "gdpo/pama": 0.2})
    found = analysed(tmp_path, [one for one in records if one["entry"] != "gdpo/pama" or one["seed"] < 2])
    table = [row.entry.name for row in found.tasks[0].rows if row.entry.name != "gdpo/fixed"]
    picture = next(
        p for p in pictures(render_html(found)) if (p.get("aria-label") or "").startswith("sums3: gain over")
    )
    drawn = [text.split(" ")[0] for text in texts(picture) if "/" in text]
    assert drawn[::-1] == table or drawn == table
    assert table[-1] == "gdpo/pama"
    assert "gdpo/pama (n=2)" in texts(picture)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the benchmark keeps what it finds."""
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "KEPT", tmp_path / "arena_runs.jsonl.gz")
    return tmp_path


def benchmark_run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["arena", *words])
    benchmark.main()


def test_benchmark_keeps_the_runs_and_says_the_same_of_them_again(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [*arena(RULES, seeds=range(3), train_rewards=[[1 / 3] * 3]), failed("gdpo/pama", "nan")]
    source = write(results / "runs.jsonl", records)
    source.write_text(source.read_text() + '{"schema": 1, "ta')
    benchmark_run(monkeypatch, "--runs", str(source))
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (first["runs"], first["failed"], first["seeds"]) == (33, 1, 3)
    kept = gzip.decompress((results / "arena_runs.jsonl.gz").read_bytes()).decode()
    assert "train_rewards" not in kept
    assert len(kept.splitlines()) == 34
    source.unlink()
    benchmark_run(monkeypatch)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert json.loads((results / "arena.json").read_text())["machine"]["cores"]
    assert (results / "arena.html").exists()
    assert (results / "arena.md").exists()


def test_benchmark_never_replaces_what_it_keeps_by_what_it_cannot_read(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark_run(monkeypatch, "--runs", str(write(results / "runs.jsonl", arena(RULES, seeds=[0]))))
    before = (results / "arena_runs.jsonl.gz").read_bytes()
    for foreign, words in (("foreign.jsonl", "schema: this version reads 1"), ("absent.jsonl", "no file")):
        (results / "foreign.jsonl").write_text('{"schema": 9}\n')
        with pytest.raises(SystemExit):
            benchmark_run(monkeypatch, "--runs", str(results / foreign))
        assert words in capsys.readouterr().err
    assert (results / "arena_runs.jsonl.gz").read_bytes() == before


def test_benchmark_never_loses_a_run_that_it_keeps(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = arena(RULES, seeds=range(2)), arena(RULES, seeds=[2])
    benchmark_run(monkeypatch, "--runs", str(write(results / "runs.jsonl", [*first, failed("gdpo/pama", "nan")])))
    before = (results / "arena_runs.jsonl.gz").read_bytes()
    with pytest.raises(SystemExit):
        benchmark_run(monkeypatch, "--runs", str(write(results / "new.jsonl", [*first[1:], *other])))
    told = capsys.readouterr().err
    assert re.search(
        r"lacks 1 finished runs that are kept, such as sums3 gdpo/fixed seed 0, of 2026.*both\.jsonl", told
    )
    assert (results / "arena_runs.jsonl.gz").read_bytes() == before
    benchmark_run(monkeypatch, "--runs", str(write(results / "both.jsonl", [*first, *first, *other])))
    kept = gzip.decompress((results / "arena_runs.jsonl.gz").read_bytes()).decode()
    assert len(kept.splitlines()) == 33  # one that stood there twice is kept once


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.md"
    replace_file(path, "whole")

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.md'"):
        replace_file(path, "half")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.md", "whole")]


def test_reports_and_kept_runs_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write(tmp_path / "runs.jsonl", arena(RULES, seeds=[0]))
    html, markdown = tmp_path / "a.html", tmp_path / "a.md"
    for path in (html, markdown):
        path.write_text("as it was")
    monkeypatch.setattr("os.fsync", lambda _file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setattr(benchmark, "KEPT", tmp_path / "arena_runs.jsonl.gz")
    with pytest.raises(OSError, match="full"):
        write_report(runs, html, markdown)
    with pytest.raises(OSError, match="full"):
        benchmark.keep(runs)
    assert [path.read_text() for path in (html, markdown)] == ["as it was"] * 2
    assert not (tmp_path / "arena_runs.jsonl.gz").exists()


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.0, 44.0, [0, 10, 20, 30, 40]),
    (0.211, 0.219, [0.212, 0.214, 0.216, 0.218]),
])  # fmt: skip
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_points_lie_where_their_values_say() -> None:
    series = svg.Series(name="s", colour="red", line=[(0, 0), (10, 1)], points=[(5, 0.5, "middle")])
    picture = ElementTree.fromstring(svg.chart("t", [series], across="x", up="y", x_range=(0, 10), y_range=(0, 1)))
    line, dot = picture.find("polyline"), picture.find("circle")
    assert line is not None
    assert dot is not None
    (x0, y0), (x1, y1) = ([float(v) for v in pair.split(",")] for pair in line.get("points", "").split())
    assert float(dot.get("cx", "")) == pytest.approx((x0 + x1) / 2)
    assert float(dot.get("cy", "")) == pytest.approx((y0 + y1) / 2)
    assert y1 < y0  # up is more
    assert (dot.find("title")).text == "middle"  # type: ignore[union-attr]


def test_a_chart_of_one_value_is_no_error() -> None:
    assert "<svg" in svg.chart("t", [svg.Series(name="s", colour="red", points=[(1, 0.0, "")])], across="x", up="y")
    assert "<svg" in svg.chart("t", [], across="x", up="y")
