"""How a step's rewards and engines were, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.rollouts.engine_health import counted

_OF_REWARDS = (
    ("failures", "failed calls"),
    ("retries", "calls tried again"),
    ("restarts", "processes started again"),
    ("dropped", "completions not scored"),
)


def rewards_told(health: Mapping[str, Mapping[str, Any]]) -> str:
    """Of a step's `reward_health`; empty where it has none."""
    if not health:
        return ""
    parts = []
    for reward, figures in health.items():
        told = [f"{figures[name]:g} {words}" for name, words in _OF_REWARDS if figures.get(name)]
        parts += [f"{reward} had {', '.join(told)}"] if told else []
    return f"Rewards at the last step: {'; '.join(parts) or 'nothing went wrong'}."


def engines_told(record: Mapping[str, Any]) -> str:
    """Of a step's engines; empty where it has none."""
    health: Mapping[str, Mapping[str, Any]] = record.get("engine_health") or {}
    engines = counted(record)
    if not engines:
        return ""
    away = {number: figures for number, figures in health.items() if figures.get("health") != "healthy"}
    parts = [f"{engines.get('healthy', 0)} of {sum(engines.values())} healthy"]
    for number, figures in away.items():
        reason = f": {figures['reason']}" if figures.get("reason") else ""
        parts.append(f"engine {number} is {figures.get('health')}{reason}")
    for number, figures in health.items():
        if figures.get("health") == "healthy" and (failures := figures.get("failures")):
            reason = f": {figures['reason']}" if figures.get("reason") else ""
            parts.append(f"engine {number} had {failures} failed call{'s' if failures > 1 else ''}{reason}")
    if restarts := sum(figures.get("restarts") or 0 for figures in health.values()):
        parts.append(f"{restarts} started again so far")
    return f"Engines at the last step: {'; '.join(parts)}."
