"""Datasets over HTTP: upload, list, look at, delete. Each belongs to the owner of the key that uploaded it."""

from __future__ import annotations

import errno
import re
from typing import Annotated, Any, Literal, Self

import anyio
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from orchestrator.checks.dataset_check import MAX_PROBLEMS, check, shown
from orchestrator.rollouts.prompts import DatasetError
from orchestrator.specs.data import Columns, detail_name
from orchestrator.storage.datasets import Dataset, DatasetNotFound, Datasets, Draft
from orchestrator.unprintable import PRINTABLE
from services.body import refuse_encoded
from services.deps import MAX_PAGE, Configuration, OwnDatasets, page
from services.errors import ApiProblem, StrictJSONResponse, not_found
from services.query import StrictRoute
from services.slots import place

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)

_CHUNK_BYTES = 1 << 20
_PREVIEW_ROWS = 10_000
_CURSOR = re.compile(r"(ds-[0-9a-f]{12})\.([0-9]{1,12}(?:\.[0-9]{1,9})?)")


class Upload(BaseModel):
    """Query of an upload; the body is the file as it is."""

    model_config = ConfigDict(extra="forbid")

    name: str = Query(min_length=1, max_length=128, pattern=PRINTABLE, description="what people call it")
    format: Literal["jsonl", "csv", "parquet"] = Query(description="of the body")
    prompt: str = Query("prompt", min_length=1, max_length=256, pattern=PRINTABLE, description="column of prompts")
    answer: str = Query("answer", max_length=256, description="column of the ground truth; empty where there is none")
    domain: str = Query("", max_length=200, description="column of the prompts' domains; empty where there is none")
    details: list[Annotated[str, Field(min_length=1, max_length=200)]] = Query(
        [], max_length=32, description="further columns that a reward may read; repeated"
    )

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        names = [detail_name(column) for column in self.details]
        if len({*names}) < len(names):
            raise ValueError("details: rewards would find two columns under one name; the last parts differ")
        return self

    @property
    def columns(self) -> Columns:
        return Columns(
            prompt=self.prompt, answer=self.answer or None, domain=self.domain or None, details=tuple(self.details)
        )


class DatasetList(BaseModel):
    """Query of the list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Query(
        None,
        description="only datasets older than this one: its id, or a page's next_after, which holds when it is deleted",
    )
    limit: int = Query(20, ge=1, le=MAX_PAGE)


class RowList(BaseModel):
    """Query of a preview."""

    model_config = ConfigDict(extra="forbid")

    after: int = Query(0, ge=0, le=_PREVIEW_ROWS, description="only rows numbered above this")
    limit: int = Query(20, ge=1, le=MAX_PAGE)


_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "",
    status_code=201,
    responses={200: {"description": "the dataset that this content already is"}},
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
async def upload_dataset(
    request: Request,
    query: Annotated[Upload, Query()],
    datasets: OwnDatasets,
    settings: Configuration,
    _place: Annotated[None, place("uploads", at_once=8, of_owner=2)],
) -> Response:
    """Keeps a file whose rows are all usable; 422 names those that aren't, and nothing is kept.

    The same content again is the same dataset, under its first name: 200 instead of 201. 408 where the body comes below
    32 KiB a second, or takes longer than half an hour.
    """
    refuse_encoded(request)
    draft = None
    try:
        draft = await run_in_threadpool(datasets.draft, query.format)
        await _receive(request, draft)
        found, is_new = await run_in_threadpool(_keep, datasets, draft, query, settings.limits.datasets)
    except ClientDisconnect:
        raise ApiProblem(400, "incomplete_body", "the body ended early") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ApiProblem(507, "storage_full", "the server has no room for this file") from None
    finally:
        if draft is not None:
            with anyio.CancelScope(shield=True):  # who asked may be gone
                await run_in_threadpool(draft.discard)
    headers = {"location": f"/v1/datasets/{found.id}"}
    return StrictJSONResponse(_document(found), status_code=201 if is_new else 200, headers=headers)


async def _receive(request: Request, draft: Draft) -> None:
    waiting: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        waiting.append(chunk)
        size += len(chunk)
        if size >= _CHUNK_BYTES:
            await run_in_threadpool(draft.write, b"".join(waiting))
            waiting, size = [], 0
    await run_in_threadpool(draft.write, b"".join(waiting))


def _keep(datasets: Datasets, draft: Draft, query: Upload, most: int) -> tuple[Dataset, bool]:
    draft.close()
    columns = query.columns
    if (twin := datasets.twin(draft, columns)) is not None:
        return twin, False
    if most and len(datasets.all()) >= most:
        message = f"this owner has {most} datasets, and may have no more; delete one"
        raise ApiProblem(429, "too_many_datasets", message, headers={"retry-after": "60"})
    rows, problems = check(draft.path, columns, owner=datasets.owner)
    if problems:
        more = "; and maybe more" if len(problems) == MAX_PROBLEMS else ""
        raise ApiProblem(422, "invalid_dataset", "; ".join(problems) + more)
    return datasets.keep(draft, name=query.name, columns=columns, rows=rows)


@router.get("")
def list_datasets(query: Annotated[DatasetList, Query()], datasets: OwnDatasets) -> Response:
    """Newest first."""
    found = datasets.all()
    if query.after is not None:
        seen = _place_of(query.after, found)
        found = [dataset for dataset in found if (-dataset.created_at, dataset.id) > seen]
    listed, has_more = found[: query.limit], len(found) > query.limit
    next_after = f"{listed[-1].id}.{listed[-1].created_at!r}" if has_more else None
    document = page([_document(dataset) for dataset in listed], has_more=has_more)
    return StrictJSONResponse({**document, "next_after": next_after})


def _place_of(after: str, found: list[Dataset]) -> tuple[float, str]:
    """In the list's order."""
    if cursor := _CURSOR.fullmatch(after):
        return -float(cursor[2]), cursor[1]
    place = next(((-dataset.created_at, dataset.id) for dataset in found if dataset.id == after), None)
    if place is None:
        message = "after: no such dataset; a page's next_after holds when a dataset is deleted"
        raise ApiProblem(422, "invalid_parameter", message, param="after")
    return place


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, datasets: OwnDatasets) -> Response:
    """What is known of a dataset; a spec names it as `dataset:ID`."""
    return StrictJSONResponse(_document(_find(datasets, dataset_id)))


@router.get("/{dataset_id}/rows")
def get_rows(
    dataset_id: str,
    query: Annotated[RowList, Query()],
    datasets: OwnDatasets,
    _place: Annotated[None, place("row previews", at_once=4, of_owner=2)],
) -> Response:
    """A preview of the first rows: prompts and answers as a job gets them, what is long cut at 4,000 characters."""
    found = _find(datasets, dataset_id)
    try:
        rows = shown(found.path, found.columns, after=query.after, limit=query.limit + 1, owner=datasets.owner)
    except DatasetError:
        raise ApiProblem(409, "dataset_damaged", "the file of this dataset is damaged; upload it again") from None
    return StrictJSONResponse(page(rows[: query.limit], has_more=len(rows) > query.limit))


@router.delete("/{dataset_id}")
def delete_dataset(dataset_id: str, datasets: OwnDatasets) -> Response:
    """For good. A job that has yet to begin fails with a reason that says so; others keep what they read."""
    try:
        datasets.delete(dataset_id)
    except DatasetNotFound:
        raise _absent() from None
    return StrictJSONResponse({"object": "dataset", "id": dataset_id, "deleted": True})


def _find(datasets: Datasets, dataset_id: str) -> Dataset:
    try:
        return datasets.get(dataset_id)
    except DatasetNotFound:
        raise _absent() from None


def _absent() -> ApiProblem:
    return not_found("no such dataset")


def _document(dataset: Dataset) -> dict[str, Any]:
    return {"object": "dataset", **dataset.document()}
