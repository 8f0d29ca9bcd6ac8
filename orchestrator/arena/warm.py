"""Engines, learner and rewards that stay up between runs: only what a run trains is made afresh.

first run      build(spec): Ray, the engine, the learner, the rewards (some 30 s)
later ones     the learner's model, optimiser and settings anew; rewards anew where the objectives differ; the engine
               takes the initial policy's weights as it takes any others
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.build import Parts, assemble, build
from orchestrator.evaluation import Evaluation
from orchestrator.hosting import HostedReward, hosted_rewards, reward_pool
from orchestrator.inputs import Splits, load_splits, prompt_encoder
from orchestrator.process_settings import learner_settings
from orchestrator.spec import JobSpec
from policies.models import load_tokenizer
from rewards.pool import RewardPool


class Workshop:
    """The parts of one job after another, on one machine's CPU. All jobs' policies are of one architecture."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._parts: Parts | None = None
        self._hosted: list[HostedReward] = []
        self._rewards: RewardPool | None = None  # in place of those that were built
        self._splits: dict[str, Splits] = {}
        self._initial: dict[str, dict[str, Evaluation]] = {}

    def parts(self, spec: JobSpec, model: str) -> Parts:
        """Everything that the job needs, as if it had been built for it alone; `model`: the initial policy's folder."""
        spec = spec.model_copy(update={"policy": spec.policy.model_copy(update={"model": model})})
        if self._parts is None:
            self._parts = build(spec, self.state_dir)
            self._hosted = hosted_rewards(spec)
            return self._parts
        warm = self._parts
        warm.learner.renew(learner_settings(spec, model, "cpu"))
        warm.engines.refit(warm.learner, 0)
        return assemble(
            spec,
            self._prompts(spec, model),
            warm.engines,
            warm.learner,
            rewards=self._pool(spec),
            save_tokenizer=warm.save_tokenizer,
            close=self.close,
        )

    def initial(self, spec: JobSpec, model: str) -> dict[str, Evaluation]:
        """Figures of the initial policy that jobs share if they differ in nothing that an evaluation depends on."""
        same = spec.model_dump_json(include={"seed", "data", "evaluation", "rollout"})
        rewards = [objective.model_dump(mode="json", include={"name", "reward"}) for objective in spec.objectives]
        return self._initial.setdefault(json.dumps([model, same, rewards]), {})

    def close(self) -> None:
        """Ends every process; the next job starts them again."""
        if self._rewards is not None:
            self._rewards.close()
        if self._parts is not None:
            self._parts.close()
        self._parts = self._rewards = None

    def _prompts(self, spec: JobSpec, model: str) -> Splits:
        key = f"{spec.seed} {spec.data.model_dump_json()}"
        if key not in self._splits:
            tokenizer = load_tokenizer(model)
            self._splits = {
                key: load_splits(spec, self.state_dir, model=model, encoder=prompt_encoder(spec, tokenizer))
            }
        return self._splits[key]

    def _pool(self, spec: JobSpec) -> RewardPool:
        assert self._parts is not None
        hosted = hosted_rewards(spec)
        if hosted != self._hosted:
            pool = reward_pool(hosted)
            pool.wait_ready()
            if self._rewards is not None:
                self._rewards.close()
            self._hosted, self._rewards = hosted, pool
        return self._rewards or self._parts.rewards
