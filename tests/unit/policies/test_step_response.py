"""What a step's response says when it is measured on a share of the prompts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.estimators import Gdpo
from policies.estimators.base import whitening_factor
from policies.gramian import influence_of_response, response, response_part
from policies.learner import Learner, LearnerSettings
from policies.lora import Lora
from policies.rank_rows import token_shares
from policies.types import ObjectiveAdvantages, Rollout
from tests.support import make_policy

PROMPTS, GROUP, OBJECTIVES, VOCABULARY = 6, 3, 3, 100
WEIGHTS_K = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def rollout(prompt, tokens=(1,)):
    return Rollout(
        prompt_tokens=prompt, tokens=tokens, logprobs=(-4.6,) * len(tokens), text="", truncated=False, policy_version=0
    )


def groups(seed=0, prompts=PROMPTS):
    """Of unequal lengths, prompts and completions."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        size = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(0, VOCABULARY, (size,), generator=generator).tolist())

    firsts = [(at, *tokens(3, 9)) for at in range(prompts)]
    return [rollout(first, tokens(2, 14)) for first in firsts for _ in range(GROUP)]


def advantages(seed=0, prompts=PROMPTS):
    """(combined, parts) of random rewards under gdpo."""
    generator = torch.Generator().manual_seed(seed)
    rewards_PGK = torch.rand(prompts, GROUP, OBJECTIVES, generator=generator, dtype=torch.float64)
    parts_PGK = Gdpo().per_objective(rewards_PGK)
    parts = ObjectiveAdvantages(
        advantages_BK=parts_PGK.flatten(0, 1).float(),
        weights_K=whitening_factor(parts_PGK, WEIGHTS_K) * WEIGHTS_K,
    )
    return Gdpo()(rewards_PGK, WEIGHTS_K).flatten().float(), parts


# ------------------------------------------------------------------------------------------------------------ drawing


@st.composite
def batches(draw):
    """Rollouts whose prompts come in any order, and a part of them in any order: as minibatches have them."""
    prompts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=24))
    part = draw(st.permutations(range(len(prompts))))
    return [rollout((prompt,)) for prompt in prompts], part[: draw(st.integers(1, len(part)))]


@given(batches(), st.floats(0, 1, exclude_min=True), st.integers(0, 2**50))
def test_a_part_is_whole_groups_of_about_the_share(batch, share, seed):
    rollouts, part = batch
    found = response_part(rollouts, part, share=share, seed=seed)
    assert found == response_part(rollouts, part, share=share, seed=seed)
    drawn = {rollouts[i].prompt_tokens for i in found}
    assert found == [i for i in part if rollouts[i].prompt_tokens in drawn]  # all of each, as they stood
    prompts = len({rollouts[i].prompt_tokens for i in part})
    assert abs(len(drawn) - share * prompts) <= 0.5 or (len(drawn) == 1 and share * prompts < 0.5)


@given(batches(), st.integers(0, 2**50))
def test_a_share_of_one_is_all_as_it_stood(batch, seed):
    rollouts, part = batch
    assert response_part(rollouts, part, share=1.0, seed=seed) == list(part)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_in_the_mean_a_part_responds_as_the_whole(share):
    """n / N of it, for every objective: within five standard errors of the mean over 2,000 draws."""
    rollouts, (_, parts) = groups(prompts=10), advantages(prompts=10)
    moved_B1 = torch.randn(len(rollouts), 1, generator=torch.Generator().manual_seed(1))

    def responded(part):
        weights_B1 = torch.ones(len(part), 1)
        return response(torch.zeros(len(part), 1), moved_B1[part], weights_B1, parts.advantages_BK[part])

    whole_K = responded(list(range(len(rollouts))))
    draws = [responded(response_part(rollouts, range(len(rollouts)), share=share, seed=seed)) for seed in range(2000)]
    draws_NK = torch.stack(draws)
    error_K = draws_NK.std(dim=0) / len(draws_NK) ** 0.5
    expected_K = whole_K * max(1, round(share * 10)) / 10
    assert bool(((draws_NK.mean(dim=0) - expected_K).abs() < 5 * error_K).all())
    assert float((expected_K / error_K).abs().max()) > 10  # the mean is known well enough to say so


@given(st.floats(1e-6, 1e6), st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_a_multiple_of_a_response_says_the_same(factor, others):
    response_K = torch.tensor([3.0, *others], dtype=torch.float64)
    weights_K = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    found, expected = (influence_of_response(r_K, weights_K, 0.7) for r_K in (factor * response_K, response_K))
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(make_policy(tmp_path_factory.mktemp("policies") / "qwen3", architecture="qwen3", context=48))


def make_learner(policy, **changes):
    settings = LearnerSettings(
        model=policy, lr=1e-3, max_grad_norm=1e9, threads=1, max_tokens=40, tokens_per_microbatch=100,
        gramian="step_response",
    )  # fmt: skip
    return Learner(replace(settings, **changes))


def expected_influence(learner, share):
    """(measured, expected) of an update: from the log-probabilities of all rollouts before and after it."""
    rollouts, (combined, parts) = groups(), advantages()
    order = list(range(len(rollouts)))
    if learner.settings.minibatches > 1:  # the update of the first one alone is measured
        order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(0)).tolist()
    first = order[: len(rollouts) // learner.settings.minibatches]
    drawn = response_part(rollouts, first, share=share, seed=0)
    step, scores, norms = learner._step, [learner.logprobs(rollouts)], []

    def step_and_look(*arguments):
        made = step(*arguments)
        scores.append(learner.logprobs(rollouts))
        norms.append(arguments[-1].grad_norms[-1])
        return made

    learner._step = step_and_look
    found = learner.learn(rollouts, combined, parts=parts)
    before, after = ([torch.tensor(row) for row in rows] for rows in scores[:2])
    weights_BT = token_shares(rollouts, first, learner.settings)
    response_K = torch.zeros(OBJECTIVES, dtype=torch.float64)
    for rows in learner._microbatches(rollouts, drawn):
        for i, weights_T in zip(rows.index, weights_BT(rows), strict=True):
            sampler = torch.tensor(rollouts[i].logprobs)
            weights_T = weights_T[: len(sampler)] * torch.exp(before[i] - sampler).clamp_max(2.0)
            response_K += float((weights_T * (after[i] - before[i])).sum()) * parts.advantages_BK[i].double()
    whole = float(response_K @ parts.weights_K)
    factor = float(parts.weights_K.sum())
    assert whole > 0
    expected_K = OBJECTIVES * min(norms[0] / factor, 1.0) ** 2 * factor * response_K / whole
    return torch.tensor(found.influence_K, dtype=torch.float64), expected_K


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
@pytest.mark.parametrize(
    "changes",
    [
        {"share_prompts": False},
        {"share_prompts": False, "packing": True},
        {"share_prompts": True},
        {"aggregation": "sequence_mean", "kl_coef": 0.3},
        {"gradient_checkpointing": True, "chunk_logits": 600},
        {"lora": Lora(rank=4, alpha=8), "lr": 1e-2},
        {"minibatches": 2},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_it_is_measured_on_the_drawn_rollouts(policy, changes, share):
    """One prompt at the least; and with a share of 1 on all."""
    found_K, expected_K = expected_influence(make_learner(policy, response_share=share, **changes), share)
    assert bool(found_K.any())
    torch.testing.assert_close(found_K, expected_K, rtol=1e-2, atol=1e-3 * float(expected_K.abs().max()))


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_share_changes_no_update(policy, minibatches):
    """Up to rounding, nor the order in which the next batches are shuffled."""
    plain = make_learner(policy, gramian=None, minibatches=minibatches)
    others = [make_learner(policy, response_share=share, minibatches=minibatches) for share in (1.0, 0.4)]
    start = torch.cat([p.detach().flatten().clone() for p in plain.parameters])
    for step in range(3):
        combined, parts = advantages(step)
        loss = plain.learn(groups(step), combined).loss
        for learner in others:
            assert learner.learn(groups(step), combined, parts=parts).loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    end = torch.cat([p.detach().flatten() for p in plain.parameters])
    for learner in others:
        found = torch.cat([p.detach().flatten() for p in learner.parameters])
        assert float((found - end).norm() / (end - start).norm()) < 1e-3


def watched(learner):
    """What goes through the policy from here on: (rollouts, rows, whether with gradients) of each microbatch."""
    seen, scorer = [], learner.scorer

    class Watched(torch.nn.Module):
        def forward(self, rows):
            seen.append((rows.index, rows.input_ids_rt.tolist(), torch.is_grad_enabled()))
            return scorer(rows)

    learner.scorer = Watched()
    learner.scorer.shares_prompts = scorer.shares_prompts
    return seen


def test_the_drawn_stand_before_and_after_in_the_same_rows(policy):
    """So that without a move there is no response, whatever the processor's rounding makes of a layout."""
    learner = make_learner(policy, response_share=0.5, dtype="bfloat16", max_grad_norm=1.0)
    seen = watched(learner)
    rollouts, (combined, parts) = groups(), advantages()
    learner.learn(rollouts, combined, parts=parts)
    before, after = ([row[:2] for row in seen if row[2] is learns] for learns in (True, False))
    assert after == before[: len(after)]
    assert 0 < sum(len(index) for index, _ in after) == len(rollouts) // 2
    assert sorted(i for index, _ in before for i in index) == list(range(len(rollouts)))


def test_every_step_and_seed_draws_other_prompts_and_a_resume_the_same(policy, tmp_path):
    learner, other, resumed = (make_learner(policy, response_share=0.5, seed=seed) for seed in (0, 1, 0))
    seen = {one: watched(one) for one in (learner, other, resumed)}

    def learn(one, step):
        """(what it reports, the rollouts that were read again)."""
        seen[one].clear()
        combined, parts = advantages(step)
        stats = one.learn(groups(step), combined, parts=parts)
        return stats, sorted(i for index, _, learns in seen[one] if not learns for i in index)

    drawn = [learn(learner, step)[1] for step in range(3)]
    assert len({*map(tuple, drawn)}) == 3
    assert learn(other, 0)[1] != drawn[0]
    learner.save_state(tmp_path)
    resumed.load_state(tmp_path)
    assert learn(resumed, 3) == learn(learner, 3)
    assert learn(resumed, 4) == learn(learner, 4)


def test_the_mean_influence_over_draws_tends_to_that_of_all(policy):
    """A ratio's: off by less the more prompts are drawn, and at a half by less than a tenth."""
    rollouts, (combined, parts) = groups(prompts=12), advantages(prompts=12)
    whole = make_learner(policy, response_share=1.0, tokens_per_microbatch=2000)
    before = whole.logprobs(rollouts)
    found = whole.learn(rollouts, combined, parts=parts)
    after = whole.logprobs(rollouts)
    tokens = sum(map(len, before))
    moved_B = torch.tensor(
        [sum(b - a for a, b in zip(x, y, strict=True)) / tokens for x, y in zip(before, after, strict=True)]
    )
    assert parts.weights_K is not None

    def influence_of(part):
        response_K = moved_B[part].double() @ parts.advantages_BK[part].double()
        return influence_of_response(response_K, parts.weights_K, found.grad_norm)

    everything = list(range(len(rollouts)))
    whole_K = influence_of(everything)
    errors = []
    for share in (0.1, 0.25, 0.5):
        draws = [influence_of(response_part(rollouts, everything, share=share, seed=seed)) for seed in range(1000)]
        errors.append(float((torch.stack(draws).mean(dim=0) - whole_K).norm() / whole_K.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
