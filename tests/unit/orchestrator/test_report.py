"""The report: complete in itself, safe with hostile text, and sound with whatever is missing."""

import json
import math
import re
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from orchestrator.directions import better_words
from orchestrator.lineage import best_step
from orchestrator.report import render_report
from orchestrator.state.store import Checkpoint
from policies.places import Scale

Json = dict[str, Any]

HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>{{ 7*7 }}</pre>&amp;"""
STEPS = 4


def documents(objectives: int) -> Json:
    """What the store keeps of a finished job with that many objectives, steered at step 2 and collapsed at step 4."""
    names = [f"objective_{i}" for i in range(objectives)]

    def values(by: float = 0.0) -> Json:
        return {name: round(0.5 + 0.01 * i + by, 3) for i, name in enumerate(names)}

    def step(number: int) -> Json:
        evaluation = {"objectives": values(), "mean_tokens": 30.0, "hypervolume": 0.4, "on_front": True}
        shares = dict.fromkeys(names, 1 / objectives)
        return {
            "step": number,
            "objectives": {n: {"mean": v, "std": 0.1, "zero_share": 0.2} for n, v in values().items()},
            "weights": {"strategy": shares, "applied": shares},
            "steering_version": 1 + (number >= 2),
            "mean_tokens": 30.0, "truncated_share": 0.0, "entropy": 0.5, "kl": 0.01, "grad_norm": 1.0,
            "evaluation": evaluation if number % 2 == 0 else None,
            "timings_s": {"rollout": 0.6, "score": 0.1, "learn": 0.5, "sync": 0.05, "other": 0.01, "step": 1.3},
        }  # fmt: skip

    def point(number: int, **more: Any) -> Json:
        test = {"objectives": values(0.1 * number), "mean_tokens": 31.0, "standard_errors": dict.fromkeys(names, 0.02)}
        base = {"step": number, "objectives": values(0.1 * number), "mean_tokens": 30.0, "on_front": True}
        styles = {"short": {"share": 0.4, "accuracy": 0.2}, "overall": {"share": 1.0, "accuracy": 0.5}}
        errors = {"standard_errors": dict.fromkeys(names, 0.015)}
        tested = {"sampled": test, "greedy": test}
        return base | {"collapsed": False, "checkpoint": True, "test": tested, "styles": styles, **errors} | more

    return {
        "job": {"id": "job_1", "name": "a job", "status": "succeeded", "started_at": 1.7e9, "finished_at": 1.7e9 + 75,
                "step": STEPS, "total_steps": STEPS, "reason": None},
        "spec": {"name": "a job", "objectives": [{"name": name, "weight": 1.0} for name in names]},
        "steps": [step(number) for number in range(1, STEPS + 1)],
        "front": {"objectives": names, "ranges": {name: [0.0, 1.0] for name in names}, "hypervolume": 0.4,
                  "hypervolume_base": 0.3, "hypervolume_by_step": [[0, 0.3], [2, 0.4]],
                  "points": [point(0), point(2), point(3, on_front=False), point(4, on_front=False, collapsed=True)]},
        "samples": [{"prompt": "1+1=", "answer": "2", "start": {"completion": "3", "rewards": values()},
                     "end": {"completion": "2", "rewards": values()}}],
        "events": [{"seq": 1, "type": "collapse.detected", "at": 1.7e9, "level": "warning", "data": {"step": 4}}],
    }  # fmt: skip


def replaced(value: Any, old: type, new: Any) -> Any:
    """The document with every leaf of a type replaced."""
    if isinstance(value, dict):
        return {key: replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return new if isinstance(value, old) else value


def page(**parts: Any) -> str:
    """The report without plotly.js itself."""
    return render_report(**parts).replace(get_plotlyjs(), "")


def figures(text: str) -> list[Json]:
    return [
        json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    ]


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
def test_every_pair_of_objectives_has_a_figure(objectives: int) -> None:
    titles = [figure["title"] for figure in figures(page(**documents(objectives)))]
    assert sum(" and " in title for title in titles) == math.comb(objectives, 2)
    assert ("All objectives at once" in titles) == (objectives >= 3)


def test_the_corner_of_the_volume_is_drawn_and_named() -> None:
    parts = documents(2)
    parts["front"]["reference"] = {"objective_0": 0.2, "objective_1": 0.0}
    (pair,) = [figure for figure in figures(page(**parts)) if " and " in figure["title"]]
    (corner,) = [trace for trace in pair["data"] if trace["name"] == "corner of the volume"]
    assert (corner["x"], corner["y"]) == ([0.2], [0.0])
    assert corner["text"] == ["corner of the volume<br>objective_0 0.200<br>objective_1 0.000"]
    assert "the corner that the hypervolume is measured from" in page(**parts)


def test_result_is_told_in_words_and_numbers() -> None:
    text = page(**documents(2))
    assert "objective_0 rose from 0.500 to 0.700" in text
    assert "hypervolume went from 0.300 to 0.400" in text
    assert "1 min 15 s" in text
    assert "weights steered from step 2" in text
    assert "collapse seen at step 4" in text
    assert "0.500 ± 0.015</td>" in text
    assert "0.700 ± 0.020</td>" in text
    assert "after ± is the standard error" in text


def test_a_long_job_has_a_report_that_a_browser_opens() -> None:
    """Means of steps that come together, and all points of the front; not the oldest of those that others dominate."""
    parts = documents(8)
    one, point = parts["steps"][0], parts["front"]["points"][2]
    parts["steps"] = [
        {**one, "step": step, "entropy": float(step), "evaluation": one["evaluation"] if step % 10 == 0 else None}
        for step in range(1, 20_001)
    ]
    parts["front"]["points"] += [{**point, "step": step} for step in range(10, 20_001, 10)]
    text = page(**parts)
    assert len(text) < 8 << 20
    (entropy,) = [figure for figure in figures(text) if figure["title"] == "Entropy"]
    ((line,),) = [entropy["data"]]
    assert (line["x"][:2], line["y"][:2], line["x"][-1]) == ([40, 80], [20.5, 60.5], 20_000)
    assert "a point for every 40 steps" in text
    assert "The oldest 1,745 of the dominated ones are left out" in text
    assert "a point for every" not in page(**documents(2))


def test_events_that_are_left_out_are_counted_by_the_number_of_the_newest() -> None:
    """Of a long job the store itself keeps the newest alone."""
    parts = documents(2)
    parts["events"] += [{**parts["events"][0], "type": "evaluated", "seq": seq} for seq in range(9_000, 10_001)]
    assert "9,500 earlier ones are left out" in page(**parts).replace("&#8239;", ",").replace("\u202f", ",")
    assert "collapse seen at step 4" in page(**parts)


@pytest.mark.parametrize(("took", "told"), [({}, []), ({"gpu_hours": 2.5, "cost": 31.0}, ["2.500", "31.0"])])
def test_what_the_job_took_is_told_where_it_did(took: Json, told: list[str]) -> None:
    parts = documents(2)
    parts["job"] |= took
    head = page(**parts).replace("&nbsp;", "")
    assert re.findall(r"·(?: judges' cost)? ([\d.]+)(?: GPU-hours)?$", head, re.MULTILINE) == told


def test_what_trained_the_job_is_told_and_where_that_changed() -> None:
    def told(vllm: str, **more: Any) -> Json:
        data = {"code": {"version": "0.1.0", "commit": None}, "versions": {"torch": "2.9", "vllm": vllm}}
        return {"seq": 1, "type": "job.software", "at": 1.0, "level": "info", "data": data | more}

    text = page(**documents(2) | {"events": [told("0.10"), told("0.10"), told("0.11")]})
    line = "Trained by equipoise 0.1.0, torch 2.9, vllm 0.10; then equipoise 0.1.0, torch 2.9, vllm 0.11<"
    assert line in text
    assert "It stood for" not in text
    policy = {"model": "org/model", "commit": "b" * 40}
    made_of = {"plugins": {"mine": "1.0"}, "device": "a CPU", "policy": policy, "data_sha256": {"train": "a" * 64}}
    text = page(**documents(2) | {"events": [told("0.10", **made_of)]})
    assert "torch 2.9, vllm 0.10, mine 1.0, on a CPU<" in text
    assert f"It stood for: org/model at commit {'b' * 40}; train files of sha256 {'a' * 64}." in text


def test_without_a_gain_the_report_says_so() -> None:
    parts = documents(2)
    for point in parts["front"]["points"][1:]:
        point["on_front"] = False
    assert "no later point beats the base" in page(**parts)


@pytest.mark.parametrize(
    ("weights", "step", "words"),
    [
        (None, 10, "by the preference that it was submitted with"),
        ({"accuracy": 0.5, "brevity": 0.5}, 10, "by the preference that it was submitted with"),
        ({"accuracy": 0.9, "brevity": 0.1}, 40, "by the weights that it was last steered with"),
    ],
)
def test_its_best_is_the_checkpoint_that_a_fork_takes(weights: Json | None, step: int, words: str) -> None:
    ranges = {"accuracy": [0.0, 1.0], "brevity": [0.0, 1.0]}
    values = {0: (0.2, 0.5), 10: (0.5, 0.8), 40: (0.9, 0.3), 50: (0.95, 0.95)}
    points: list[Json] = [
        {"step": at, "objectives": dict(zip(ranges, both, strict=True)), "on_front": at != 0, "checkpoint": at != 50}
        for at, both in values.items()
    ]
    spec = {"objectives": [{"name": name, "weight": 1.0} for name in ranges]}
    front = {"objectives": list(ranges), "ranges": ranges, "points": points}
    text = page(**documents(2) | {"front": front, "spec": spec}, weights=weights)
    assert f"From the base to step {step}, the front&#39;s best {words}: " in text
    kept = [
        Checkpoint(step=p["step"], path="", digest="", metrics=p, on_front=p["on_front"])
        for p in points
        if p["checkpoint"]
    ]
    preference = weights or dict.fromkeys(ranges, 0.5)
    assert best_step(kept, {name: Scale(low=0, high=1) for name in ranges}, preference) == step


def test_its_best_is_the_smallest_where_that_is_better_and_counts_after_the_gates() -> None:
    parts = documents(1)
    front = parts["front"]
    front["points"] = [
        {"step": 0, "objectives": {"objective_0": 0.9}, "on_front": True, "checkpoint": True},
        {"step": 2, "objectives": {"objective_0": 0.2}, "on_front": True, "checkpoint": True},
    ]
    front["directions"] = {"objective_0": {"better": "smaller", "target": None}}
    assert better_words(front, "objective_0") == " (smaller is better)"
    assert "From the base to step 2" in page(**parts)
    assert "no later point beats the base" in page(**parts | {"front": {**front, "directions": None}})
    assert "counts after it on the front" not in page(**parts)
    for point, counted in zip(front["points"], (0.1, 0.2), strict=True):
        point["counted"] = {"objective_0": counted}
    assert "no later point beats the base" in page(**parts)
    gated = documents(2)
    told = "An objective with a gate counts after it on the front; figures are before it."
    for point in gated["front"]["points"]:
        assert told not in page(**gated)  # points of an older version are ranked as they are shown
        point["counted"] = point["objectives"]
    assert told in page(**gated)


def test_the_gain_is_that_of_the_test_split() -> None:
    """Of a policy that stays as it is, the validated front grows, as the luckiest of many evaluations make it."""
    parts = documents(2)
    assert "On the test split, the front&#39;s hypervolume" not in page(**parts)
    parts["front"] |= {"hypervolume_test": 0.3, "hypervolume_test_base": 0.3}
    text = page(**parts)
    assert "On the test split, the front&#39;s hypervolume stayed at 0.300." in text
    assert "some of such a growth is luck" in text
    parts["front"] |= {"hypervolume_test": 0.35}
    text = page(**parts)
    assert "On the test split, the front&#39;s hypervolume went from 0.300 to 0.350." in text
    assert "These figures also chose it" not in text
    parts["front"]["points"][2]["on_front"] = True
    del parts["front"]["points"][2]["test"]  # beyond evaluation.test_points
    text = page(**parts)
    assert "hypervolume, of which 2 of 3 points were tested, went from 0.300 to 0.350." in text
    assert "These figures also chose it, of 4 evaluations: some of its gain is luck." in text


def test_hostile_text_is_shown_as_text() -> None:
    parts = replaced(documents(3), str, HOSTILE)
    parts["front"]["points"][1]["styles"] = {HOSTILE: 1.0}
    parts["samples"][0]["end"]["rewards"] = {HOSTILE: 1.0}
    parts["events"][0]["data"] = {HOSTILE: [HOSTILE]}
    parts["spec"]["objectives"] = [{"name": HOSTILE + str(i), "weight": 1.0} for i in range(3)]
    text = page(**parts)
    assert "alert(" in text  # it is there,
    assert "<script>alert" not in text  # as text
    assert "<img" not in text
    assert "49" not in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)[0]
    assert re.findall(r"<script[^>]*>", text).count("<script>") == 2  # plotly.js and ours
    for figure in figures(text):
        assert "<script" not in json.dumps([figure["data"], figure["layout"]])


def test_nothing_is_loaded() -> None:
    text = page(**documents(3))
    assert "http://" not in text
    assert "https://" not in text
    assert not re.findall(r"\b(?:src|href|action|srcset)\s*=|@import|url\(", text)
    assert "default-src 'none'" in text


def test_plotly_is_there_once() -> None:
    assert render_report(**documents(3)).count(get_plotlyjs()) == 1


@pytest.mark.parametrize("objectives", [1, 2, 3, 8])
@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_figures_are_dashes(objectives: int, missing: float | None) -> None:
    text = page(**replaced(documents(objectives), float, missing))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert ">–<" in text


@pytest.mark.parametrize("part", ["job", "spec", "steps", "front", "samples", "events"])
def test_a_missing_part_is_left_out(part: str) -> None:
    empty: Json = {"job": {}, "spec": {}, "steps": [], "front": None, "samples": [], "events": []}
    assert page(**documents(3) | {part: empty[part]}).endswith("</html>")


def test_a_job_that_has_not_begun() -> None:
    text = page(job={"name": "new", "status": "queued"}, spec={}, steps=[], front=None, samples=[], events=[])
    assert "No evaluation has been recorded yet" in text
    assert "No step has been recorded yet" in text


def test_guardrails_tell_when_they_were_watched_and_when_breached() -> None:
    parts = documents(2)
    entropy = {"metric": "entropy", "min": 0.25, "max": None, "for_steps": 1, "action": "alert"}
    loss = {"metric": "loss", "min": None, "max": 2.0, "for_steps": 3, "action": "pause"}
    parts["spec"]["guardrails"] = [entropy]
    low = {"metric": "entropy", "limit": "min", "bound": 0.25, "for_steps": 1, "action": "alert"}
    told = [
        ("guardrail.breached", {**low, "step": 2}),
        ("guardrail.breached", {**low, "bound": 0.5, "step": 3}),  # of another
        ("steering.applied", {"step": 4, "requested": {"guardrails": [loss]}}),
        ("steering.applied", {"step": 6, "requested": {"mode": "auto"}}),
        ("guardrail.breached", {**low, "step": 7}),
    ]
    parts["events"] = [{"seq": i, "type": kind, "at": 1.7e9, "data": data} for i, (kind, data) in enumerate(told, 1)]
    text = page(**parts)
    section = text[text.index("<h2>Guardrails") :].split("</section>")[0]
    rows = [re.sub(r"<[^>]*>|\n", "|", row) for row in section.split("<tr>")[2:]]
    shown = [[cell for cell in row.split("|") if cell.strip()] for row in rows]
    assert shown == [
        ["entropy", "at least 0.250", "1", "alert", "from step 1 to 3, from step 6 on", "at step 2, 7"],
        ["loss", "at most 2.000", "3", "pause", "from step 4 to 5", "never"],
    ]
    assert "<h2>Guardrails" not in page(**documents(2))


def test_further_sets_have_columns_of_their_own() -> None:
    parts = documents(2)
    assert 'class="group"' in (text := page(**parts))
    assert ">hard<" not in text
    name = parts["front"]["objectives"][0]
    parts["front"]["points"][1]["sets"] = {"hard": {"objectives": {name: 0.4321}, "mean_tokens": 77.0}}
    text = page(**parts)
    assert '<th class="group" colspan="3">hard</th>' in text
    (drawn,) = [figure for figure in figures(text) if figure["title"] == f"{name}, by set"]
    assert [(trace["name"], trace["y"][:2]) for trace in drawn["data"]] == [
        ("validation", [0.5, 0.7]), ("hard", [None, 0.4321]),
    ]  # fmt: skip
    assert "0.432" in text
    assert "77" in text


def test_empty_records_do_no_harm() -> None:
    front = {"points": [{}, {"step": 0}, {"step": 3, "test": {"greedy": None}, "sets": {"x": {}}}]}
    parts: Json = {"job": {}, "spec": {"objectives": [{}]}, "samples": [{}], "events": [{}]}
    assert page(**parts, steps=[{}, {"step": 2}], front=front).endswith("</html>")
