"""What each operation answers with where it succeeds: the OpenAPI document's schemas, which are the client's types."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from services.client import types
from services.client.types import Page

Schema = dict[str, Any]
_REF = "#/components/schemas/{model}"


class FineTuningJob(TypedDict):
    """A job in the shape of the fine-tuning API; `organization_id` is its owner."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    model: str
    fine_tuned_model: str | None
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    organization_id: str
    result_files: list[str]
    seed: int
    trained_tokens: int | None
    estimated_finish: int | None
    integrations: list[Any]
    metadata: dict[str, str]


class FineTuningEvent(TypedDict):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class FineTuningCheckpoint(TypedDict):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float | None]
    step_number: int


_JOB, _ALIAS = "/v1/jobs/{job_id}", "/v1/fine_tuning/jobs/{job_id}"
ANSWERS: dict[str, Any] = {
    "POST /v1/jobs": types.Job,
    "GET /v1/jobs": Page[types.Job],
    "GET /v1/jobs/compare": types.Comparison,
    f"GET {_JOB}": types.JobDetail,
    f"DELETE {_JOB}": types.Deleted,
    f"POST {_JOB}/cancel": types.Job,
    f"POST {_JOB}/pause": types.Job,
    f"POST {_JOB}/resume": types.Job,
    f"POST {_JOB}/fork": types.Forks,
    f"GET {_JOB}/events": types.EventPage[types.Event],
    f"GET {_JOB}/metrics": Page[types.Step],
    f"GET {_JOB}/rollouts": types.RolloutPage[types.Rollout],
    f"GET {_JOB}/front": types.Front,
    f"GET {_JOB}/steering": types.Steering,
    f"PUT {_JOB}/steering": types.Steered,
    f"POST {_JOB}/steering/preview": types.Preview,
    f"GET {_JOB}/checkpoints": Page[types.Checkpoint],
    f"POST {_JOB}/checkpoints/{{step}}/export": types.Export,
    "GET /v1/models": types.Models,
    "GET /v1/rewards": Page[types.RewardInfo],
    "GET /v1/rewards/{name}": types.RewardInfo,
    "POST /v1/rewards/validate": types.RewardValidation,
    "POST /v1/rewards/run": types.RewardRun,
    "GET /v1/judges": Page[types.JudgeInfo],
    "GET /v1/rules": Page[types.Rule],
    "GET /v1/rules/{name}": Page[types.Rule],
    "POST /v1/datasets": types.Dataset,
    "GET /v1/datasets": Page[types.Dataset],
    "GET /v1/datasets/{dataset_id}": types.Dataset,
    "GET /v1/datasets/{dataset_id}/rows": Page[types.DatasetRow],
    "DELETE /v1/datasets/{dataset_id}": types.Deleted,
    "POST /v1/webhooks": types.NewWebhook,
    "GET /v1/webhooks": Page[types.Webhook],
    "POST /v1/webhooks/{webhook_id}/secret": types.NewWebhook,
    "POST /v1/webhooks/{webhook_id}/test": types.WebhookTest,
    "POST /v1/keys": types.NewApiKey,
    "GET /v1/keys": Page[types.ApiKey],
    "DELETE /v1/keys/{key_id}": types.ApiKey,
    "GET /v1/key": types.OwnKey,
    "GET /v1/quotas/{owner}": types.Quota,
    "PUT /v1/quotas/{owner}": types.Quota,
    "GET /livez": types.Health,
    "GET /readyz": types.Health,
    "GET /v1/fine_tuning/jobs": Page[FineTuningJob],
    f"GET {_ALIAS}": FineTuningJob,
    f"POST {_ALIAS}/cancel": FineTuningJob,
    f"POST {_ALIAS}/pause": FineTuningJob,
    f"POST {_ALIAS}/resume": FineTuningJob,
    f"GET {_ALIAS}/events": Page[FineTuningEvent],
    f"GET {_ALIAS}/checkpoints": Page[FineTuningCheckpoint],
}
_OTHER = {("POST /v1/jobs", "200"): types.Plan}  # of a status that answers with something else
_TEXT: Schema = {"schema": {"type": "string"}}
_MEDIA: dict[str, dict[str, Schema]] = {  # instead of JSON, or beside it
    f"GET {_JOB}/events": {"text/event-stream": _TEXT},
    f"GET {_JOB}/report": {"text/html": _TEXT},
    f"GET {_JOB}/checkpoints/{{step}}/download": {
        "application/x-tar": {"schema": {"type": "string", "format": "binary"}}
    },
    "GET /metrics": {"text/plain": _TEXT},
}
_HEADERS: dict[str, tuple[str, ...]] = {
    "POST /v1/jobs": ("Location", "Idempotent-Replayed"),
    f"POST {_JOB}/fork": ("Idempotent-Replayed",),
    f"GET {_JOB}": ("ETag",),
    f"GET {_JOB}/events": ("Event-Cursor", "Event-Oldest"),
    f"GET {_JOB}/steering": ("ETag",),
    f"PUT {_JOB}/steering": ("ETag",),
    "POST /v1/datasets": ("Location",),
}


def describe_answers(paths: dict[str, Any], schemas: dict[str, Schema]) -> None:
    """Into the operations, and into `schemas` what theirs refer to."""
    wanted = {**{(operation, ""): kind for operation, kind in ANSWERS.items()}, **_OTHER}
    found = _schemas(wanted, schemas)
    for path, methods in paths.items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            for status, response in operation["responses"].items():
                if not status.startswith("2") or status == "204":
                    continue
                schema = found.get((name, status)) or found.get((name, ""))
                json_content = {} if schema is None else {"application/json": {"schema": schema}}
                response["content"] = {**json_content, **_MEDIA.get(name, {})}
                headers = dict.fromkeys(_HEADERS.get(name, ()), _TEXT)
                response.update({"headers": headers} if headers else {})


def webhooks(schemas: dict[str, Schema]) -> dict[str, Any]:
    """What is sent to those who ask for events, for a document of OpenAPI 3.1."""
    schemas["WebhookEvent"] = TypeAdapter(types.WebhookEvent).json_schema()
    content = {"application/json": {"schema": {"$ref": _REF.format(model="WebhookEvent")}}}
    names = {
        "webhook-id": "the same for every try",
        "webhook-signature": "t=...,v1=... (POST /v1/webhooks says of what)",
    }
    told = [
        {"name": name, "in": "header", "required": True, "description": description, **_TEXT}
        for name, description in names.items()
    ]
    answer = {"2XX": {"description": "taken; after anything else it is sent again, for a day"}}
    return {"event": {"post": {"parameters": told, "requestBody": {"content": content}, "responses": answer}}}


def _schemas(wanted: dict[tuple[str, str], Any], schemas: dict[str, Schema]) -> dict[tuple[str, str], Schema]:
    """By operation and status. Definitions go beside those that are there, under another name where one is taken."""
    inputs: list[Any] = [(key, "serialization", TypeAdapter(kind)) for key, kind in wanted.items()]
    found, document = TypeAdapter.json_schemas(inputs, ref_template=_REF)
    made = {"answers": {key: schema for (key, _), schema in found.items()}, "definitions": document["$defs"]}
    for name in made["definitions"].keys() & schemas.keys():
        made = _with_name(made, name, f"{name}Answer")
    schemas.update(made["definitions"])
    answers: dict[tuple[str, str], Schema] = made["answers"]
    return answers


def _with_name(value: Any, old: str, new: str) -> Any:
    """Any part of a document, with another name for a definition."""
    if isinstance(value, list):
        return [_with_name(each, old, new) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get("$ref") == _REF.format(model=old):
        return {"$ref": _REF.format(model=new)}
    return {new if key == old else key: _with_name(each, old, new) for key, each in value.items()}
