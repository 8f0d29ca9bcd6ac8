"""A step's record, and the front's first and last points, as the figures and tables that a tracker shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.text import is_number
from services.trackers.base import Table

Document = Mapping[str, Any]

_GROUPS = ("staleness", "timings_s", "reward_health", "engines", "gold")
_ROWS = 32  # of a table of rollouts
_CHARACTERS = 2000  # of a text in it


def of_step(record: Document) -> dict[str, float]:
    """By name, `group/figure`; what is not there, or no number, is left out."""
    return {name: float(value) for name, value in _of_step(record) if is_number(value)}


def of_point(point: Document) -> dict[str, float]:
    """What no step's record has of an evaluation: the initial policy's figures, and those on the test split."""
    found = {**dict(_held_out(point) if point["step"] == 0 else ()), **_tested(point)}
    return {name: float(value) for name, value in found.items() if is_number(value)}


def front_table(front: Document) -> Table:
    """Every point that was evaluated, with what it reached on the test split."""
    names = list(front["objectives"])
    tested = sorted({name for point in front["points"] for name in _tested(point)})
    return Table(
        columns=["step", *names, "mean_tokens", *tested, "on_front", "checkpoint"],
        rows=[
            [
                point["step"],
                *(point["objectives"].get(name) for name in names),
                point.get("mean_tokens"),
                *(_tested(point).get(name) for name in tested),
                point["on_front"],
                point.get("checkpoint"),
            ]
            for point in front["points"]
        ],
    )


def rollouts_table(rollouts: Iterable[Document], names: Iterable[str]) -> Table:
    """The first of them, long texts cut."""
    objectives = list(names)
    rows = [
        [
            rollout["number"],
            _cut(_text(rollout["prompt"])),
            _cut(rollout["completion"]),
            *(rollout["rewards"].get(name) for name in objectives),
            rollout["advantage"],
            rollout["tokens"],
        ]
        for rollout, _ in zip(rollouts, range(_ROWS), strict=False)
    ]
    return Table(columns=["number", "prompt", "completion", *objectives, "advantage", "tokens"], rows=rows)


def _of_step(record: Document) -> Iterator[tuple[str, Any]]:
    for name, figures in (record.get("objectives") or {}).items():
        yield f"train/{name}", figures.get("mean")
        yield f"train_std/{name}", figures.get("std")  # also of prompts that are hard or easy: no sign of a gradient
        yield f"train_group_std/{name}", figures.get("group_std")
        yield f"train_zero_share/{name}", figures.get("zero_share")
    weights = record.get("weights") or {}
    for group, key in (("weights", "applied"), ("weights_of_strategy", "strategy")):
        yield from ((f"{group}/{name}", value) for name, value in (weights.get(key) or {}).items())
    yield from _nested("weights_because", (record.get("weights_because") or {}).get("figures") or {})
    evaluation = record.get("evaluation") or {}
    yield from _held_out(evaluation)
    yield "front/hypervolume", evaluation.get("hypervolume")
    for group in _GROUPS:
        yield from _nested(group, record.get(group) or {})
    yield from ((f"training/{name}", value) for name, value in record.items() if name != "step")


def _held_out(figures: Document) -> Iterator[tuple[str, Any]]:
    yield from ((f"held_out/{name}", mean) for name, mean in (figures.get("objectives") or {}).items())
    yield "held_out_rollouts/mean_tokens", figures.get("mean_tokens")
    yield "held_out_rollouts/truncated_share", figures.get("truncated_share")
    for further, found in (figures.get("sets") or {}).items():
        yield from ((f"set_{further}/{name}", mean) for name, mean in (found.get("objectives") or {}).items())


def _tested(point: Document) -> dict[str, Any]:
    return {
        f"test_{kind}/{name}": mean
        for kind, figures in (point.get("test") or {}).items()
        for name, mean in ((figures or {}).get("objectives") or {}).items()
    }


def _nested(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, item in value.items():
        yield from _nested(f"{path}/{name}", item)


def _text(prompt: Any) -> str:
    """Of chat messages, all of them."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
