"""What a rollout engine does around vLLM. With real vLLM: tests/integration/cluster/test_engines.py."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from policies.rollout import EngineSettings, _ended, _rollout, _text, vllm_arguments
from policies.types import RolloutRequest


def test_rollouts_that_end_soon_after_each_other_are_handed_over_together():
    async def ended() -> list[set[int]]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(3)]
        none = await _ended(futures, 0.01)
        loop.call_later(0.001, futures[2].set_result, None)
        loop.call_later(0.002, futures[0].set_result, None)
        two = await _ended(futures, 60.0)
        futures[1].set_result(None)
        all_ended = await _ended(futures, 60.0)
        return [{futures.index(future) for future in found} for found in (none, two, all_ended)]

    assert asyncio.run(ended()) == [set(), {0, 2}, {0, 1, 2}]


@pytest.mark.parametrize(
    ("labels", "spans"),
    [((("default", 2),), ((0, 2),)), ((("default", 1), ("1", 1)), ((0, 1), (1, 1))), ((("3", 0), ("4", 2)), ((4, 2),))],
)
def test_a_rollout_is_of_the_policy_of_its_first_token(labels, spans):
    ends = list(itertools.accumulate(length for _, length in labels))
    completion = SimpleNamespace(
        token_ids=[5, 6],
        logprobs=SimpleNamespace(token_ids=[5, 6], logprobs=[-1.0, -2.0]),
        weight_versions=[
            SimpleNamespace(version=label, start=end - length, end=end)
            for (label, length), end in zip(labels, ends, strict=True)
        ],
        finish_reason="stop",
    )
    request = RolloutRequest(prompt_tokens=(3,), seed=0, max_tokens=4)
    rollout = _rollout(request, SimpleNamespace(outputs=[completion]), "")
    assert (rollout.policy_version, rollout.version_spans) == (spans[0][0], spans)


@pytest.mark.parametrize("max_num_seqs", [1, 256, 4096, 8192])
def test_an_engine_on_a_gpu_takes_as_many_sequences_as_a_spec_may_ask_for(max_num_seqs, tmp_path):
    """Its default of tokens in a step does not: neither of its tables knows an engine that a program starts."""
    from vllm import AsyncEngineArgs
    from vllm.config import SchedulerConfig

    settings = EngineSettings(model=str(tmp_path), device="cuda", max_num_seqs=max_num_seqs)
    made = AsyncEngineArgs(**vllm_arguments(settings))
    asked = {"max_num_seqs": made.max_num_seqs, "max_model_len": 4096, "is_encoder_decoder": False}
    assert SchedulerConfig(max_num_batched_tokens=made.max_num_batched_tokens, **asked).max_num_batched_tokens == 8192
    if max_num_seqs > SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS:
        with pytest.raises(ValueError, match="must be greater than or equal to max_num_seqs"):
            SchedulerConfig(**asked)


def test_engines_read_what_the_learner_reads(tmp_path):
    """Mistral's repositories have its own formats too, by which vLLM would name weights otherwise."""
    from vllm.transformers_utils.config import get_config

    config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("params.json", "consolidated.safetensors"):
        (tmp_path / name).write_text("{}")
    arguments = vllm_arguments(EngineSettings(model=str(tmp_path)))
    found = get_config(tmp_path, trust_remote_code=False, config_format=arguments["config_format"])
    assert (found.hidden_size, arguments["tokenizer_mode"]) == (48, "hf")


HANDLES = """
import sys

import torch
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from policies.rollout import EngineSettings, RolloutEngine

weight = torch.zeros(2, 3, dtype=torch.bfloat16)  # and what `reduce_tensor` makes of one on a GPU
storage = type(weight._typed_storage())
handle = (
    type(weight), weight.size(), weight.stride(), 0, storage, weight.dtype, 0, b"handle", 12, 0, b"counter", 0,
    b"event", True, False,
)
AsyncLLM.from_engine_args = lambda *_, **__: sys.exit("starts")  # its own process, which inherits the environment
for transport in ("nccl", "shared_memory", "ipc"):
    try:
        RolloutEngine(EngineSettings(model=".", device="cuda", transport=transport))
    except SystemExit:
        pass
    try:
        sent = MsgpackEncoder().encode({"ipc_handles": [{"GPU-1": handle}]})
    except TypeError:
        print(transport, "refused")
    else:
        arrived = MsgpackDecoder().decode(sent)["ipc_handles"][0]["GPU-1"]
        print(transport, arrived == [list(part) if isinstance(part, tuple) else part for part in handle])
"""


def test_a_gpus_handles_reach_vllms_own_process_by_ipc_and_nothing_else_is_pickled():
    """Encoded and decoded as they go from an engine to its process. Apart, as vLLM sets up logs where it is loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run([sys.executable, "-c", HANDLES], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["nccl refused", "shared_memory refused", "ipc True"]


SAMPLED = """
import math, torch
from types import SimpleNamespace
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MinPLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from policies.rollout import EngineSettings, _sampling, vllm_arguments
from policies.types import RolloutRequest

probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).repeat(200, 1)
none = torch.empty(0)
sampler = Sampler(vllm_arguments(EngineSettings(model="m"))["logprobs_mode"])
for cut in ({}, {"top_k": 2}, {"min_p": 0.6}, {"top_p": 0.75}, {"top_k": 3, "min_p": 0.3}):
    asked = _sampling(RolloutRequest(prompt_tokens=(1,), seed=0, max_tokens=1, **cut))
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=200))
    least = MinPLogitsProcessor(config, torch.device("cpu"), False)
    added = [(i, asked, None, []) for i in range(200)]
    least.update_state(BatchUpdate(batch_size=200, removed=[], added=added, moved=[]))
    found = sampler(probabilities.log(), SamplingMetadata(
        temperature=torch.ones(200), all_greedy=False, all_random=True,
        top_p=torch.full((200,), asked.top_p) if asked.top_p < 1 else None,
        top_k=torch.full((200,), asked.top_k) if asked.top_k > 0 else None,
        generators={}, max_num_logprobs=0, no_penalties=True, prompt_token_ids=None, frequency_penalties=none,
        presence_penalties=none, repetition_penalties=none, output_token_ids=[[]] * 200, allowed_token_ids_mask=None,
        bad_words_token_ids={}, logitsprocs=LogitsProcessors([least]),
    ))
    tokens, logprobs = found.sampled_token_ids[:, 0].long(), found.logprobs_tensors.logprobs[:, 0]
    kept = sorted(set(tokens.tolist()))
    mass = probabilities[0, kept].sum()
    torch.testing.assert_close(logprobs, (probabilities[0, tokens] / mass).log())
    print("kept", *kept)
"""


def test_log_probabilities_are_those_of_the_tokens_that_may_be_sampled():
    """By vLLM's own sampler, whatever is cut off. The learner's ratio to them is the share that is left, at most 1."""
    done = subprocess.run([sys.executable, "-c", SAMPLED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = [line for line in done.stdout.splitlines() if line.startswith("kept")]
    assert kept == ["kept 0 1 2 3", "kept 0 1", "kept 0 1", "kept 0 1 2", "kept 0 1 2"]


class Letters:
    """A tokenizer of one letter for each token."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("request_options", "completion", "text"),
    [
        ({}, ("ab$", "", "stop", None), "ab"),
        ({}, ("ab", "", "length", None), "ab"),
        ({"stop": ("b",)}, ("ab", "a", "stop", "b"), "a"),
        ({"stop": ("b",), "include_stop": True}, ("ab", "a", "stop", "b"), "ab"),
        ({"stop": ("b",), "include_stop": True}, ("aa$", "aa", "stop", None), "aa"),
        ({"stop": ("b",)}, ("aa", "aa", "length", None), "aa"),
    ],
)
def test_a_text_ends_before_what_ended_it(request_options, completion, text):
    tokens, written, finish_reason, stop_reason = completion
    ended = SimpleNamespace(
        token_ids=[*map(ord, tokens)], text=written, finish_reason=finish_reason, stop_reason=stop_reason
    )
    request = RolloutRequest(prompt_tokens=(3,), seed=0, max_tokens=4, **request_options)
    assert _text(Letters(), request, ended) == text
