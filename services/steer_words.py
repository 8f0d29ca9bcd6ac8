"""`accuracy=0.7` and `kl,max=0.5` on a command line: what they mean for every weight and guardrail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.spec_errors import nearest


def weights(words: Sequence[str], now: Mapping[str, float]) -> dict[str, float]:
    """A weight for each objective of `now`. ValueError is one line that says what is wrong.

    Where some are not named, the named ones are shares of 1 and the others share the rest in their present proportion.
    """
    given: dict[str, float] = {}
    for word in words:
        name, value = _parse(word, list(now))
        if name in given:
            raise ValueError(f"'{name}' is given twice")
        given[name] = value
    others = {name: weight for name, weight in now.items() if name not in given}
    if not others:
        if not any(given.values()):
            raise ValueError("at least one weight must be above 0")
        return given
    rest = 1 - math.fsum(given.values())
    if rest < -1e-9:
        raise ValueError(
            f"the weights given sum to {1 - rest:g}: nothing is left for {', '.join(others)}; stay below 1, or give all"
        )
    total = math.fsum(others.values())
    shares = {name: weight / total if total > 0 else 1 / len(others) for name, weight in others.items()}
    filled = {**given, **{name: max(0.0, rest) * share for name, share in shares.items()}}
    return {name: filled[name] for name in now}


def guardrails(words: Sequence[str], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All that hold then: those of a metric that a word names go, and come back as it says.

    ValueError is one line that says what is wrong; limits and metrics are the server's to judge.
    """
    given = [_rule(word) for word in words]
    named = {rule["metric"] for rule in given}
    return [*(dict(rule) for rule in now if rule["metric"] not in named), *(rule for rule in given if len(rule) > 1)]


def _rule(word: str) -> dict[str, Any]:
    metric, *options = (part.strip() for part in word.split(","))
    rule: dict[str, Any] = {"metric": metric}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in ("min", "max", "for_steps", "action"):
            raise ValueError(
                f"--guardrail {word}: expected METRIC,max=NUMBER with min, max, for_steps or action, got '{option}'"
            )
        try:
            rule[key] = text if key == "action" else int(text) if key == "for_steps" else float(text)
        except ValueError:
            raise ValueError(f"--guardrail {metric},{key}: expected a number, got '{text}'") from None
    return rule


def _parse(word: str, objectives: list[str]) -> tuple[str, float]:
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"'{word}': expected NAME=VALUE, such as {objectives[0]}=0.5")
    if name not in objectives:
        hint = nearest(name, objectives)
        raise ValueError(f"no objective '{name}'{hint or '; objectives are ' + ', '.join(objectives)}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a number of 0 or more, got '{text}'")
    return name, value
