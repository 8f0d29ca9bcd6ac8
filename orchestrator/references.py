"""What the initial policy's completions of train prompts are worth: JOB/references.jsonl, a line for each chunk.

    {"first": 0, "index": [7, 2], "values": {"brevity": [[0.5, 0.25], ...]}}

By objective N values of each of these prompts of the train split, of which `first` are in the lines before. Without
`index` they are the prompts from number `first` on.

One file of the job, as it never changes once it is whole: checkpoints hold its digest alone. A line that a kill cut
short, or that a second writer put in twice, counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

FILE = "references.jsonl"


def stored_name(digest: str) -> str:
    """What the checkpoint store calls the file: two holders of a job that began at once have each its own."""
    return f"references-{digest[:16]}.jsonl"


class References:
    """By objective SN: as many values for each of the S prompts that are known so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Tensor] = {}
        self.rows: dict[int, int] = {}  # of the values, by the prompt's number in the train split

    def of(self, name: str, index: Sequence[int]) -> Tensor | None:
        """PN of an objective, of these prompts; None where it has none."""
        return self.values[name][[self.rows[prompt] for prompt in index]] if name in self.values else None

    @property
    def prompts(self) -> int:
        return min((len(values_SN) for values_SN in self.values.values()), default=0)

    @property
    def digest(self) -> str:
        """Of the values, however they are laid out in lines."""
        found = hashlib.sha256()
        if list(self.rows) != list(range(len(self.rows))):
            found.update(json.dumps(list(self.rows)).encode())
        for name, values_SN in sorted(self.values.items()):
            found.update(json.dumps([name, list(values_SN.shape)]).encode() + values_SN.numpy().tobytes())
        return found.hexdigest()

    def read(self) -> None:
        """What is on disk; nothing where there is no file."""
        self.values, self.rows = {}, {}
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            try:
                chunk = json.loads(line)
                if chunk["first"] == self.prompts:
                    values = {n: torch.tensor(rows, dtype=torch.float32) for n, rows in chunk["values"].items()}
                    self._take(values, chunk.get("index"))
            except (ValueError, KeyError, TypeError):
                continue

    def append(self, values: dict[str, Tensor], index: Sequence[int] | None = None) -> None:
        """Further prompts' values, on disk when it returns; those after the last one if `index` is None."""
        rows = {name: values_PN.float().tolist() for name, values_PN in values.items()}
        place = {} if index is None else {"index": list(index)}
        line = json.dumps({"first": self.prompts, **place, "values": rows})
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take({name: values_PN.float() for name, values_PN in values.items()}, index)

    def _take(self, values: dict[str, Tensor], index: Sequence[int] | None) -> None:
        first, known = not self.values, self.prompts
        count = min(len(v) for v in values.values())
        places = range(known, known + count) if index is None else index
        self.rows |= {prompt: known + i for i, prompt in enumerate(places)}
        self.values = {n: v if first else torch.cat([self.values[n], v]) for n, v in values.items()}
