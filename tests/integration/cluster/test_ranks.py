"""Two ranks are one learner: the same losses, Gramians, weights and checkpoints as one process has."""

import contextlib
import datetime
import functools
import gc
import os
import random
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from policies import learner_state
from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.types import ObjectiveAdvantages, Rollout
from tests.support import make_policy

RANKS, ROLLOUTS, OBJECTIVES, STEPS, LR = 2, 10, 3, 4, 3e-3
WEIGHTS_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
VARIANTS = {
    "exact": {"kl_coef": 0.1, "minibatches": 2},
    "sketch": {"packing": True},
    "last_block": {"gradient_checkpointing": True, "chunk_logits": 300},
    "step_response": {"tokens_per_microbatch": 24, "response_share": 1.0},
    "share": {"gramian": "step_response", "tokens_per_microbatch": 24, "response_share": 0.5},
    "least": {"gramian": "step_response", "share_prompts": False, "response_share": 0.01, "minibatches": 2},
    "adapter": {"gramian": "exact", "kl_coef": 0.1, "minibatches": 2, "lora": Lora(rank=4, alpha=8)},
    "offload": {"gramian": "step_response", "kl_coef": 0.1, "cpu_offload": True},
    "bfloat16": {"gramian": "sketch", "kl_coef": 0.1, "dtype": "bfloat16"},
}


def batch(seed: int) -> list[Rollout]:
    """One of them much longer than the others, so that one rank has it and another microbatch more or less.

    Some have a prompt in common, so that steps whose gradients are not told apart share it.
    """
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(90) for _ in range(rng.randint(1, 6))) for _ in range(4)]
    made = []
    for length in (30, *(rng.randint(2, 12) for _ in range(ROLLOUTS - 1))):
        made.append(
            Rollout(
                prompt_tokens=rng.choice(prompts),
                tokens=tuple(rng.randrange(90) for _ in range(length)),
                logprobs=tuple(-4.6 + rng.uniform(-0.3, 0.3) for _ in range(length)),
                text="",
                truncated=False,
                policy_version=0,
            )
        )
    return made


def step(learner: Learner, seed: int) -> dict[str, object]:
    rollouts = batch(seed)
    advantages_BK = torch.randn(ROLLOUTS, OBJECTIVES, generator=torch.Generator().manual_seed(seed))
    exact = learner.settings.gramian == "exact"
    gramian_KK = learner.gramian(rollouts, advantages_BK).tolist() if exact else None
    parts = ObjectiveAdvantages(advantages_BK=advantages_BK, weights_K=WEIGHTS_K)
    stats = learner.learn(rollouts, advantages_BK @ WEIGHTS_K.float(), parts=parts)
    figures = ("loss", "grad_norm", "entropy", "kl", "clip_share", "importance_mean", "sampler_gap", "surviving_B")
    measured = gramian_KK or stats.gramian_KK or stats.influence_K
    known = {name: value for name in figures if (value := getattr(stats, name)) is not None}
    return known | {"measured": measured}


def make_learner(policy: str, mode: str) -> Learner:
    options = {"gramian": mode, **VARIANTS[mode]}
    if not dist.is_initialized():  # what has no group keeps its weights where it uses them
        options.pop("cpu_offload", None)
    return Learner(LearnerSettings(model=policy, threads=1, lr=LR, **options))


def story(policy: str, folder: Path) -> dict[str, object]:
    """Steps in every mode; then, exactly resumed in the middle, the last of them once more; and a batch of one."""
    told: dict[str, object] = {}
    for mode in VARIANTS:
        learner = make_learner(policy, mode)
        told[mode] = [step(learner, seed) for seed in range(STEPS)]
        told[f"{mode} weights"] = {name: tensor.clone() for name, tensor in learner.weights().items()}
        if mode == "exact":
            told["scores"] = learner.logprobs(batch(0))
            folder.mkdir(exist_ok=True)
            learner.save_state(folder)
            learner.save_policy(folder / "policy")
            (folder / "beside").mkdir(exist_ok=True)
            (folder / "refused").mkdir(exist_ok=True)
            (folder / "refused" / "file").touch()
            told["refused"] = str(
                learner.begin_save(folder / "refused" / "file" / "policy", folder / "refused").exception(60)
            )
            told["copies kept"] = copies_kept(learner, folder / "file")
            saving = learner.begin_save(folder / "beside" / "policy", folder / "beside")
            told["after"] = step(learner, STEPS)  # whose exchanges the save's must not meet
            saving.result(60)
            told["resumed"] = after(policy, folder)
            told["resumed beside"] = after(policy, folder / "beside")
        if mode == "adapter":
            (folder / mode).mkdir(exist_ok=True)  # every rank does
            learner.save_state(folder / mode)
            told["adapter after"] = step(learner, STEPS)
            told["adapter resumed"] = after(policy, folder / mode, mode)
        if mode == "share":
            (folder / mode).mkdir(exist_ok=True)
            learner.save_state(folder / mode)
            told["share after"] = step(learner, STEPS)
            told["share resumed"] = after(policy, folder / mode, mode)
    told["one rollout"] = make_learner(policy, "sketch").learn(batch(0)[:1], torch.ones(1)).loss
    return told


def copies_kept(learner: Learner, folder: Path) -> tuple[int, int]:
    """(copies that a save beside takes, those that are left once the ranks' parts of the state were refused).

    After a collection: torch's own error of several ranks refers to itself.
    """
    copies: list[weakref.ref[torch.Tensor]] = []
    copied = learner_state._copied

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        made = copied(tensor)
        copies.append(weakref.ref(made))
        return made

    folder.touch()  # where a directory is to be
    learner_state._copied = counted
    try:
        saving = learner.begin_save(folder / "policy", folder)
        assert isinstance(saving.exception(60), OSError)
        learner._beside.submit(int).result(60)  # its thread is done with it
        gc.collect()
        return len(copies), sum(copy() is not None for copy in copies)
    finally:
        learner_state._copied = copied


def after(policy: str, folder: Path, mode: str = "exact") -> dict[str, object]:
    learner = make_learner(policy, mode)
    learner.load_state(folder)
    return step(learner, STEPS)


def rank_main(rank: int, policy: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS, timeout=patience)
    told = story(policy, Path(folder) / "ranks")
    told["of one"] = after(policy, Path(folder) / "alone")
    told["adapter of one"] = after(policy, Path(folder) / "alone" / "adapter", "adapter")
    told["share of one"] = after(policy, Path(folder) / "alone" / "share", "share")
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(make_policy(tmp_path_factory.mktemp("policy"), architecture="qwen3"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(policy, folder):
    return story(policy, folder / "alone")


@pytest.fixture(scope="module")
def ranks(policy, folder, alone):  # noqa: ARG001  # resumes what it saved
    mp.spawn(functools.partial(rank_main, policy=policy, folder=str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def close(found, expected, tolerance=1e-4):
    """Figures by name, the measured ones by their size."""
    for name, value in expected.items():
        one, other = torch.tensor(found[name]).double(), torch.tensor(value).double()
        scale = max(1.0, float(other.abs().max())) if name != "measured" else float(other.abs().max())
        assert float((one - other).abs().max()) <= tolerance * scale, name


def tolerance(mode):
    """In bfloat16, whose last bit is .4 %, ranks round what one does not: all that blocks hand on, norms' weights."""
    if VARIANTS[mode].get("dtype") == "bfloat16":
        return 3e-2
    return 1e-3 if VARIANTS[mode].get("gramian", mode) == "step_response" else 1e-4


@pytest.mark.parametrize("mode", VARIANTS)
def test_ranks_report_what_one_does(ranks, alone, mode):
    for told in ranks:
        for found, expected in zip(told[mode], alone[mode], strict=True):
            close(found, expected, tolerance(mode))
    assert alone[mode][0]["measured"] is not None


@pytest.mark.parametrize("mode", VARIANTS)
def test_ranks_have_the_weights_that_one_has(ranks, alone, mode):
    expected = alone[f"{mode} weights"]
    found = ranks[0][f"{mode} weights"]
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if VARIANTS[mode].get("dtype") == "bfloat16":  # Adam makes a whole step of a rounded gradient's sign
            assert tensor.dtype == torch.bfloat16
            assert float((tensor - expected[name]).float().abs().mean()) < LR / 4
        else:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    assert ranks[1][f"{mode} weights"] == {}  # one copy is enough


def test_one_rank_in_a_group_of_its_own_may_offload(policy, alone, tmp_path, monkeypatch):
    """And a checkpoint of it is one process's."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        learner = make_learner(policy, "offload")
        for found, expected in zip([step(learner, seed) for seed in range(STEPS)], alone["offload"], strict=True):
            close(found, expected, 1e-3)
        for name, tensor in learner.weights().items():
            torch.testing.assert_close(tensor, alone["offload weights"][name], rtol=1e-3, atol=1e-4)
        learner.save_state(tmp_path)
        learner.save_policy(tmp_path / "policy")
        further = step(learner, STEPS)
        assert after(policy, tmp_path, "offload") == further
    finally:
        dist.destroy_process_group()
    close(after(policy, tmp_path, "offload"), further, 1e-3)


def test_every_rank_has_all_scores(ranks, alone):
    for told in ranks:
        for found, expected in zip(told["scores"], alone["scores"], strict=True):
            assert found == pytest.approx(expected, abs=1e-3)


def test_the_exported_policy_is_whole(ranks, folder):
    exported = load_file(folder / "ranks" / "policy" / "model.safetensors")
    weights = ranks[0]["exact weights"]
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights.items())


def test_a_checkpoint_is_resumed_exactly_by_as_many(ranks, alone):
    for told in (*ranks, alone):
        assert told["resumed"] == told["resumed beside"] == told["after"]
        taken, kept = told["copies kept"]
        assert taken > 10
        assert kept == 0
        assert ("Not a directory" in told["refused"]) is (told is not ranks[1])  # the first alone writes the policy
        assert told["adapter resumed"] == told["adapter after"]
        assert told["share resumed"] == told["share after"]


def test_a_checkpoint_is_resumed_by_another_number_of_ranks(ranks, alone, policy, folder):
    """Two write shards that one goes on from, and the other way round."""
    assert {path.suffix for path in (folder / "ranks" / "learner").glob("*.distcp")} == {".distcp"}
    close(after(policy, folder / "ranks"), ranks[0]["after"])
    for told in ranks:
        close(told["of one"], alone["after"])
        close(told["adapter of one"], alone["adapter after"])
        close(told["share of one"], alone["share after"], 1e-3)


def test_a_rank_without_a_rollout_keeps_in_step(ranks, alone):
    assert ranks[0]["one rollout"] == ranks[1]["one rollout"] == pytest.approx(alone["one rollout"], abs=1e-5)


def test_a_disk_that_refuses_is_told_in_its_own_words(policy, folder, ranks, monkeypatch):  # noqa: ARG001  # a saved one
    """torch's own error is no Exception, and would end the process."""
    (part,) = sorted((folder / "ranks" / "learner").glob("*1_0.distcp"))
    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", refuse)
    with pytest.raises(OSError, match="no such disk"):
        after(policy, part.parents[1])


@contextlib.contextmanager
def refuse(*_arguments):
    raise OSError("no such disk")
    yield
