"""Steps to weigh: what a weighting rule is given, from one number to everything that is measured."""

import torch

from policies.types import FrontStats, Objectives, StepStats

NAN = float("nan")


def names_of(count):
    return tuple(f"o{k}" for k in range(count))


def objectives_of(count, *, ranges=None, targets=None, signs=None):
    return Objectives(
        names=names_of(count),
        ranges_K2=torch.tensor(ranges or [[0.0, 1.0]] * count, dtype=torch.float64),
        targets_K=torch.tensor(targets or [NAN] * count, dtype=torch.float64),
        target_signs_K=torch.tensor(signs or [1.0] * count, dtype=torch.float64),
    )


def stats(step=1, *, preference, gramian=None, front=None, rewards=None, advantages=None, objectives=None, **other):
    count = len(preference)
    rewards = torch.rand(2, 4, count) if rewards is None else torch.as_tensor(rewards)
    return StepStats(
        step=step,
        objectives=objectives or objectives_of(count),
        rewards_PGK=rewards,
        advantages_PGK=torch.nan_to_num(rewards) if advantages is None else torch.as_tensor(advantages),
        preference_K=torch.tensor(preference, dtype=torch.float32),
        gramian_KK=gramian,
        front=front,
        **other,
    )


def front_of(step, growth, points=2, objectives=3):
    points_NK = torch.rand(points, objectives, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return FrontStats(step=step, growth=growth, points_NK=points_NK, current_K=points_NK[-1])


def gramian_of(count, seed, scale=1.0):
    gradients = scale * torch.randn(count, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.T


def rich_stats(step, count, *, preference=None):
    """A step with everything measured; every second objective has a target."""
    generator = torch.Generator().manual_seed(1000 * count + step)
    rewards = torch.rand(3, 4, count, generator=generator)
    if preference is None:
        preference = torch.softmax(torch.randn(count, generator=torch.Generator().manual_seed(count)), 0).tolist()
    return stats(
        step,
        preference=preference,
        rewards=rewards,
        advantages=rewards - rewards.mean(dim=1, keepdim=True),
        gramian=gramian_of(count, step),
        front=front_of(step, 0.01 * (step % 3), points=3, objectives=count),
        objectives=objectives_of(
            count,
            targets=[0.6 if k % 2 else NAN for k in range(count)],
            signs=[-1.0 if k % 4 == 3 else 1.0 for k in range(count)],
        ),
    )


def two(first, second):
    """One prompt's rewards of two objectives."""
    return torch.tensor([first, second], dtype=torch.float64).T[None]
