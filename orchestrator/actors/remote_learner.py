"""The learner of a job, of one rank or several, as the loop sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from orchestrator.actors.kernel_kills import kernel_kills
from orchestrator.actors.learner_group import LearnerRanks
from orchestrator.actors.ray_errors import is_lost, is_out_of_memory, last_line
from orchestrator.errors import ActorLost, LearnerOutOfMemory
from orchestrator.rollouts.engines import EngineError
from policies.learner import LearnerSettings
from policies.types import LearnStats, ObjectiveAdvantages, Rollout

SAVED_EVERY_S = 0.2
PORT_TAKEN = ("EADDRINUSE", "ddress already in use")  # in torch's and gloo's words


class LearnerError(RuntimeError):
    """The learner could not make its update."""


class RemoteLearner:
    """The learner as the loop sees it. Raises ActorLost, or LearnerError with the learner's own reason.

    `sync_s` is how long a sync may take, and `timeout_s` any other call; what takes longer is lost, as if it had died.
    `group` has a reference for each engine that is in one group with it, as `LearnerRanks.call` watches them; none
    where an engine may come and go.
    """

    def __init__(self, *ranks: Any, sync_s: float, timeout_s: float | None = None, group: Sequence[Any] = ()) -> None:
        self.ranks = LearnerRanks(ranks)
        self.sync_s = sync_s
        self.timeout_s = timeout_s
        self.group = group

    def device_name(self) -> str:
        """What the first rank learns on."""
        return str(self._call("device_name"))

    def gramian(self, rollouts: Sequence[Rollout], advantages_BK: Tensor) -> Tensor:
        return self._call("gramian", ray.put(rollouts), advantages_BK)

    def learn(self, rollouts: Sequence[Rollout], advantages_B: Tensor, parts: ObjectiveAdvantages | None) -> LearnStats:
        return self._call("learn", ray.put(rollouts), advantages_B, parts)

    def sync(self, version: int) -> None:
        """Every engine samples from the learner's weights when this returns.

        What goes wrong in a group is ActorLost: one that broke off in an exchange is of no use, and a new one may be.
        """
        try:
            self._call("sync", version, timeout_s=self.sync_s, watch=self.group)
        except (LearnerError, OSError) as error:
            if not self.group:
                raise
            raise ActorLost(f"learner and engines are to begin anew: {error}") from error

    def save(self, directory: Path, *, beside: bool = False) -> Callable[[], None]:
        """The learner's files. To save `beside` the next steps takes copies now; what is returned waits for the files.

        That may be called in another thread, and raises as this.
        """
        self._call("save", directory, beside)

        def written() -> None:
            while beside and not all(self._ask("saved")):  # ranks answer between their updates
                time.sleep(SAVED_EVERY_S)

        return written

    def load(self, directory: Path) -> None:
        self._call("load", directory)

    def load_policy(self, directory: Path) -> None:
        """To be evaluated: nothing can be learned from there on."""
        self._call("load_policy", directory)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        return self._call("logprobs", ray.put(rollouts))

    def renew(self, settings: LearnerSettings) -> None:
        """As new, for another job; engines have the old weights until the next sync."""
        self._call("renew", settings)

    def _call(self, method: str, *arguments: Any, **waiting: Any) -> Any:
        """The first rank's answer to `_ask`."""
        return self._ask(method, *arguments, **waiting)[0]

    def _ask(self, method: str, *arguments: Any, **waiting: Any) -> list[Any]:
        killed = kernel_kills()
        try:
            return self.ranks.ask(method, *arguments, **{"timeout_s": self.timeout_s} | waiting)
        except ray.exceptions.GetTimeoutError:
            if method == "sync":
                told = f"the weights did not reach the engines within {self.sync_s:g} s (rollout.timeout_s)"
            else:
                told = f"the learner did not end `{method}` within {self.timeout_s:g} s (resources.learner_timeout_s)"
            raise ActorLost(told) from None
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, OSError):  # the disk's own words, for the checkpoint's error
                raise cause from None
            loss = loss_of(error, killed)  # of itself, or in a sync of an engine
            raise loss or LearnerError(f"the learner failed: {last_line(error)}") from error


def loss_of(error: ray.exceptions.RayError, killed: int) -> ActorLost | None:
    """What another try may mend; None where the learner itself said what was wrong.

    `killed`: the kernel's kills of this machine (kernel_kills.py) before the call; a learner on another is just gone.
    """
    if isinstance(getattr(error, "cause", None), EngineError):
        return ActorLost(f"a rollout engine failed in a weight update: {last_line(error)}")
    if isinstance(error, ray.exceptions.OutOfMemoryError) or is_out_of_memory(getattr(error, "cause", None)):
        return LearnerOutOfMemory(f"the learner is out of memory: {last_line(error)}")
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return ActorLost(f"the learner hangs: {last_line(error)} (resources.learner_timeout_s)")
    if any(words in str(error) for words in PORT_TAKEN):
        return ActorLost(f"a port that learner and engines were to meet at was taken meanwhile: {last_line(error)}")
    if not is_lost(error):
        return None
    if kernel_kills() > killed:
        return LearnerOutOfMemory("the kernel ended the learner, or an engine, for want of memory")
    return ActorLost(f"the learner or an engine is gone: {last_line(error)}")
