"""What the initial policy's completions of each train prompt are worth: JOB/references.jsonl, a line for each chunk.

    {"first": 0, "values": {"brevity": [[0.5, 0.25], ...]}}      prompts from `first` on, by objective: N each

One file of the job, as it never changes once it is whole: checkpoints hold its digest alone. A line that a kill cut
short, or that a second writer put in twice, counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

FILE = "references.jsonl"


def stored_name(digest: str) -> str:
    """What the checkpoint store calls the file: two holders of a job that began at once have each its own."""
    return f"references-{digest[:16]}.jsonl"


class References:
    """By objective SN: as many values for each of the S prompts that are known so far, from the first on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Tensor] = {}

    @property
    def prompts(self) -> int:
        return min((len(values_SN) for values_SN in self.values.values()), default=0)

    @property
    def digest(self) -> str:
        """Of the values, however they are laid out in lines."""
        found = hashlib.sha256()
        for name, values_SN in sorted(self.values.items()):
            found.update(json.dumps([name, list(values_SN.shape)]).encode() + values_SN.numpy().tobytes())
        return found.hexdigest()

    def read(self) -> None:
        """What is on disk; nothing where there is no file."""
        self.values = {}
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            try:
                chunk = json.loads(line)
                if chunk["first"] == self.prompts:
                    self._take(
                        {name: torch.tensor(rows, dtype=torch.float32) for name, rows in chunk["values"].items()}
                    )
            except (ValueError, KeyError, TypeError):
                continue

    def append(self, values: dict[str, Tensor]) -> None:
        """The next prompts' values, on disk when it returns."""
        rows = {name: values_PN.float().tolist() for name, values_PN in values.items()}
        line = json.dumps({"first": self.prompts, "values": rows})
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take({name: values_PN.float() for name, values_PN in values.items()})

    def _take(self, values: dict[str, Tensor]) -> None:
        first = not self.values
        self.values = {n: v if first else torch.cat([self.values[n], v]) for n, v in values.items()}
