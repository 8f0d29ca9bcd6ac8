"""What an Idempotency-Key of a fork stands for: the plan that was made for it, and the answer, for 24 h."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from policies.disk import flush

Json = dict[str, Any]
PLAN_TTL_S = 24 * 3600


class PlanConflict(ValueError):
    """The same Idempotency-Key came with another request."""


def plan_path(state_dir: Path, owner: str, parent: str, key: str) -> Path:
    """Where the plan of one Idempotency-Key is kept."""
    name = hashlib.sha256(json.dumps([owner, parent, key]).encode()).hexdigest()
    return state_dir / "forks" / f"{name}.json"


def kept_plan(path: Path, request: Any) -> Json | None:
    """The plan that was made for this request, for 24 h. Raises PlanConflict where it was for another."""
    try:
        if time.time() - path.stat().st_mtime > PLAN_TTL_S:
            path.unlink()
            return None
        plan: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if plan["request"] != _digest(request):
        raise PlanConflict("this Idempotency-Key was used with another body")
    return plan


def keep_plan(path: Path, request: Any, plan: Json) -> Json:
    """The plan that all who ask with this key carry out: the first that is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > PLAN_TTL_S:
                other.unlink()
    _keep_first(path, {**plan, "request": _digest(request)})
    return kept_plan(path, request) or plan


def kept_answer(path: Path, plan: Json) -> Json | None:
    """What was answered when all of the plan had been carried out. `path` is the plan's."""
    try:
        answer: Json = json.loads(_answer_path(path, plan).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return answer


def keep_answer(path: Path, plan: Json, answer: Json) -> Json:
    """The answer that all who ask with this key get: the first that is kept."""
    _keep_first(_answer_path(path, plan), answer)
    return kept_answer(path, plan) or answer


def _answer_path(path: Path, plan: Json) -> Path:
    """Of this plan alone: one that follows it under the same key makes other jobs."""
    return path.with_name(f"{path.stem}-{_digest([job['id'] for job in plan['jobs']])[:32]}.json")


def _keep_first(path: Path, document: Json) -> None:
    """On the disk, unless another is there."""
    hidden = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    hidden.write_text(json.dumps(document), encoding="utf-8")
    flush(hidden)
    with contextlib.suppress(FileExistsError):
        os.link(hidden, path)
    hidden.unlink()


def _digest(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
