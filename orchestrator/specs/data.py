"""Which prompts a job learns from, and where a row keeps what."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.specs.base import Spec

DOMAIN = r"^[A-Za-z0-9][A-Za-z0-9 _./+-]{0,63}$"
Domain = Annotated[str, Field(pattern=DOMAIN)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
REFERENCE = "dataset:"  # and the id of an upload, in the place of a path


class QuickstartData(Spec):
    """Generated multi-digit arithmetic for the quickstart policy."""

    type: Literal["quickstart"] = "quickstart"
    train: int = Field(2048, ge=1, le=100_000, description="prompts in the train split")
    validation: int = Field(200, ge=1, le=10_000, description="prompts in the validation split")
    test: int = Field(500, ge=1, le=10_000, description="prompts in the test split")


class Columns(Spec):
    """Where a row keeps what; a dot reaches into a struct, as in `reward_model.ground_truth`."""

    prompt: str = Field("prompt", description="a string, or a list of chat messages with role and content")
    answer: str | None = Field("answer", description="the ground truth; null where no reward needs one")
    domain: ColumnName | None = Field(
        None, description="what kind of prompt it is, such as `math`: `objectives[].domains` go by it; rows may lack it"
    )
    details: tuple[ColumnName, ...] = Field(
        (),
        max_length=32,
        description="further columns that a reward may read, such as `schema`; it finds each under the last part of "
        "its name, and rows may lack them",
    )

    @model_validator(mode="after")
    def _details_differ(self) -> Self:
        names = [detail_name(column) for column in self.details]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"details.{i}: rewards would find two columns under one name; the last parts differ")
        return self


def detail_name(column: str) -> str:
    """What a reward calls a further column."""
    return column.rpartition(".")[2]


class FilesData(Spec):
    """Prompts from JSONL, CSV or Parquet files, or from uploaded datasets, whose own columns count."""

    type: Literal["files"] = "files"
    train: str = Field(description="path of the train split (.jsonl, .csv, .parquet), its URL, or dataset:ID")
    validation: str = Field(description="path of the validation split")
    test: str | None = Field(
        None, description="path of the test split; the validation split's figures alone when absent"
    )
    columns: Columns = Columns()
    limit: int | None = Field(None, ge=1, description="rows used of each split; all when absent")

    @property
    def may_have_domains(self) -> bool:
        """Whether rows may say what kind they are: by the columns here, or by those of an upload."""
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        return self.columns.domain is not None or any(split.startswith(REFERENCE) for split in splits)


DataSpec = Annotated[QuickstartData | FilesData, Field(discriminator="type")]
