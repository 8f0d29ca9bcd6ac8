"""Rewards over HTTP: which are there, are these options right, what does it give for these pairs? Nothing is stored."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from orchestrator import children
from orchestrator.checks.access import Access
from orchestrator.checks.judge_calls import calls_of_a_row
from orchestrator.spec_errors import nearest
from rewards import registry
from rewards.base import answer_of
from rewards.judges.profiles import VARIABLE as JUDGES_VARIABLE
from rewards.verifiers.json_schema import schemas_within
from services import audit
from services.auth import Principal
from services.body import json_body, parsed
from services.deps import Caller, FileAccess, body_schema, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute
from services.slots import place

router = APIRouter(prefix="/v1/rewards", tags=["rewards"], route_class=StrictRoute)

_TIMEOUT_S = 30.0  # for all of a request's rewards, one after the other
_MOST_QUESTIONS = 64  # to judges, in one request: they cost money, and no job's figures have them
_BYTES_PER_TOKEN = 4  # of ordinary text, where the number of tokens is not given


class RewardChoice(BaseModel):
    """A reward as a spec names it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=64)
    options: dict[str, Any] = Field(default_factory=dict)


class RewardList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    details: bool = Query(False, description="summary, range and options of plug-ins too, which are imported for that")


class ChatMessage(BaseModel):
    """A turn of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str = Field(min_length=1, max_length=64)
    content: str


class Sample(BaseModel):
    """What is scored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    completion: str
    answer: str | None = Field(None, description="the ground truth, where a reward compares with one")
    completion_tokens: int | None = Field(None, ge=0, le=10_000_000, description="estimated from the text if absent")
    truncated: bool = Field(False, description="whether it was cut at max_tokens")
    messages: list[ChatMessage] | None = Field(None, max_length=1000, description="the prompt as a chat")
    domain: str | None = Field(None, max_length=64, description="what kind of prompt it is")
    details: dict[str, Any] = Field(default_factory=dict, description="further columns that a reward may read")


class RewardRun(BaseModel):
    """Rewards and samples."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rewards: list[RewardChoice] = Field(min_length=1, max_length=32)
    samples: list[Sample] = Field(min_length=1, max_length=64)
    max_tokens: int = Field(1024, ge=1, le=10_000_000, description="longest completion allowed, as rollout.max_tokens")
    thoughts_end: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="rewards see what follows its first occurrence in a completion, as under rollout.reasoning.end",
    )


def _run_schema() -> dict[str, Any]:
    """With its parts written out: the document has no place for definitions inside a body."""
    schema = RewardRun.model_json_schema()
    parts = schema.pop("$defs")
    messages = parts["Sample"]["properties"]["messages"]["anyOf"]
    messages[0]["items"] = parts["ChatMessage"]
    for field, part in (("rewards", "RewardChoice"), ("samples", "Sample")):
        schema["properties"][field]["items"] = parts[part]
    return schema


@router.get("")
def list_rewards(query: Annotated[RewardList, Query()]) -> Response:
    """Every reward that a spec may name. Of a plug-in that was not asked for yet, its name and module alone."""
    try:
        if query.details:
            rewards = [dataclasses.asdict(reward) for reward in registry.describe()]
        else:
            rewards = [_listed(reward) for reward in registry.listed()]
    except RuntimeError as error:  # a plug-in that does not load; its name is in the message
        raise ApiProblem(500, "plugin_broken", str(error)) from error
    return StrictJSONResponse(page(rewards, has_more=False))


@router.get("/{name}")
def get_reward(name: str) -> Response:
    """One reward with the JSON schema of its options; a plug-in is imported for it."""
    try:
        return StrictJSONResponse({"object": "reward", **dataclasses.asdict(registry.describe_one(name))})
    except ValueError:
        raise not_found("no such reward") from None
    except RuntimeError as error:
        raise ApiProblem(500, "plugin_broken", str(error)) from error


def _listed(reward: registry.Listed) -> dict[str, Any]:
    unknown = {"name": reward.name, "summary": None, "range": None, "options": None, "plugin": reward.plugin}
    return unknown if reward.info is None else dataclasses.asdict(reward.info)


@router.post("/validate", openapi_extra=body_schema(RewardChoice.model_json_schema()))
def validate_reward(
    document: Annotated[Any, Depends(json_body)],
    access: FileAccess,
    _place: Annotated[None, place("checks of rewards", at_once=8, of_owner=4)],
) -> Response:
    """The options with every default written out; 422 names what is wrong with them."""
    choice = parsed(RewardChoice, document, "invalid_reward")
    return StrictJSONResponse({"object": "reward.validation", "valid": True, **_resolved(choice, "", access)})


@router.post("/run", openapi_extra=body_schema(_run_schema()))
def run_rewards(
    document: Annotated[Any, Depends(json_body)],
    access: FileAccess,
    caller: Caller,
    _place: Annotated[None, place("dry runs of rewards", at_once=8, of_owner=2)],
) -> Response:
    """Scores the samples under each reward: `scores` are in the samples' order. 503 where that takes above 30 s.

    A score is null where the reward does not apply to the sample. `heads` has every head of a reward with several.
    Judges are asked 64 questions at most; `cost` is what they cost at their profiles' prices.
    """
    wanted = parsed(RewardRun, document, "invalid_reward")
    rewards = [_resolved(choice, f"rewards.{i}", access) for i, choice in enumerate(wanted.rewards)]
    _check_questions(wanted)
    tokens = [_tokens(sample) for sample in wanted.samples]
    question = {
        "rewards": [choice.model_dump() for choice in wanted.rewards],
        "max_tokens": wanted.max_tokens,
        "batch": {
            "prompts": [sample.prompt for sample in wanted.samples],
            "completions": [answer_of(sample.completion, wanted.thoughts_end) for sample in wanted.samples],
            "answers": [sample.answer for sample in wanted.samples],
            "completion_tokens": tokens,
            "truncated": [sample.truncated for sample in wanted.samples],
            "messages": [_chat(sample) for sample in wanted.samples],
            "domains": [sample.domain for sample in wanted.samples],
            "details": [sample.details for sample in wanted.samples],
        },
    }
    scores, heads, cost = _scores(question, caller)
    return StrictJSONResponse(
        {
            "object": "reward.run",
            "rewards": [
                {**reward, "scores": row, **({"heads": columns} if columns else {})}
                for reward, row, columns in zip(rewards, scores, heads, strict=True)
            ],
            "samples": [
                {"completion_tokens": count, "estimated": sample.completion_tokens is None}
                for sample, count in zip(wanted.samples, tokens, strict=True)
            ],
            "cost": cost,
        }
    )


def _check_questions(wanted: RewardRun) -> None:
    options = [registry.parse_options(choice.name, choice.options) for choice in wanted.rewards]
    questions = len(wanted.samples) * sum(map(calls_of_a_row, options))
    if questions > _MOST_QUESTIONS:
        message = f"judges would be asked {questions} questions, at most {_MOST_QUESTIONS} are; give fewer"
        raise _invalid("samples", message)


def _chat(sample: Sample) -> list[dict[str, str]]:
    if sample.messages:
        return [message.model_dump() for message in sample.messages]
    return [{"role": "user", "content": sample.prompt}]


Scores = list[list[float | None]]


def _scores(question: dict[str, Any], caller: Principal) -> tuple[Scores, list[dict[str, list[float | None]]], float]:
    """With what judges cost, which a line of the log keeps."""
    try:
        answer = children.ask(
            "rewards.dry_run", question, timeout_s=_TIMEOUT_S, owner=caller.owner, sees=(JUDGES_VARIABLE,)
        )
    except children.ChildTimeout:
        message = f"no scores within {_TIMEOUT_S:g} s; try fewer samples or rewards"
        raise ApiProblem(503, "reward_timeout", message, param="rewards", headers={"retry-after": "30"}) from None
    except children.ChildBusy:
        message = "other samples are being scored; try again shortly"
        raise ApiProblem(503, "busy", message, headers={"retry-after": "5"}) from None
    except children.ChildError:
        raise ApiProblem(
            422, "reward_failed", "a reward ended its process, or took too much memory", param="rewards"
        ) from None
    if answer["cost"]:
        audit.tell(by=caller.key_name, owner=caller.owner, judges_cost=answer["cost"])
    if "error" in answer:
        param = f"rewards.{answer['reward']}"
        raise ApiProblem(422, "reward_failed", f"{param}: {answer['error']}", param=param)
    return answer["scores"], answer["heads"], answer["cost"]


@schemas_within()
def _resolved(choice: RewardChoice, field: str, access: Access) -> dict[str, Any]:
    """A reward with all its options. Raises ApiProblem under `field`."""
    prefix = f"{field}." if field else ""
    try:
        reward = registry.resolve(choice.name)
    except ValueError:
        names = registry.names()
        known = f"no such reward; there are {', '.join(names)}{nearest(choice.name, names)}"
        raise _invalid(f"{prefix}name", known) from None
    except RuntimeError as error:  # a plugin that does not load; its name is in the message
        raise ApiProblem(500, "plugin_broken", str(error)) from error
    try:
        options = registry.parse_options(choice.name, choice.options)
    except registry.OptionsError as error:
        option, message = error.problems[0]
        raise _invalid(f"{prefix}options{option and f'.{option}'}", message) from None
    for option, model in registry.named_models(choice.name, choice.options).items():
        if refusal := access.problem_of_model(str(model)):
            raise _invalid(f"{prefix}options.{option}", refusal)
    for option, problem in registry.problems(choice.name, choice.options):
        raise _invalid(f"{prefix}options.{option}", problem)
    return {"name": choice.name, "range": reward.range, "options": options.model_dump(mode="json")}


def _tokens(sample: Sample) -> int:
    if sample.completion_tokens is not None:
        return sample.completion_tokens
    return math.ceil(len(sample.completion.encode()) / _BYTES_PER_TOKEN)


def _invalid(param: str | None, message: str) -> ApiProblem:
    return ApiProblem(422, "invalid_reward", f"{param or 'body'}: {message}", param=param)
