"""The report of a job: one HTML file that needs no network, from the documents that the store keeps.

Everything that is shown is untrusted (names, completions, messages): the template escapes it, chart labels are escaped
once more because plotly.js reads a little HTML, and the page's own policy forbids it to load anything.
"""

import html
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
import yaml
from plotly.offline import get_plotlyjs

from orchestrator.comparison import tested_points
from orchestrator.directions import better_words, directions
from orchestrator.guardrails import history
from orchestrator.lineage import best_of
from orchestrator.state.records import finite
from orchestrator.stored_spec import to_repeat
from policies.places import Scale, counted_values, is_gated, read_scales

Json = dict[str, Any]

COLOURS = ("#3f7fd0", "#d9772b", "#2b9a6e", "#c2527f", "#8768c4", "#a98a1f", "#2c9bad", "#8b705f")
INK, MUTED, WARNING = "var(--ink)", "var(--muted)", "var(--warning)"  # the page puts its theme's colours in
STAGES = ("rollout", "score", "learn", "sync", "evaluate", "checkpoint", "other")
PAIRS_AT_ONCE = 6
TEST_SPLITS = {"sampled": "sampled as in training", "greedy": "greedy decoding"}
EVENTS_SHOWN = 500
BREACHES_SHOWN = 20  # of one guardrail
STEPS_DRAWN = 512  # at most: more are averaged, as no chart is wider than that
DOMINATED_SHOWN = 256  # points of the archive, the newest
DRAWN = (
    "step", "objectives", "weights", "gold",
    "mean_tokens", "truncated_share", "entropy", "kl", "grad_norm", "clip_share",
)  # fmt: skip
SAMPLES_SHOWN = 10
SAME_WEIGHT = 1e-6  # below it two weights differ by how they were scaled


def render_report(
    *,
    job: Json,
    spec: Json,
    steps: list[Json],
    front: Json | None,
    samples: list[Json],
    events: list[Json],
    weights: Mapping[str, float] | None = None,
) -> str:
    """The report as one HTML document. Whatever is missing, or not a finite number, is left out or shown as a dash.

    `weights` are those that the job was last steered with; the spec's without them.
    """
    job, spec, steps, front, samples, events = (finite(part) for part in (job, spec, steps, front, samples, events))
    names = _objective_names(spec, steps, front)
    points = sorted((front or {}).get("points") or [], key=lambda point: point.get("step") or 0)
    marks = _marks(steps, events)
    best = _best_point(points, spec, front or {}, weights or _submitted(spec))
    is_steered = weights is not None and not _alike(weights, _submitted(spec))
    by = "the weights that it was last steered with" if is_steered else "the preference that it was submitted with"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "moment": _moment, "compact": _compact_json}
    drawn, shown = _thinned(steps), _shown(points)
    pairs = _pair_figures(names, shown, front or {})
    return environment.get_template("report.html.j2").render(
        job=job,
        names=names,
        colours={name: _colour(i) for i, name in enumerate(names)},
        duration=_duration(job, steps),
        story=_story(names, points, best, front, by),
        by=by,
        is_gated=is_gated(points),
        tiles=_tiles(names, points, best, front),
        marks=marks,
        objective_figures=_objective_figures(names, drawn, steps, marks),
        weight_figures=_weight_figures(names, drawn, marks),
        gold_figures=_gold_figures(names, drawn, spec, marks),
        guardrails=_guardrails(spec, events),
        health_figures=_health_figures(drawn, marks),
        steps_in_one=_width(steps),
        hypervolume_figures=_hypervolume_figures(front or {}, marks),
        pair_figures=pairs[:PAIRS_AT_ONCE],
        more_pair_figures=pairs[PAIRS_AT_ONCE:],
        parallel_figures=_parallel_figures(names, shown, front or {}),
        points_left_out=len(points) - len(shown),
        style_figures=_style_figures(points),
        rows=_front_rows(points, front or {}),
        splits=[key for key in TEST_SPLITS if any((point.get("test") or {}).get(key) for point in points)],
        sets=(sets := sorted({name for point in points for name in point.get("sets") or {}})),
        set_figures=_set_figures(names, sets, points),
        best_step=best.get("step") if best else None,
        samples=samples[:SAMPLES_SHOWN],
        stages=_stages(steps),
        software=_software(events),
        inputs=_inputs(events),
        repeated=to_repeat(spec, events) if spec else None,
        spec=yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100) if spec else "",
        events=events[-EVENTS_SHOWN:],
        events_left_out=_left_out(events),
        plotly=get_plotlyjs() if steps or points else "",
    )


# What is in the documents -------------------------------------------------------------------------------------------


def _objective_names(spec: Json, steps: list[Json], front: Json | None) -> list[str]:
    """The objectives in the spec's order; without a spec, in the order in which the others name them."""
    named = [objective.get("name") for objective in spec.get("objectives") or []]
    named = named or list((front or {}).get("objectives") or [])
    named = named or list(itertools.chain.from_iterable(step.get("objectives") or {} for step in steps))
    return list(dict.fromkeys(str(name) for name in named))


def _get(document: Json | None, *path: str) -> Any:
    """The value at a path, or None where any part of it is missing."""
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _width(steps: list[Json]) -> int:
    """Steps in one point of a chart."""
    return max(1, -(-len(steps) // STEPS_DRAWN))


def _thinned(steps: list[Json]) -> list[Json]:
    """What charts draw of the steps: means of as many as come together, under the last one's number."""
    kept = [{key: step[key] for key in DRAWN if key in step} for step in steps]
    if (width := _width(steps)) == 1:
        return kept
    parts = [kept[first : first + width] for first in range(0, len(kept), width)]
    return [_mean(part) | {"step": part[-1].get("step")} for part in parts]


def _mean(documents: list[Json]) -> Json:
    """Of each number in them; of anything else, the last."""
    found: Json = {}
    for key in dict.fromkeys(itertools.chain.from_iterable(documents)):
        values = [value for document in documents if (value := document.get(key)) is not None]
        if values and all(isinstance(value, dict) for value in values):
            found[key] = _mean(values)
        elif values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[key] = sum(values) / len(values)
        else:
            found[key] = values[-1] if values else None
    return found


def _shown(points: list[Json]) -> list[Json]:
    """Without the oldest of those that others dominate, where there are very many."""
    dominated = [i for i, point in enumerate(points) if _kind(point) == "dominated"]
    left_out = set(dominated[:-DOMINATED_SHOWN])
    return [point for i, point in enumerate(points) if i not in left_out]


def _left_out(events: list[Json]) -> int:
    """How many there were beside those that are shown; by their number, as the oldest of a long job are not kept."""
    newest = _get(events[-1], "seq") if events else None
    return max(0, (newest if isinstance(newest, int) else len(events)) - min(len(events), EVENTS_SHOWN))


def _software(events: list[Json]) -> list[str]:
    """What trained the job, a line for each that took it over with other versions."""
    lines = []
    for data in (event.get("data") or {} for event in events if event.get("type") == "job.software"):
        made_by = data.get("code") or {}
        own = f"equipoise {made_by.get('version')}{f' ({commit})' if (commit := made_by.get('commit')) else ''}"
        used = (data.get("versions") or {}) | (data.get("plugins") or {})
        device = [f"on {data['device']}"] if data.get("device") else []
        lines.append(", ".join([own, *(f"{name} {version}" for name, version in used.items()), *device]))
    return [line for i, line in enumerate(lines) if i == 0 or line != lines[i - 1]]


def _inputs(events: list[Json]) -> list[str]:
    """What the spec's names stood for: the commit of a policy on the hub, and the sums of data files."""
    told = [event.get("data") or {} for event in events if event.get("type") == "job.software"]
    last = told[-1] if told else {}
    commit, sums = _get(last, "policy", "commit"), last.get("data_sha256") or {}
    policy = [f"{_get(last, 'policy', 'model')} at commit {commit}"] if commit else []
    return [*policy, *(f"{split} files of sha256 {digest}" for split, digest in sums.items())]


def _guardrails(spec: Json, events: list[Json]) -> list[Json]:
    """In words: what each allowed, when it was watched, and when that was breached."""
    rows = []
    for held in history(spec, events):
        rule, words = held.rule, {"min": "at least", "max": "at most"}
        spans = [f"from step {since} {'on' if until is None else f'to {until}'}" for since, until in held.spans]
        row = {
            "metric": rule.get("metric"),
            "wanted": " and ".join(f"{words[end]} {_number(rule[end])}" for end in words if rule.get(end) is not None),
            "for_steps": rule.get("for_steps"),
            "action": rule.get("action"),
            "watched": ", ".join(spans),
            "breaches": held.breaches[:BREACHES_SHOWN],
            "more": len(held.breaches) - BREACHES_SHOWN,
        }
        rows.append(row)
    return rows


def _marks(steps: list[Json], events: list[Json]) -> dict[str, list[int]]:
    """Steps at which the weights were steered and at which a collapse was seen."""
    versions = [(step.get("step"), step.get("steering_version")) for step in steps]
    steered = [b[0] for a, b in itertools.pairwise(versions) if a[1] != b[1] and b[0] is not None]
    collapsed = [_get(event, "data", "step") for event in events if event.get("type") == "collapse.detected"]
    gold = [_get(event, "data", "step") for event in events if event.get("type") == "overoptimisation.detected"]
    return {
        "steered": steered,
        "collapsed": sorted({step for step in collapsed if isinstance(step, int)}),
        "overoptimised": sorted({step for step in gold if isinstance(step, int)}),
    }


def _scaled(value: float | None, name: str, front: Json) -> float | None:
    """An objective's value on the scale [0, 1] of its range."""
    low, high = (front.get("ranges") or {}).get(name) or (0.0, 1.0)
    if value is None or low is None or high is None or not high > low:
        return None
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _submitted(spec: Json) -> dict[str, float]:
    """The spec's weights, scaled to sum to 1."""
    weights = {str(o.get("name")): o.get("weight", 1.0) or 0.0 for o in spec.get("objectives") or []}
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) < SAME_WEIGHT for name in one)


def _best_point(points: list[Json], spec: Json, front: Json, weights: Mapping[str, float]) -> Json | None:
    """The point that `fork --at best` takes, by the same rule; of those without a checkpoint where none is kept."""
    ranges = {name: ends for name, ends in (front.get("ranges") or {}).items() if None not in ends}
    named = [objective for objective in spec.get("objectives") or [] if objective.get("name")]
    scales = read_scales(ranges, front.get("directions") or directions({**spec, "objectives": named}))
    counted = zip(points, counted_values(points), strict=True)
    found = [(point, values) for point, values in counted if point.get("on_front") and not point.get("collapsed")]
    kept = [(point, values) for point, values in found if point.get("checkpoint")] or found
    places = {point.get("step"): _places(values, scales) for point, values in kept}
    best = best_of({step: found for step, found in places.items() if step is not None}, weights)
    return next((point for point, _ in kept if point.get("step") == best), None)


def _places(values: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, float]:
    return {name: scale.place(values[name]) for name, scale in scales.items() if values.get(name) is not None}


def _base_point(points: list[Json]) -> Json | None:
    return points[0] if points and points[0].get("step") == 0 else None


def _changes(names: list[str], base: Any, best: Any) -> str:
    """`accuracy rose from 0.59 to 0.78, length stayed at 0.60`, for the objectives that both have."""
    words = []
    for name in names:
        before, after = _get(base, "objectives", name), _get(best, "objectives", name)
        if before is None or after is None:
            continue
        if _number(before) == _number(after):
            words.append(f"{name} stayed at {_number(after)}")
        else:
            words.append(f"{name} {'rose' if after > before else 'fell'} from {_number(before)} to {_number(after)}")
    return ", ".join(words)


def _story(names: list[str], points: list[Json], best: Json | None, front: Json | None, by: str) -> list[str]:
    """The result in sentences: what the best point, by the weights that `by` says, gained and lost against the base,
    and the hypervolume."""
    if front is None or not points:
        return ["No evaluation has been recorded yet, so there is no front."]
    sentences = []
    base = _base_point(points)
    if best is None:
        sentences.append("Every point so far is dominated or collapsed.")
    elif base is None:
        sentences.append(f"The base was not evaluated; step {best.get('step')} is the front's best by {by}.")
    elif best is base:
        sentences.append(f"By {by}, no later point beats the base.")
    elif changes := _changes(names, base, best):
        sentences.append(f"From the base to step {best.get('step')}, the front's best by {by}: {changes}.")
        for split, words in TEST_SPLITS.items() if len(names) <= 4 else ():  # the table has the rest
            if told := _changes(names, _get(base, "test", split), _get(best, "test", split)):
                sentences.append(f"On the test split, {words}: {told}.")
        if not best.get("test") and len(points) > 2:
            sentences.append(f"These figures also chose it, of {len(points)} evaluations: some of its gain is luck.")
    return [*sentences, *_volumes(front)]


def _volumes(front: Json) -> Iterator[str]:
    """A union of noisy points also grows where the policy stays as it is, so the test split has the last word."""
    after, before = front.get("hypervolume_test"), front.get("hypervolume_test_base")
    if after is not None and before is not None:
        change = "stayed at" if _number(before) == _number(after) else f"went from {_number(before)} to"
        tested, of = tested_points(front)
        part = "" if tested == of else f", of which {tested} of {of} points were tested,"
        yield f"On the test split, the front's hypervolume{part} {change} {_number(after)}."
    after, before = front.get("hypervolume"), front.get("hypervolume_base")
    if after is not None and before is not None:
        yield (
            f"The front's hypervolume went from {_number(before)} to {_number(after)} on the validation split, which "
            "also chose its points: some of such a growth is luck."
        )


def _tiles(names: list[str], points: list[Json], best: Json | None, front: Json | None) -> list[Json]:
    """Base and best of every objective, and the hypervolume, as figures at the top."""
    base = _base_point(points)
    tiles = [
        {"name": name, "before": _get(base, "objectives", name), "after": _get(best, "objectives", name)}
        for name in names
    ]
    if front is not None:
        for name, key in (("hypervolume", "hypervolume"), ("hypervolume, test split", "hypervolume_test")):
            tiles.append({"name": name, "before": front.get(f"{key}_base"), "after": front.get(key)})
    return [tile for tile in tiles if tile["before"] is not None or tile["after"] is not None]


def _front_rows(points: list[Json], front: Json) -> list[Json]:
    """The base and every point of the front, each with the hypervolume that the front had by then."""
    growth = sorted((step, value) for step, value in front.get("hypervolume_by_step") or [] if step is not None)
    rows = []
    for point in points:
        step = point.get("step")
        if point.get("on_front") or step == 0:
            reached = [value for at, value in growth if step is not None and at <= step]
            rows.append({**point, "hypervolume": reached[-1] if reached else None})
    return rows


def _stages(steps: list[Json]) -> list[Json]:
    """Seconds of every stage of the loop, and its share of all of them."""
    seconds = {stage: sum(_get(step, "timings_s", stage) or 0.0 for step in steps) for stage in STAGES}
    total = sum(seconds.values())
    if not total:
        return []
    shares = ((stage, spent, spent / total) for stage, spent in seconds.items())
    return [
        {"name": stage, "seconds": spent, "share": share, "per_step": spent / len(steps), "colour": _colour(i)}
        for i, (stage, spent, share) in enumerate(shares)
    ]


# Figures: plain documents for plotly.js -----------------------------------------------------------------------------


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _label(text: object) -> str:
    """Text for plotly.js, which reads tags and entities."""
    return html.escape(str(text))


def _figure(title: str, data: Sequence[Json | None], **layout: Any) -> Json:
    return {"title": title, "data": [trace for trace in data if trace], "layout": layout}


def _line(x: Iterable[Any], y: Iterable[Any], *, name: str, colour: str, dash: str = "solid", **more: Any) -> Json:
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "name": _label(name), "line": line} | more


def _mark_shapes(marks: dict[str, list[int]]) -> list[Json]:
    """Vertical lines: dotted where the weights were steered, solid where a collapse was seen."""
    lines = [(step, {"color": MUTED, "width": 1.5, "dash": "dot"}) for step in marks["steered"]]
    lines += [(step, {"color": WARNING, "width": 1.5}) for step in marks["collapsed"]]
    return [{"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}
            for x, line in lines]  # fmt: skip


def _objective_figures(
    names: list[str], drawn: list[Json], steps: list[Json], marks: dict[str, list[int]]
) -> list[Json]:
    """One small chart per objective: batch mean, a band of one standard deviation, and evaluations as points."""
    figures = []
    for index, name in enumerate(names):
        x = [step.get("step") for step in drawn]
        mean = [_get(step, "objectives", name, "mean") for step in drawn]
        std = [_get(step, "objectives", name, "std") or 0.0 for step in drawn]
        evaluated = [(s.get("step"), _get(s, "evaluation", "objectives", name)) for s in steps]
        evaluated = [pair for pair in evaluated if pair[1] is not None]
        if not evaluated and not any(value is not None for value in mean):
            continue
        edges = [[None if m is None else m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1)]
        hidden = {"hoverinfo": "skip", "line": {"width": 0}}
        band = [
            _line(x, edges[0], name="", colour="") | hidden,
            _line(x, edges[1], name="", colour="") | hidden | {"fill": "tonexty", "fillcolor": _colour(index) + "2e"},
        ]
        points = {
            "type": "scatter", "mode": "markers", "name": "evaluation",
            "x": [at for at, _ in evaluated], "y": [value for _, value in evaluated],
            "marker": {"color": INK, "size": 7, "symbol": "diamond-open", "line": {"width": 1.5}},
        }  # fmt: skip
        line = _line(x, mean, name="batch mean", colour=_colour(index))
        data = [*band, line, points if evaluated else None]
        figures.append(_figure(name, data, shapes=_mark_shapes(marks), hovermode="x unified"))
    return figures


def _weight_figures(names: list[str], steps: list[Json], marks: dict[str, list[int]]) -> list[Json]:
    """Applied weights as a stacked area; over it, dashed, the same stack as the strategy alone would have it."""
    x = [step.get("step") for step in steps]
    applied = {name: [_get(step, "weights", "applied", name) for step in steps] for name in names}
    strategy = {name: [_get(step, "weights", "strategy", name) for step in steps] for name in names}
    if len(names) < 2 or not any(value is not None for values in applied.values() for value in values):
        return []
    data = [
        _line(x, applied[name], name=name, colour=_colour(i), stackgroup="applied", fillcolor=_colour(i) + "66")
        | {"line": {"width": 0.5, "color": _colour(i)}}
        for i, name in enumerate(names)
    ]
    below = [0.0] * len(x)
    for name in names[:-1]:  # the top of the last one is always 1
        below = [total + (value or 0.0) for total, value in zip(below, strategy[name], strict=True)]
        told = [f"{_label(name)}, strategy alone: {_number(value)}" for value in strategy[name]]
        data.append(_line(x, below, name=name, colour=INK, dash="dash", text=told, hoverinfo="text", showlegend=False))
    layout = {"yaxis": {"range": [0, 1], "tickformat": ".0%"}, "showlegend": True, "hovermode": "x unified"}
    return [_figure("Weights", data, shapes=_mark_shapes(marks), height=320, **layout)]


def _gold_figures(names: list[str], steps: list[Json], spec: Json, marks: dict[str, list[int]]) -> list[Json]:
    """Gold and the objectives over the same rollouts, each on the scale of its range; and how they agree."""
    read = [step for step in steps if isinstance(step.get("gold"), dict)]
    if not read:
        return []
    x = [step.get("step") for step in read]
    objectives = spec.get("objectives") or []
    ranges = {"ranges": {str(o.get("name")): o.get("range") for o in objectives} | {"": _get(spec, "gold", "range")}}
    means = [_line(x, [_scaled(_get(step, "gold", "mean"), "", ranges) for step in read], name="gold", colour=INK)]
    agree = []
    for i, name in enumerate(names):
        y = [_scaled(_get(step, "gold", "objectives", name), name, ranges) for step in read]
        means.append(_line(x, y, name=name, colour=_colour(i), dash="dot"))
        agree.append(_line(x, [_get(step, "gold", "correlation", name) for step in read], name=name, colour=_colour(i)))
    shapes = _mark_shapes({"steered": marks["steered"], "collapsed": marks["overoptimised"]})
    shared: Json = {"shapes": shapes, "showlegend": True, "hovermode": "x unified", "height": 320}
    return [
        _figure("Gold reward and objectives, in units of their ranges", means, **shared),
        _figure("Rank correlation with the gold reward", agree, yaxis={"range": [-1.05, 1.05]}, **shared),
    ]


def _health_figures(steps: list[Json], marks: dict[str, list[int]]) -> list[Json]:
    """What tells whether training is well: length, truncation, entropy, drift."""
    titles = {
        "mean_tokens": "Tokens per completion", "truncated_share": "Cut off at the limit",
        "entropy": "Entropy", "kl": "KL to the initial policy",
        "grad_norm": "Gradient norm", "clip_share": "Clipped tokens",
    }  # fmt: skip
    figures = []
    for key, title in titles.items():
        values = [step.get(key) for step in steps]
        if any(value is not None for value in values):
            line = _line([step.get("step") for step in steps], values, name=title, colour=COLOURS[0])
            axis = {"tickformat": ".1%", "rangemode": "tozero"} if key.endswith("_share") else {}
            figures.append(_figure(title, [line], shapes=_mark_shapes(marks), yaxis=axis, hovermode="x unified"))
    return figures


def _hypervolume_figures(front: Json, marks: dict[str, list[int]]) -> list[Json]:
    growth = [pair for pair in front.get("hypervolume_by_step") or [] if pair[1] is not None]
    if not growth:
        return []
    x = [step for step, _ in growth]
    data = [_line(x, [value for _, value in growth], name="front", colour=COLOURS[0], mode="lines+markers")]
    base = front.get("hypervolume_base")
    if base is not None:
        data.append(_line([min(x), max(x)], [base, base], name="base", colour=MUTED, dash="dash"))
    return [_figure("Hypervolume", data, shapes=_mark_shapes(marks), showlegend=True, hovermode="x unified")]


def _kind(point: Json) -> str:
    """The first that holds: a base that is on the front is still shown as the base."""
    if point.get("step") == 0:
        return "base"
    if point.get("collapsed"):
        return "collapsed"
    return "front" if point.get("on_front") else "dominated"


KINDS: dict[str, Json] = {
    "dominated": {"name": "dominated", "opacity": 0.45, "marker": {"color": MUTED, "size": 7}},
    "collapsed": {"name": "collapsed", "marker": {"color": WARNING, "size": 9, "symbol": "x-thin-open"}},
    "front": {"name": "front", "marker": {"color": COLOURS[0], "size": 10}},
    "base": {"name": "base", "marker": {"color": INK, "size": 12, "symbol": "star"}},
}


CORNER: Json = {"name": "corner of the volume", "marker": {"color": MUTED, "size": 9, "symbol": "square-open"}}


def _hover(names: list[str], point: Json) -> str:
    values = (f"{_label(name)} {_number(_get(point, 'objectives', name))}" for name in names)
    kept = ["checkpoint kept"] if point.get("checkpoint") else []
    return "<br>".join([f"step {_label(point.get('step'))}, {_kind(point)}", *values, *kept])


def _pair_figures(names: list[str], points: list[Json], front: Json) -> list[Json]:
    """A scatter of every pair of objectives on the validation split, with the corner of the volume."""
    figures, corner = [], front.get("reference") or {}
    for across, up in itertools.combinations(names, 2):
        traces = []
        for kind, look in KINDS.items():
            chosen = [point for point in points if _kind(point) == kind]
            x, y = ([_get(point, "objectives", name) for point in chosen] for name in (across, up))
            text = [_hover(names, point) for point in chosen]
            trace = {"type": "scatter", "mode": "markers", "x": x, "y": y, "text": text, "hoverinfo": "text"} | look
            traces.append(trace if chosen else None)
        if any(traces) and None not in (place := [corner.get(name) for name in (across, up)]):
            values = [f"{_label(name)} {_number(value)}" for name, value in zip((across, up), place, strict=True)]
            hover = "<br>".join(["corner of the volume", *values])
            at: Json = {"x": place[:1], "y": place[1:], "text": [hover], "hoverinfo": "text"}
            traces.append({"type": "scatter", "mode": "markers", **at, **CORNER})
        titles = [{"title": {"text": _label(name + better_words(front, name))}} for name in (across, up)]
        axes = dict(zip(("xaxis", "yaxis"), titles, strict=True))
        if any(traces):
            figures.append(_figure(f"{across} and {up}", traces, height=290, **axes))
    return figures


def _parallel_figures(names: list[str], points: list[Json], front: Json) -> list[Json]:
    """For three objectives and more, a line per point over all of them, each on the scale of its range."""
    if len(names) < 3 or not points:
        return []
    traces = []
    ordered = [point for kind in KINDS for point in points if _kind(point) == kind]
    for index, point in enumerate(ordered):
        kind = _kind(point)
        look = KINDS[kind]
        y = [_scaled(_get(point, "objectives", name), name, front) for name in names]
        trace = _line(
            [_label(name) for name in names], y, name=look["name"], colour=look["marker"]["color"],
            dash="dash" if kind == "base" else "solid", mode="lines+markers", opacity=look.get("opacity", 0.9),
            marker=look["marker"] | {"size": 6}, text=[_hover(names, point)] * len(names), hoverinfo="text",
            legendgroup=kind, showlegend=index == 0 or _kind(ordered[index - 1]) != kind,
        )  # fmt: skip
        traces.append(trace)
    layout = {"yaxis": {"range": [-0.03, 1.03], "title": {"text": "share of the range"}}, "showlegend": True}
    return [_figure("All objectives at once", traces, height=340, **layout)]


def _set_figures(names: list[str], sets: list[str], points: list[Json]) -> list[Json]:
    """For each objective, every evaluation on the further held-out sets, beside the validation split."""
    figures = []
    x = [point.get("step") for point in points]
    for name in names if sets else ():
        values = {"validation": [_get(point, "objectives", name) for point in points]}
        values |= {held: [_get(point, "sets", held, "objectives", name) for point in points] for held in sets}
        data = [_line(x, y, name=held, colour=_colour(i)) for i, (held, y) in enumerate(values.items())]
        figures.append(_figure(f"{name}, by set", data, showlegend=True, hovermode="x unified"))
    return figures


def _style_figures(points: list[Json]) -> list[Json]:
    """Shares of styles of completions by step, where the points tell them."""
    told = [point for point in points if isinstance(point.get("styles"), dict)]
    styles = list(dict.fromkeys(style for point in told for style in point["styles"] if style != "overall"))
    data = []
    for index, style in enumerate(styles):
        found = [point["styles"].get(style) for point in told]
        shares = [entry.get("share") if isinstance(entry, dict) else entry for entry in found]
        right = [f", {_number(a)} right" if (a := _get(entry, "accuracy")) is not None else "" for entry in found]
        text = [f"{_label(style)} {_number(s)}{r}" for s, r in zip(shares, right, strict=True)]
        x = [_label(point.get("step")) for point in told]
        bar = {"type": "bar", "x": x, "y": shares, "name": _label(style), "text": text, "textposition": "none"}
        data.append(bar | {"hoverinfo": "text", "marker": {"color": _colour(index)}})
    layout = {"barmode": "stack", "showlegend": True, "xaxis": {"type": "category"}, "yaxis": {"tickformat": ".0%"}}
    return [_figure("Styles of completions by step", data, **layout)] if data else []


# Words --------------------------------------------------------------------------------------------------------------


def _number(value: Any, digits: int = 3) -> str:
    """Three significant digits, thousands separated, a dash for what is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"


def _moment(value: Any) -> str:
    """Unix seconds as a date and time in UTC; anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    try:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(value)


def _duration(job: Json, steps: list[Json]) -> str | None:
    """How long the job ran; until its last step where it has not finished."""
    begin, end = job.get("started_at"), job.get("finished_at")
    if isinstance(begin, int | float) and isinstance(end, int | float):
        seconds = end - begin
    else:
        seconds = sum(_get(step, "timings_s", "step") or 0.0 for step in steps)
    if seconds <= 0:
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _compact_json(value: Any) -> str:
    return "" if value in (None, {}) else json.dumps(value, ensure_ascii=False)
