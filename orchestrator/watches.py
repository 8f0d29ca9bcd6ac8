"""What looks over a run's shoulder: it tells what goes wrong, and asks for a pause where a person wants one then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.clock import Clock
from orchestrator.figures import measured
from orchestrator.gold import GoldWatch
from orchestrator.guardrails import Guardrails
from orchestrator.journal import Journal
from orchestrator.rollouts.batch import Batch
from orchestrator.rollouts.prompts import Prompt
from orchestrator.spec import JobSpec
from orchestrator.specs.guardrails import GuardrailSpec
from policies.collapse import CollapseWatch
from policies.types import LearnStats
from rewards.base import RewardError

NOT_FINITE = "the gradient or the loss was not finite"


class Watches:
    """One job's. Each tells once of what begins, and again only after it has been over.

    pause: asks for it, with the reason that a person reads.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        collapse: CollapseWatch,
        gold: GoldWatch,
        journal: Journal,
        clock: Clock,
        pause: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.collapse_watch = collapse
        self.gold_watch = gold
        self.guardrails = Guardrails(spec.guardrails)
        self.journal = journal
        self.clock = clock
        self.pause = pause
        self.collapsed = False
        self.not_finite = 0  # steps in a row of which an update was skipped
        self._gold_failed = False

    def collapse(
        self,
        step: int,
        normalised: Mapping[str, float],
        errors: Mapping[str, float],
        preference: Mapping[str, float],
        *,
        is_turned: bool,
    ) -> bool:
        """Name a collapse when it begins; until it is over (False) its points stay off the front.

        normalised: held-out means on their ranges, and their standard errors. is_turned: 1 is the better end, as some
        objective is better the smaller it is.
        """
        if self.spec.collapse.action == "off":
            return False
        found = self.collapse_watch.observe(step, normalised, preference, errors)
        if found is not None and not self.collapsed:
            turned = "; 1 is the better end of each range" if is_turned else ""
            told = {"message": found.describe() + turned, **asdict(found)}
            self.journal.event("collapse.detected", level="warning", once=f"collapse {step}", **told)
            if self.spec.collapse.action == "pause":
                self.pause(told["message"])
        if found is None and self.collapsed:
            self.journal.event("collapse.over", once=f"collapse over {step}", step=step)
        self.collapsed = found is not None
        return self.collapsed

    def gold(self, step: int, batch: Batch, prompts: Sequence[Prompt]) -> dict[str, Any] | None:
        """Name an objective that rises while gold falls; the step's figures, or None where it is not gold's turn.

        It only watches: where gold has no scores, training goes on.
        """
        if not self.gold_watch.due(step):
            return None
        try:
            with self.clock("score"):
                reading = self.gold_watch.read(step, batch, prompts)
        except RewardError as error:
            if not self._gold_failed:  # once, until it works again
                self.journal.event("gold.failed", level="warning", step=step, message=error.problem)
            self._gold_failed = True
            return None
        self._gold_failed = False
        for found in reading.began:
            told = {"message": found.describe(), **asdict(found)}
            once = f"overoptimisation {step} {found.objective}"
            self.journal.event("overoptimisation.detected", level="warning", once=once, **told)
            if self.spec.gold is not None and self.spec.gold.action == "pause":
                self.pause(found.describe())
        return reading.figures

    def updates(self, step: int, learned: LearnStats) -> None:
        """Tell of updates that were not made. Raises ValueError where one was not finite in too many steps in a row."""
        not_finite, made = learned.updates_not_finite, learned.updates
        if not_finite or not made:
            skipped = not_finite + learned.updates_masked
            why = NOT_FINITE if not_finite else "every completion was cut at rollout.max_tokens (loss.mask_truncated)"
            told = {
                "message": f"{skipped} of {skipped + made} updates skipped: {why}",
                "skipped": skipped,
                "updates": made,
            }
            self.journal.event("update.skipped", level="warning", once=f"update skipped {step}", step=step, **told)
        if not_finite:
            self.not_finite += 1
        elif made:
            self.not_finite = 0
        if self.not_finite > (most := self.spec.optimizer.max_skipped_steps):
            raise ValueError(
                f"step {step}: {NOT_FINITE}, and optimizer.max_skipped_steps lets {most} such steps in a row go on; "
                "lower optimizer.lr, or fork an earlier checkpoint"
            )

    def limits(self, record: Mapping[str, Any], steered: Sequence[GuardrailSpec] | None) -> None:
        """Name what is outside a person's limits: the spec's, or those that it is steered with."""
        self.guardrails.follow(self.spec.guardrails if steered is None else steered)
        for breach in self.guardrails.observe(measured(record)):
            told = {"message": breach.describe(), **asdict(breach)}
            self.journal.event("guardrail.breached", level="warning", once=breach.told_as, **told)
            if breach.action == "pause":
                self.pause(breach.describe())

    def state_dict(self) -> dict[str, Any]:
        return {
            "collapsed": self.collapsed,
            "not_finite": self.not_finite,
            "watch": self.collapse_watch.state_dict(),
            "guardrails": self.guardrails.state_dict(),
            "gold": self.gold_watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, is_turned: bool) -> None:
        """As a checkpoint has it, among the rest of the loop's; what older versions did not keep begins anew."""
        self.collapsed = state["collapsed"]
        self.not_finite = state.get("not_finite", 0)
        if "directions" in state["archive"] or not is_turned:
            self.collapse_watch.load_state_dict(state["watch"])  # an older one watched in the wrong direction
        if "guardrails" in state:
            self.guardrails.load_state_dict(state["guardrails"])
        self.gold_watch.load_state_dict(state.get("gold"))
