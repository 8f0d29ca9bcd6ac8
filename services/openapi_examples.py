"""Bodies to begin with, by operation: what the OpenAPI document and /docs show. Tests send each of them."""

from __future__ import annotations

from typing import Any

_JOB = "/v1/jobs/{job_id}"
_ALIGNMENT = {
    "name": "quickstart",
    "steps": 50,
    "policy": {"model": "quickstart", "dtype": "float32"},
    "data": {"type": "quickstart"},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.7},
        {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.3},
    ],
    "rollout": {"max_tokens": 64},
    "weighting": {"name": "gradient"},
}
_STEERS = {
    "your own weights": {"mode": "manual", "weights": {"accuracy": 0.8, "conciseness": 0.2}},
    "half yours, half the strategy's": {"mode": "blend", "blend": 0.5},
    "bounds that hold in every mode": {"bounds": {"accuracy": [0.3, 1.0]}},
    "other guardrails, all of them": {"guardrails": [{"metric": "entropy", "min": 0.1, "action": "pause"}]},
    "gradually, in 20 steps": {"mode": "manual", "weights": {"accuracy": 0.2, "conciseness": 0.8}, "over": 20},
}
_PAIR = {"prompt": "What is 2+2?", "completion": "2+2=4, so \\boxed{4}", "answer": "4"}

EXAMPLES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {"two objectives of the quickstart policy": _ALIGNMENT},
    f"POST {_JOB}/pause": {"stop at the newest checkpoint": {"checkpoint": "latest"}},
    f"POST {_JOB}/fork": {
        "one job with other weights": {"checkpoint": "best", "weights": {"accuracy": 0.8, "conciseness": 0.2}},
        "a job for each of several weights": {
            "checkpoint": "latest",
            "sweep": [{"accuracy": 0.2, "conciseness": 0.8}, {"accuracy": 0.8, "conciseness": 0.2}],
            "changes": {"steps": 20},
        },
        "a job that has ended goes on": {"checkpoint": "latest", "steps": 200},
    },
    f"PUT {_JOB}/steering": _STEERS,
    f"POST {_JOB}/steering/preview": _STEERS,
    f"POST {_JOB}/checkpoints/{{step}}/export": {"to a directory of the server": {"to": "/srv/models/chosen"}},
    "POST /v1/keys": {
        "for a script": {"name": "ci", "scopes": ["read", "submit"], "owner": "acme", "expires_in_s": 7_776_000}
    },
    "PUT /v1/quotas/{owner}": {"of a month": {"gpu_hours": 200}, "no limit": {"gpu_hours": None}},
    "POST /v1/webhooks": {
        "ends of jobs": {"url": "https://example.com/hooks/jobs", "events": ["job.succeeded", "job.failed"]},
        "sentences in a chat": {
            "url": "https://hooks.slack.com/services/T0/B0/X",
            "events": ["job.failed", "guardrail.breached"],
            "format": "slack",
        },
    },
    "POST /v1/datasets": {"two rows of JSONL": '{"prompt": "2+2=", "answer": "4"}\n{"prompt": "3+3=", "answer": "6"}'},
    "POST /v1/rewards/validate": {"options of a reward": {"name": "conciseness", "options": {"free_tokens": 8}}},
    "POST /v1/rewards/run": {
        "two rewards for one completion": {
            "rewards": [{"name": "math"}, {"name": "conciseness"}], "samples": [_PAIR], "max_tokens": 64,
        },
        "a completion with thoughts": {
            "rewards": [{"name": "math"}], "samples": [_PAIR | {"completion": r"4? </think> \boxed{4}"}],
            "thoughts_end": "</think>",
        },
    },
}  # fmt: skip


def show_examples(paths: dict[str, Any]) -> None:
    """Into the operations' bodies."""
    for operation, examples in EXAMPLES.items():
        method, path = operation.split(" ")
        for content in paths[path][method.lower()]["requestBody"]["content"].values():
            content["examples"] = {name: {"value": value} for name, value in examples.items()}
