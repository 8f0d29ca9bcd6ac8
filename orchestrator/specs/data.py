"""Which prompts a job learns from, and where a row keeps what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from orchestrator.specs.base import Spec

DOMAIN = r"^[A-Za-z0-9][A-Za-z0-9 _./+-]{0,63}$"
Domain = Annotated[str, Field(pattern=DOMAIN)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
MAX_FILES = 1000  # of a split
MAX_SETS = 8
SETS = "sets."  # and a set's name: what it is called among the splits
SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
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


class Share(Spec):
    """Train prompts that are held back for validation, in the place of files.

    Which ones follows from each prompt's words and the seed: equal prompts are on one side, and a resumed or forked job
    has the same.
    """

    share: float = Field(gt=0, lt=1, description="of the train prompts, as far as chance lets it be met")
    seed: int = Field(0, ge=0, lt=2**31, description="another one holds other prompts back")


def _kind(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "share" if isinstance(value, Mapping | Share) else "one"


_One = Annotated[str, Tag("one")]
_Several = Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_FILES), Tag("several")]
Files = Annotated[_One | _Several, Discriminator(lambda value: "several" if _kind(value) == "several" else "one")]


class FilesData(Spec):
    """Prompts from JSONL, CSV or Parquet files, or from uploaded datasets, whose own columns count.

    A split may be several files with the same columns: a list, or a local path with `*`, `?` or `[...]`.
    """

    type: Literal["files"] = "files"
    train: Files = Field(
        description="path of the train split (.jsonl, .csv, .parquet), its URL, or dataset:ID; a list or a pattern of "
        "paths for several files"
    )
    validation: Annotated[_One | _Several | Annotated[Share, Tag("share")], Discriminator(_kind)] = Field(
        description="the same of the validation split; or {share: .05} to hold back train prompts"
    )
    test: Files | None = Field(
        None, description="the same of the test split; the validation split's figures alone when absent"
    )
    sets: dict[SetName, Files] = Field(
        default_factory=dict,
        max_length=MAX_SETS,
        description="further held-out sets by name, evaluated whenever the validation split is, to be reported alone",
    )
    columns: Columns = Columns()
    limit: int | None = Field(None, ge=1, description="rows used of each split, before a share; all when absent")
    overlong: Literal["refuse", "drop"] = Field(
        "refuse",
        description="prompts that leave no room for rollout.max_tokens in the policy's context: `refuse` the job, or "
        "`drop` them, which the event data.loaded counts",
    )

    @model_validator(mode="after")
    def _datasets_stand_alone(self) -> Self:
        """Each has its own columns."""
        for split in self.splits:
            names = self.names(split)
            for i, name in enumerate(names):
                if len(names) > 1 and name.startswith(REFERENCE):
                    raise ValueError(f"{split}.{i}: a dataset is a split of its own; upload the files as one")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        tested = () if self.test is None else ("test",)
        return ("train", "validation", *tested, *(SETS + name for name in self.sets))

    @property
    def held_back(self) -> Share | None:
        return self.validation if isinstance(self.validation, Share) else None

    def names(self, split: str) -> tuple[str, ...]:
        """Of the files in which a split's prompts are, as the spec has them."""
        named = self._named(split)
        if isinstance(named, Share):
            return self.names("train")
        return (named,) if isinstance(named, str) else named or ()

    def fields(self, split: str) -> dict[str, str]:
        """The same by field. A share names none of its own."""
        named = self._named(split)
        if isinstance(named, Share):
            return {}
        places = [f"data.{split}"] if isinstance(named, str) else [f"data.{split}.{i}" for i in range(len(named or ()))]
        return dict(zip(places, self.names(split), strict=True))

    def _named(self, split: str) -> str | tuple[str, ...] | Share | None:
        found: str | tuple[str, ...] | Share | None
        found = self.sets[split.removeprefix(SETS)] if split.startswith(SETS) else getattr(self, split)
        return found

    def hub_split(self, split: str) -> str:
        """What a dataset of the hub that is named without a path calls the files of a split."""
        if split.startswith(SETS):
            return "validation"
        return "train" if split == "validation" and self.held_back is not None else split

    @property
    def may_have_domains(self) -> bool:
        """Whether rows may say what kind they are: by the columns here, or by those of an upload."""
        named = [name for split in self.splits for name in self.names(split)]
        return self.columns.domain is not None or any(name.startswith(REFERENCE) for name in named)


DataSpec = Annotated[QuickstartData | FilesData, Field(discriminator="type")]
