"""The hand on the weights: read it, change it, and be told the step at which a change takes effect."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from starlette.responses import Response
from typing_extensions import TypedDict

from orchestrator.guardrails import in_force
from orchestrator.preview import preview
from orchestrator.spec import JobSpec
from orchestrator.spec_errors import nearest
from orchestrator.specs.guardrails import GuardrailSpec
from orchestrator.state.records import SteeringHead
from orchestrator.state.states import JobStatus, is_terminal
from orchestrator.state.store import JobRecord, JobStore, Steer, SteeringEntry, SteerOutcome
from orchestrator.steering import MAX_OVER, Steering, SteeringError, cut_short, idle_parts, merge
from orchestrator.stored_spec import read_stored
from services.body import json_body
from services.deps import MAX_PAGE, Configuration, JobId, MaxKeptBytes, Store, alignment_only, body_schema
from services.errors import ApiProblem, StrictJSONResponse
from services.job_requests import rollouts_of
from services.query import StrictRoute
from services.slots import place

router = APIRouter(prefix="/v1/jobs/{job_id}/steering", tags=["steering"], route_class=StrictRoute)

_Share = Annotated[float, Field(ge=0, le=1)]
_Weight = Annotated[float, Field(ge=0, le=1e9)]  # large enough for any scale, and their sum stays finite


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class SteeringChange(TypedDict, total=False):
    """What may be sent; what is left out stays as it is."""

    mode: Annotated[
        Literal["auto", "blend", "manual"], Field(description="who decides: the strategy, a mix, or the preference")
    ]
    blend: Annotated[_Share, Field(description="share of the preference in mode blend")]
    weights: Annotated[
        dict[str, _Weight], Field(description="the preference, one for each objective; scaled to sum to 1")
    ]
    bounds: Annotated[
        dict[str, Annotated[list[_Share], Field(min_length=2, max_length=2)]],
        Field(description="[floor, ceiling] of the applied weight, by objective"),
    ]
    guardrails: Annotated[
        list[dict[str, Any]],
        Field(max_length=64, description="all that hold from then on, each as in the spec; [] for none"),
    ]
    over: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_OVER,
            description="steps in which the applied weights go from where they stand to what the change makes of them, "
            "on a straight line; 1, or absent: at once",
        ),
    ]
    to_version: Annotated[
        int,
        Field(
            ge=1,
            le=2**53,
            description="alone, or with `over`: the steering as it stood under that version, which the log names",
        ),
    ]


_CHANGE = TypeAdapter(SteeringChange)
_RULES = TypeAdapter(list[GuardrailSpec])
_FIELDS = list(SteeringChange.__annotations__)


class Log(BaseModel):
    """Query of the steering: which changes come with it."""

    model_config = ConfigDict(extra="forbid")

    log_before: int | None = Query(None, ge=1, le=2**53, description="only changes before this version")
    log_limit: int = Query(MAX_PAGE, ge=0, le=MAX_PAGE, description="at most so many changes, the newest ones")


@router.get("")
def get_steering(job_id: JobId, query: Annotated[Log, Query()], store: Store) -> Response:
    """The newest steering (its version is the ETag), what the strategy alone last chose, and the newest changes.

    `log` is in order; while `log_has_more`, those before its first version are asked for with `log_before`.
    """
    state = store.steering(job_id, before=query.log_before, limit=query.log_limit)
    if not state.current["weights"]:
        alignment_only(json.loads(store.spec(job_id)), "steering")
    newest = store.steps(job_id, after_step=store.job(job_id).step - 1, limit=1)
    document = {
        "object": "steering",
        "version": state.version,
        **state.current,
        "strategy": newest[-1]["weights"]["strategy"] if newest else None,
        "log": [_entry(entry) for entry in state.log],
        "log_has_more": state.log_has_more,
    }
    return StrictJSONResponse(document, headers={"etag": f'"{state.version}"'})


@router.put("", status_code=202, openapi_extra=body_schema(_CHANGE.json_schema()))
def put_steering(
    request: Request,
    job_id: JobId,
    document: Annotated[Any, Depends(json_body)],
    store: Store,
    max_kept_bytes: MaxKeptBytes,
    if_match: Annotated[str | None, Header(alias="If-Match", description="only if this version is current")] = None,
) -> Response:
    """Answers with the version that it made and the first step that follows it: never the one in flight.

    A job that is paused or queued has none in flight. 409 `too_late` where no step is left that could follow it;
    `job_over` where it has ended or is being cancelled.
    A change that was taken is told of later: by `steering.applied`; in the `replaced` (`from` a version `to` another)
    of a later change's, where that came into force in its place; or by `steering.rejected`, where the job ends first.
    `notes` say of what was sent which part moves no weights, and why.
    With `over`, the first step goes one part of that many from the weights applied last, within the new bounds, and the
    last reaches the target: the preference in mode manual, else what the mode makes of the strategy's choice at each
    step. The strategy reads a new preference at once. Another change begins where the ramp stands, at once without an
    `over` of its own.
    """
    sent = checked_change(document)
    steer, notes = _steer(store, job_id, sent, _version(if_match), request.state.key_name, max_kept_bytes)
    if steer.outcome is SteerOutcome.STALE:
        raise ApiProblem(
            412, "stale_version", f"someone steered meanwhile: version {steer.version} is current", param="If-Match"
        )
    if steer.outcome is SteerOutcome.STATE:
        raise ApiProblem(409, "job_over", f"a job that is {store.job(job_id).status} can't be steered")
    if steer.outcome is SteerOutcome.LATE:
        raise ApiProblem(409, "too_late", _late(store.job(job_id)))
    return StrictJSONResponse(
        {"version": steer.version, "effective_step": steer.effective_step, "notes": notes},
        status_code=202,
        headers={"etag": f'"{steer.version}"'},
    )


@router.post("/preview", openapi_extra=body_schema(_CHANGE.json_schema()))
def preview_steering(
    job_id: JobId,
    document: Annotated[Any, Depends(json_body)],
    store: Store,
    config: Configuration,
    _place: Annotated[None, place("previews", at_once=4, of_owner=2)],
) -> Response:
    """What a change would have made of the latest rollouts that are kept. Nothing is applied.

    The advantages are computed anew on those rollouts alone, before and after. With `over` it is the end of the ramp.
    """
    change = checked_change(document)
    sent = _resolved(store, job_id, change)
    text, head = store.spec_and_steering(job_id)
    alignment_only(json.loads(text), "steering")
    spec = read_stored(text)
    assert isinstance(spec, JobSpec), "of another kind it has no steering"
    wanted = _merged(head.current, sent, json.loads(text))
    step, rows = rollouts_of(store, config, job_id)
    if not rows or step is None:
        if spec.samples.every == 0:
            raise ApiProblem(409, "no_rollouts", "this job keeps no rollouts: its spec's samples.every is 0")
        if is_terminal(store.job(job_id).status):
            raise ApiProblem(409, "no_rollouts", "this job has ended, and no rollouts of it are kept")
        raise ApiProblem(425, "no_rollouts_yet", "no rollouts of this job are kept yet; try again after a step")
    records = store.steps(job_id, after_step=step - 1, limit=1)
    if not records:  # a claim has just taken the job back behind that step
        raise ApiProblem(425, "no_rollouts_yet", "the job was taken back to an earlier step; try again after a step")
    try:
        found = preview(spec, rows, records[0]["weights"]["applied"], wanted)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = "this server has no torch, with which a preview reckons; steering itself needs none"
        raise ApiProblem(501, "no_previews", message) from None
    return StrictJSONResponse({"object": "steering.preview", **found, "over": change.get("over", 1)})


def checked_change(document: Any) -> dict[str, Any]:
    """What was sent, once its shape is right: strict types, known fields. Whether it fits the job is merge's to say."""
    try:
        change = dict(_CHANGE.validate_python(document))
    except ValidationError as error:
        raise _problem(error) from None
    try:
        _RULES.validate_json(json.dumps(change.get("guardrails", [])), strict=True)
    except ValidationError as error:
        raise _problem(error, "guardrails.") from None
    if not change:
        raise ApiProblem(422, "invalid_steering", f"nothing to change: give {', '.join(_FIELDS)}")
    if change.keys() == {"over"}:
        message = "over: says in how many steps a change takes effect; give what changes beside it"
        raise ApiProblem(422, "invalid_steering", message, param="over")
    if "to_version" in change and change.keys() - {"over", "to_version"}:
        message = "to_version: goes back to a steering as a whole; send it alone or with over, and then the rest"
        raise ApiProblem(422, "invalid_steering", message, param="to_version")
    return change


def _resolved(store: JobStore, job_id: str, sent: dict[str, Any]) -> dict[str, Any]:
    """The fields that are meant where an earlier version is named."""
    if "to_version" not in sent:
        return sent
    log = store.steering(job_id, before=sent["to_version"] + 1, limit=1).log
    if not log or log[0].version != sent["to_version"]:
        message = "to_version: there was no such version; the log has them all"
        raise ApiProblem(422, "invalid_steering", message, param="to_version")
    return {**log[0].state, **({"over": sent["over"]} if "over" in sent else {})}


def _steer(
    store: JobStore, job_id: str, sent: dict[str, Any], expected: int | None, by: str, max_kept_bytes: int | None
) -> tuple[Steer, list[str]]:
    """Merges and writes against one version; without an expected one, again for as long as others come first.

    With what of the change moves nothing.
    """
    asked, sent = sent, _resolved(store, job_id, sent)
    while True:
        spec, head = store.spec_and_steering(job_id)
        document = json.loads(spec)
        alignment_only(document, "steering")
        if "to_version" in asked and "guardrails" in head.current and "guardrails" not in sent:
            sent = {**sent, "guardrails": None}  # the spec's held then
        wanted = _merged(head.current, sent, document)
        merged = wanted.model_dump(mode="json")
        over = _over_to_come(store, job_id, head) if sent.keys() == {"guardrails"} else wanted.over
        change = {field: merged.get(field) for field in sent if field != "over"}
        version = head.version if expected is None else expected
        steer = store.steer(
            job_id, change=change, if_match=version, by=by, head=head, over=over, max_kept_bytes=max_kept_bytes
        )
        if steer.outcome is not SteerOutcome.STALE or expected is not None:
            notes = idle_parts(document, head.current, merged, change)
            notes = [] if notes and _over(store, job_id, head)[0] > 1 else notes
            ramp = [] if steer.effective_step is None else cut_short(over, steer.effective_step, document["steps"])
            return steer, notes + ramp


def _over(store: JobStore, job_id: str, head: SteeringHead) -> tuple[int, int]:
    """(in how many steps, from which step on) a version takes effect: to send it again may cut that short."""
    log = store.steering(job_id, before=head.version + 1, limit=1).log
    return (log[0].over, log[0].effective_step) if log and log[0].version == head.version else (1, 0)


def _over_to_come(store: JobStore, job_id: str, head: SteeringHead) -> int:
    """Guardrails alone take no ramp away: the loop goes on with one that has begun, one to come is theirs as well."""
    over, step = _over(store, job_id, head)
    return over if over > 1 and step > store.job(job_id).step else 1


def _late(job: JobRecord) -> str:
    if job.status in (JobStatus.PAUSED, JobStatus.QUEUED):
        return f"the job is {job.status} after its last step: none is left that could follow another steering"
    return "the job's last step is in flight already, and follows what stands"


def _merged(current: dict[str, Any], sent: dict[str, Any], document: dict[str, Any]) -> Steering:
    """`document`: the job's spec."""
    objectives = tuple(objective["name"] for objective in document["objectives"])
    try:
        wanted = merge(current, sent, objectives, has_gold=document.get("gold") is not None)
    except SteeringError as error:
        raise ApiProblem(422, "invalid_steering", str(error), param=error.field or None) from None
    if not document["loss"]["kl_coef"] and all(rule["metric"] != "kl" for rule in in_force(document, current)):
        for i, rule in enumerate(wanted.guardrails or ()):
            if rule.metric == "kl":
                path = f"guardrails.{i}.metric"
                message = f"{path}: this job does not measure kl, as its loss.kl_coef is 0; fork it with one above 0"
                raise ApiProblem(422, "invalid_steering", f"{message} (1e-6 is enough)", param=path)
    return wanted


def _problem(error: ValidationError, within: str = "") -> ApiProblem:
    first = error.errors(include_input=False, include_url=False)[0]
    path = within + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = list(GuardrailSpec.model_fields) if within else _FIELDS
        hint = nearest(str(first["loc"][-1]), fields) or f"; fields are {', '.join(fields)}"
        return ApiProblem(422, "invalid_steering", f"{path}: unknown field{hint}", param=path)
    said = first["msg"].removeprefix("Value error, ")
    field, _, rest = said.partition(": ")
    if within and field in GuardrailSpec.model_fields:  # what two fields are at odds in
        path, said = f"{path}.{field}", rest
    message = f"{path}: {said}" if path else f"expected an object with some of {', '.join(_FIELDS)}"
    return ApiProblem(422, "invalid_steering", message, param=path or None)


def _version(if_match: str | None) -> int | None:
    """The version in an If-Match header; None (any) where it is absent or `*`.

    Weak too: a proxy that compresses makes such of the ETag that it passes on.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    match = re.fullmatch(r'(?:W/)?"?(\d{1,15})"?', if_match.strip(), flags=re.ASCII)
    if not match:
        raise ApiProblem(422, "invalid_parameter", 'If-Match: expected one version such as "3"', param="If-Match")
    return int(match.group(1))


def _entry(entry: SteeringEntry) -> dict[str, Any]:
    return {
        "version": entry.version,
        "effective_step": entry.effective_step,
        "at": entry.at,
        "by": entry.by,
        "change": entry.change,
    }
