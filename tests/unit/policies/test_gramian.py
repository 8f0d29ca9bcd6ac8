"""How the learner measures the objectives' gradients in each mode, and what the update is beside it."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from policies.estimators import Gdpo
from policies.estimators.base import whitening_factor
from policies.gramian import in_last_block, influence_of_response, inner_products, response
from policies.learner import Learner, LearnerSettings
from policies.types import ObjectiveAdvantages, Rollout
from policies.weighting.gradient import influence
from tests.support import make_policy

PROMPTS, GROUP, OBJECTIVES, VOCABULARY = 3, 4, 3, 100
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
DURING = ("sketch", "last_block", "step_response")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(make_policy(tmp_path_factory.mktemp("policies") / "qwen3", architecture="qwen3", context=48))


def make_learner(policy, **changes):
    settings = {"lr": 1e-3, "max_grad_norm": 1e9, "threads": 1, "max_tokens": 40, "tokens_per_microbatch": 100}
    return Learner(LearnerSettings(model=policy, **(settings | changes)))


def make_rollouts(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        size = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, VOCABULARY, (size,), generator=generator).tolist())

    found = []
    for _ in range(PROMPTS * GROUP):
        prompt, completion = tokens(1, 9), tokens(2, 14)
        noise = (torch.rand(len(completion), generator=generator) - 0.5).tolist()
        logprobs = tuple(-4.6 + value for value in noise)
        found.append(
            Rollout(
                prompt_tokens=prompt, tokens=completion, logprobs=logprobs, text="", truncated=False, policy_version=0
            )
        )
    return found


def advantages(seed=0):
    """(combined, parts) of random rewards under gdpo."""
    generator = torch.Generator().manual_seed(seed)
    rewards_PGK = torch.rand(PROMPTS, GROUP, OBJECTIVES, generator=generator, dtype=torch.float64)
    parts_PGK = Gdpo().per_objective(rewards_PGK)
    weights_K = whitening_factor(parts_PGK, WEIGHTS) * WEIGHTS
    parts = ObjectiveAdvantages(advantages_BK=parts_PGK.flatten(0, 1).float(), weights_K=weights_K)
    return Gdpo()(rewards_PGK, WEIGHTS).flatten(), parts


def parameters(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters])


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("mode", DURING)
def test_measuring_changes_no_update(policy, mode, minibatches, kl_coef):
    """Up to rounding: the policy after two steps is that of a learner that measures nothing."""
    plain, measuring = (make_learner(policy, gramian=mode, minibatches=minibatches, kl_coef=kl_coef) for _ in range(2))
    start = parameters(plain)
    for step in range(2):
        combined, parts = advantages(step)
        one = plain.learn(make_rollouts(step), combined)
        other = measuring.learn(make_rollouts(step), combined, parts=parts)
        assert other.loss == pytest.approx(one.loss, rel=1e-4, abs=1e-6)
        assert other.kl == (pytest.approx(one.kl, rel=1e-4, abs=1e-9) if kl_coef else None)
        assert other.gramian_KK is not None or other.influence_K is not None
    moved = (parameters(plain) - start).norm()
    assert float((parameters(measuring) - parameters(plain)).norm() / moved) < 1e-3


def measured(policy, mode, *, rollouts, parts, combined, **changes):
    stats = make_learner(policy, gramian=mode, **changes).learn(rollouts, combined, parts=parts)
    return torch.tensor(stats.gramian_KK, dtype=torch.float64)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_the_sketch_estimates_the_exact_one(policy, kl_coef):
    rollouts, (combined, parts) = make_rollouts(), advantages()
    exact = make_learner(policy).gramian(rollouts, parts.advantages_BK)
    found = measured(
        policy, "sketch", rollouts=rollouts, parts=parts, combined=combined, sketch_width=64, kl_coef=kl_coef
    )
    assert float((found - exact).norm() / exact.norm()) < 0.15
    assert float((influence(found) - influence(exact)).abs().max() / influence(exact).abs().max()) < 0.15


def test_every_step_and_seed_draws_other_projections(policy):
    rollouts, (combined, parts) = make_rollouts(), advantages()
    learners = [make_learner(policy, gramian="sketch", lr=1e-12, seed=seed) for seed in (0, 0, 1)]
    found = [[learner.learn(rollouts, combined, parts=parts).gramian_KK for _ in range(2)] for learner in learners]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert found[0][0] != found[2][0]


def test_the_last_block_is_that_part_of_the_exact_one(policy):
    rollouts, (combined, parts) = make_rollouts(), advantages()
    learner = make_learner(policy)
    learner.gramian(rollouts, parts.advantages_BK)
    chosen = in_last_block(learner.model)
    names = [name for name, _ in learner.model.named_parameters()]
    places = [i for i, name in enumerate(names) if chosen(name.rpartition(".")[0])]
    assert 0 < len(places) < len(names)
    assert all(".1." in names[i] for i in places)
    held = learner._held.gradients
    expected = inner_products([[gradients[i] for i in places] for gradients in held])
    found = measured(policy, "last_block", rollouts=rollouts, parts=parts, combined=combined)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))


def test_the_response_is_the_move_along_each_gradient(policy):
    """With a small step of plain gradient descent, response_k = lr <g_k, g_w>; its influence is the Gramian's."""
    rollouts, (combined, parts) = make_rollouts(), advantages()
    exact = make_learner(policy).gramian(rollouts, parts.advantages_BK)
    learner = make_learner(policy, gramian="step_response", response_share=1.0)
    learner.optimizer = torch.optim.SGD(learner.parameters, lr=1e-3)
    learner.scheduler = torch.optim.lr_scheduler.LambdaLR(learner.optimizer, lambda _: 1.0)
    stats = learner.learn(rollouts, combined, parts=parts)
    length = float(WEIGHTS @ exact @ WEIGHTS) ** 0.5
    assert length > 1  # counts as 1, like a gradient in the Gramian's own influence
    expected_K = OBJECTIVES * exact @ WEIGHTS / length**2
    torch.testing.assert_close(torch.tensor(stats.influence_K, dtype=torch.float64), expected_K, rtol=0.03, atol=0.01)


def test_a_response_by_hand():
    before, after = torch.zeros(2, 2), torch.tensor([[0.1, 0.3], [-0.2, 0.0]])
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    found = response(before, after, weights, torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))
    assert found.tolist() == pytest.approx([0.4, -0.4])  # moved 0.2 and -0.2


def test_influence_of_a_response_by_hand():
    """Weights 2 and 2 are w = (.5, .5) scaled by c = 4; |g_w'|^2 = 8: I_k = 2 * 8 / 4^2 * response_k / (.5 * 3)."""
    found = influence_of_response(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]), 8**0.5)
    assert found.tolist() == pytest.approx([2 / 3, 4 / 3])


@pytest.mark.parametrize("bad", [[-1.0, 0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_an_update_that_did_not_help_says_nothing(bad):
    assert not influence_of_response(torch.tensor(bad), torch.tensor([0.5, 0.5]), 1.0).any()


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["exact", *DURING])
def test_in_bfloat16_every_mode_learns_and_measures(policy, mode, checkpointing, kl_coef):
    changes = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing, "kl_coef": kl_coef, "minibatches": 2}
    learner = make_learner(policy, gramian=mode, **changes)
    plain = make_learner(policy, gramian=None, **changes)
    rollouts, (combined, parts) = make_rollouts(), advantages()
    reference = make_learner(policy).gramian(rollouts, parts.advantages_BK)
    found = learner.gramian(rollouts, parts.advantages_BK) if mode == "exact" else None
    stats = learner.learn(rollouts, combined, parts=parts)
    plain.generator.manual_seed(0)
    assert plain.learn(rollouts, combined).loss == pytest.approx(stats.loss, rel=0.05, abs=0.02)
    if mode == "exact":
        half = make_learner(policy, minibatches=2)
        expected = half.gramian(rollouts, parts.advantages_BK)
        assert float((found - expected).norm() / expected.norm()) < 0.05
    assert stats.gramian_KK or stats.influence_K or mode == "exact"
    assert reference.isfinite().all()


def test_without_any_advantage_nothing_is_measured_and_nothing_moves(policy):
    learner = make_learner(policy, gramian="sketch")
    before = parameters(learner)
    rollouts = make_rollouts()
    zeros = torch.zeros(len(rollouts))
    parts = ObjectiveAdvantages(advantages_BK=torch.zeros(len(rollouts), OBJECTIVES), weights_K=WEIGHTS)
    assert learner.learn(rollouts, zeros, parts=parts).gramian_KK is None
    assert torch.equal(parameters(learner), before)


@pytest.fixture(scope="module")
def unknown_policy(tmp_path_factory, policy):
    folder = tmp_path_factory.mktemp("policies") / "gpt2"
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=48, bos_token_id=1, eos_token_id=2
        )
    ).save_pretrained(folder)
    for file in Path(policy).glob("token*"):
        shutil.copy(file, folder)
    return str(folder)


def test_layers_that_are_not_known_are_differentiated_again_and_again(unknown_policy):
    rollouts, (combined, parts) = make_rollouts(), advantages()
    learner, plain = make_learner(unknown_policy), make_learner(unknown_policy)
    found = learner.gramian(rollouts, parts.advantages_BK)
    assert torch.linalg.eigvalsh(found).min() > -1e-6
    learner.learn(rollouts, combined, parts=parts)
    plain.learn(rollouts, combined)
    torch.testing.assert_close(parameters(learner), parameters(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["sketch", "last_block"])
def test_modes_that_need_known_layers_say_so_at_the_start(unknown_policy, mode):
    with pytest.raises(ValueError, match=r"gramian.mode: \w+ can't read this model: .*; use exact"):
        make_learner(unknown_policy, gramian=mode)


def test_surviving_is_one_on_the_first_minibatch_and_measured_later(policy):
    rollouts, (combined, _) = make_rollouts(), advantages()
    assert make_learner(policy).learn(rollouts, combined).surviving_B == pytest.approx([1.0] * len(rollouts))
    later = make_learner(policy, minibatches=3, lr=0.1).learn(rollouts, combined).surviving_B
    assert min(later) < 0.9
