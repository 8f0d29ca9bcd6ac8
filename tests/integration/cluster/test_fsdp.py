"""Gradients of sharded models: two processes with FSDP2 measure what one process does."""

import datetime
import functools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import Qwen3Config, Qwen3ForCausalLM

from policies.capture import Capture
from policies.gramian import FullGradients, SketchedGradients, backward_passes, inner_products, separable
from policies.ranks import Ranks

ROLLOUTS, OBJECTIVES, RANKS = 6, 3, 2


def make_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2))


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 50, (ROLLOUTS, 10), generator=generator), torch.randn(ROLLOUTS, 3, generator=generator)


def losses(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(-1)
    return -torch.exp(logprobs - logprobs.detach()).sum(dim=1) / (ROLLOUTS * ids.shape[1])


def measure(model, parameters, capture, ids, advantages, made, ratios):
    """Gramians of these rollouts by K passes, from one captured pass and sketched; and the gradients, both ways."""
    found = losses(model, ids)
    gradients = backward_passes([(found * advantages[:, k]).sum() for k in range(OBJECTIVES)], parameters)
    sink = SketchedGradients(parameters, width=16, seed=3)
    with capture.recording(sink, ratios):
        (losses(model, ids) * made).sum().backward()
    shared = FullGradients(parameters, OBJECTIVES)
    with capture.recording(shared, advantages, weight_gradients=False):
        losses(model, ids).sum().backward()
    return {
        "passes": inner_products(gradients),
        "shared": shared.gramian(),
        "sketch": sink.gramian(),
        "gradients": gradients,
        "shared_gradients": shared.gradients,
    }


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place, patience = f"file://{folder}/group", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=RANKS, timeout=patience)
    model = make_model()
    Ranks(torch.device("cpu")).shard(model, model.model.layers, "float32")
    parameters, capture = list(model.parameters()), Capture(model)
    ids, advantages = batch()
    made, ratios = separable(advantages.sum(dim=1), advantages)
    mine = slice(rank * ROLLOUTS // RANKS, (rank + 1) * ROLLOUTS // RANKS)
    found = measure(model, parameters, capture, ids[mine], advantages[mine], made[mine], ratios[mine])
    for name in ("gradients", "shared_gradients"):
        found[name] = [[part.full_tensor() for part in parts] for parts in found[name]]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("fsdp")
    mp.spawn(functools.partial(rank_main, folder=str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    model = make_model()
    ids, advantages = batch()
    made, ratios = separable(advantages.sum(dim=1), advantages)
    return measure(model, list(model.parameters()), Capture(model), ids, advantages, made, ratios)


@pytest.mark.parametrize("way", ["passes", "shared"])
def test_the_gramian_is_that_of_k_passes_in_one_process(ranks, alone, way):
    expected = alone["passes"]
    for found in (*ranks, alone):
        torch.testing.assert_close(found[way], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("way", ["gradients", "shared_gradients"])
def test_the_gradients_are_those_of_k_passes_in_one_process(ranks, alone, way):
    expected = alone["gradients"]
    largest = max(float(part.abs().max()) for parts in expected for part in parts)
    for found in (*ranks, alone):
        for parts, others in zip(found[way], expected, strict=True):
            assert max(float((a - b).abs().max()) for a, b in zip(parts, others, strict=True)) < 1e-5 * largest


def test_ranks_agree_on_the_sketch_and_it_is_that_of_one_process(ranks, alone):
    sketch = alone["sketch"]
    assert torch.equal(ranks[0]["sketch"], ranks[1]["sketch"])
    torch.testing.assert_close(ranks[0]["sketch"], sketch, rtol=1e-4, atol=1e-5 * float(sketch.abs().max()))
