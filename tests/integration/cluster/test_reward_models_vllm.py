"""vLLM's pooling runner behind learned rewards, against transformers: one process, three small engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rewards import registry
from rewards.base import RewardBatch
from rewards.models.heads import HeadConfig, HeadsConfig
from tests.reward_data import completion, make_backbone, prompt

SCRIPT = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from rewards import registry
from rewards.base import RewardBatch
question = json.load(sys.stdin)
batch = RewardBatch(**{k: tuple(v) if isinstance(v, list) else v for k, v in question["batch"].items()})
found = [registry.build(name, options).score_heads(batch) for name, options in question["rewards"]]
json.dump(found, answers)
answers.close()
"""


def columns():
    import random

    rng = random.Random(0)
    texts = [prompt(rng)[0] for _ in range(4)] * 3
    completions = [completion(rng) for _ in texts]
    size = len(texts)
    return {
        "prompts": texts,
        "completions": completions,
        "answers": [None] * size,
        "completion_tokens": [1] * size,
        "truncated": [False] * size,
        "max_tokens": 50,
    }


def regression(directory, pooling):
    import torch

    from rewards.models.readout import Readout

    heads = HeadsConfig(
        heads=(
            HeadConfig(name="good", range=(0.0, 4.0), offset=2.0, scale=0.5),
            HeadConfig(name="long", range=(0.0, 1.0)),
        ),
        gating=(8,),
        pooling=pooling,
    )
    torch.manual_seed(0)
    Readout(heads, 64).save(make_backbone(directory))
    return directory


def classifier(directory):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = make_backbone(directory / "base", kind="llama")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(directory / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(directory / "model")
    return directory / "model"


@pytest.mark.timeout(300)
def test_vllm_scores_as_transformers_does(tmp_path):
    wanted = [
        ("regression", {"model": str(regression(tmp_path / "last", "last"))}),
        ("regression", {"model": str(regression(tmp_path / "mean", "mean"))}),
        ("bradley_terry", {"model": str(classifier(tmp_path / "classifier"))}),
    ]
    question = columns()
    batch = RewardBatch(**{name: tuple(v) if isinstance(v, list) else v for name, v in question.items()})
    expected = [registry.build(name, options).score_heads(batch) for name, options in wanted]
    options = {"runner": "vllm", "kv_cache_gib": 0.06, "device": "cpu", "max_length": 48}
    asked = {"batch": question, "rewards": [(name, own | options) for name, own in wanted]}
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(asked), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for ours, theirs in zip(expected, found, strict=True):
        assert list(ours) == list(theirs)
        for head, scores in ours.items():
            assert len(set(scores)) > 3  # a runner that mixed up rows would not pass
            assert theirs[head] == pytest.approx(scores, abs=1e-4)
