"""The files of a split, read as one; and the share of the train prompts that is held back where no file is named."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from orchestrator.rollouts.prompts import DatasetError, Prompt, each_prompt
from orchestrator.specs.data import MAX_FILES, Columns, Share, detail_name

_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Where a split's prompts are. With a `share`, these are the train split's files: it holds some rows back."""

    paths: tuple[Path, ...]
    columns: Columns
    limit: int | None = None  # rows of all files together, before any are held back
    share: Share | None = None
    is_held_out: bool = False
    named: Mapping[Path, str] = field(default_factory=dict)
    """What the spec calls a file that lies here under another name."""

    def in_words_of_spec(self, message: str) -> str:
        for path, name in self.named.items():
            message = message.replace(str(path), name)
        return message


def each_of(files: SplitFiles, *, lenient: bool = False) -> Generator[tuple[Path, Prompt], None, None]:
    """The split's prompts, each with its file, none kept. Raises DatasetError; `lenient` as of `each_prompt`.

    Also where a file has no row with a column that another one has, and where a share leaves a split empty.
    """
    rows = taken = 0
    first: tuple[Path, set[str]] | None = None
    for path in files.paths:
        left = None if files.limit is None else files.limit - rows
        if left == 0:
            break
        before, found = rows, set[str]()
        with contextlib.closing(each_prompt(path, files.columns, limit=left, lenient=lenient)) as prompts:
            for prompt in prompts:
                rows += 1
                found.update(_columns_of(prompt, files.columns))
                if files.share is None or holds_back(files.share, prompt) == files.is_held_out:
                    taken += 1
                    yield path, prompt
        if left is not None and rows - before == left:
            break  # the file may go on, with other columns
        first = first or (path, found)
        _check_alike(first, (path, found))
    if not taken and files.share is not None:
        raise _empty_share(files.share, rows, is_held_out=files.is_held_out)


def holds_back(share: Share, prompt: Prompt) -> bool:
    """By the prompt's words alone: equal ones are on one side, whatever file and row they are in, and stay there."""
    words = [[message["role"], message["content"]] for message in prompt.messages]
    digest = hashlib.sha256(json.dumps([share.seed, words]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share.share * 2**64


def matching(name: str) -> list[Path]:
    """The file that a local path names, or all that a pattern does, by name. Raises DatasetError where none does."""
    path = _expanded(name)
    if not is_pattern(name) or path.exists():
        return [path]
    found = sorted(islice((each for each in matches(name) if each.is_file()), MAX_FILES + 1))
    if not found:
        raise DatasetError(f"{name}: no file matches; expected some that end in .jsonl, .csv or .parquet")
    if len(found) > MAX_FILES:
        raise DatasetError(f"{name}: more than {MAX_FILES} files match; name fewer")
    return found


def matches(pattern: str) -> Iterator[Path]:
    """Whatever is called so: files, folders and links."""
    with contextlib.suppress(ValueError):  # what no path can be
        yield from map(Path, glob.iglob(str(_expanded(pattern))))  # noqa: PTH207  # absolute or not


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no home directory
        return Path(name)


def is_pattern(name: str) -> bool:
    return _PATTERN.search(name) is not None


def _columns_of(prompt: Prompt, columns: Columns) -> Iterator[str]:
    """Of those that rows may lack, the ones that this row has."""
    if columns.domain is not None and prompt.domain is not None:
        yield columns.domain
    if prompt.details:
        yield from (column for column in columns.details if detail_name(column) in prompt.details)


def _check_alike(one: tuple[Path, set[str]], other: tuple[Path, set[str]]) -> None:
    for (_, there), (path, here) in ((one, other), (other, one)):
        if missing := sorted(there - here):
            what = f"no row has '{missing[0]}', which rows of another file of the split have"
            raise DatasetError(f"{path}: {what}; a split's files need the same columns")


def _empty_share(share: Share, rows: int, *, is_held_out: bool) -> DatasetError:
    kept, change = ("none", "raise") if is_held_out else ("all", "lower")
    return DatasetError(
        f"data.validation.share: {share.share:g} holds back {kept} of the {rows} prompts; {change} it, or name a file"
    )
