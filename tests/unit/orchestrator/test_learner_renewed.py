"""A learner's process that is used for one job after another."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from orchestrator.actors.learner_group import LearnerActor
from policies.learner import LearnerSettings
from policies.models import load_model
from tests.support import make_policy


class Engines:
    """Keeps the weights of the latest update."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.version: str | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None:
        self.weights = load_file(update_info["path"])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.version = weight_version


def settings(policy: Path) -> LearnerSettings:
    return LearnerSettings(model=str(policy), dtype="float32", threads=1, max_tokens=8, tokens_per_microbatch=256)


def test_engines_get_the_weights_of_the_learner_that_there_is_now(tmp_path: Path) -> None:
    policies = [make_policy(tmp_path / str(seed), seed=seed) for seed in range(2)]
    actor, engines = LearnerActor(settings(policies[0])), Engines()
    actor.connect(lambda: engines, "shared_memory", 2)
    for version, policy in enumerate([policies[0], policies[1], policies[0]]):
        if version:
            actor.renew(settings(policy))
        actor.sync(version)
        expected = dict(load_model(str(policy)).named_parameters())
        assert engines.version == str(version)
        assert set(engines.weights) == set(expected)
        for name, tensor in engines.weights.items():
            torch.testing.assert_close(tensor, expected[name].data, rtol=0, atol=0)
