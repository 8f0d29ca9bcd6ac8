"""A run of Weights & Biases. Key and server are wandb's own: WANDB_API_KEY, WANDB_BASE_URL, `wandb login`.

With WANDB_MODE=offline nothing is known of earlier calls, so that each logs the job from its start.
"""

from __future__ import annotations

from typing import Any

from services.trackers.base import NOTHING, Entry, Run, needed

_SETTINGS = {"console": "off", "x_disable_stats": True, "disable_git": True}  # of the job, not of who watches it


class WandB:
    """Raises NotInstalled, or what wandb raises where its server can't be asked."""

    def __init__(self, run: Run, project: str) -> None:
        self._wandb: Any = needed("wandb", "--wandb", "wandb")
        self._run = self._wandb.init(
            project=project,
            id=run.id,
            name=run.name,
            config=dict(run.spec),
            resume="allow",
            reinit="create_new",  # beside a run of another project
            settings=_SETTINGS,
        )

    def last_step(self) -> int:
        known = self._run.summary.get("step")
        return NOTHING if known is None else int(known)

    def log(self, entry: Entry) -> None:
        tables = {
            name: self._wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for name, table in entry.tables.items()
        }
        self._run.log({"step": entry.step, **entry.figures, **tables}, step=entry.step, commit=True)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=1 if status == "failed" else 0)
