"""Rollouts for prompts: exact budgets, the best value against brute force, and estimates that survive a restart."""

import inspect
import itertools
import json
import math
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.specs.sampling import BudgetSpec
from policies.budget import Knapsack, Uniform, best_allocation, count_successes, value

SPECS = TypeAdapter(BudgetSpec)
RATES = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4)


def worth(rates, allocation):
    return math.fsum(value(n, p) for n, p in zip(allocation, rates, strict=True))


def by_programming(rates, total, least, most):
    """The best value by dynamic programming over prompts and rollouts spent."""
    best = {0: 0.0}
    for p in rates:
        spent = {}
        for used, sofar in best.items():
            for n in range(least, most + 1):
                spent[used + n] = max(spent.get(used + n, -1.0), sofar + value(n, p))
        best = spent
    return best[total]


def test_value_pinned():
    """One of three succeeds: a group of 2 is mixed with 4/9, and the gain is 1/3 * 4/9."""
    assert value(2, 1 / 3) == pytest.approx(4 / 9 * 4 / 27)
    assert value(1, 0.3) == pytest.approx(0)
    assert value(8, 0.0) == value(8, 1.0) == 0


@settings(max_examples=100, deadline=None)
@given(p=st.floats(0, 1), n=st.integers(1, 60))
def test_the_next_rollout_never_gains_more_than_the_last_one(p, n):
    """Why taking the largest gain each time is exact."""
    assert value(n + 2, p) - value(n + 1, p) <= value(n + 1, p) - value(n, p) + 1e-12


@settings(max_examples=80, deadline=None)
@given(rates=RATES, least=st.integers(1, 2), extra=st.integers(0, 4), slack=st.integers(0, 3))
def test_no_allocation_is_better(rates, least, extra, slack):
    most = least + extra
    total = min(least * len(rates) + slack * len(rates), most * len(rates))
    found = best_allocation(rates, total, least, most)
    assert sum(found) == total
    assert all(least <= n <= most for n in found)
    choices = itertools.product(range(least, most + 1), repeat=len(rates))
    best = max(worth(rates, choice) for choice in choices if sum(choice) == total)
    assert worth(rates, found) == pytest.approx(best, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(0, 1), min_size=2, max_size=8), mean=st.integers(2, 6))
def test_greedy_is_as_good_as_dynamic_programming(rates, mean):
    total, most = mean * len(rates), 3 * mean
    found = best_allocation(rates, total, 2, most)
    assert worth(rates, found) == pytest.approx(by_programming(rates, total, 2, most), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(rates=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True), seed=st.integers(0, 1000))
def test_permuting_prompts_permutes_rollouts(rates, seed):
    order = random.Random(seed).sample(range(len(rates)), len(rates))
    total = 6 * len(rates)
    whole = best_allocation(rates, total, 2, total)
    permuted = best_allocation([rates[i] for i in order], total, 2, total)
    assert worth([rates[i] for i in order], permuted) == pytest.approx(worth(rates, whole), abs=1e-12)
    if len({value(n, p) - value(n - 1, p) for p in rates for n in range(3, total)}) == len(rates) * (total - 3):
        assert permuted == [whole[i] for i in order]  # without ties


def test_hard_prompts_get_more_than_easy_ones():
    easy, middle, hard = best_allocation([0.95, 0.5, 0.05], 24, 2, 24)
    assert hard > middle > easy


def test_what_nobody_has_use_for_goes_to_the_unsolved():
    """The published fallback: rates 0 and 1 have no value for any n."""
    assert best_allocation([0.0, 1.0, 0.0], 12, 2, 12) == [5, 2, 5]
    assert best_allocation([0.0, 1.0, 0.0], 12, 2, 4) == [4, 4, 4]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 9), max_size=12),
    groups=st.integers(2, 6),
    seen=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8)), max_size=20),
)
def test_the_sum_is_exact_and_the_state_continues_identically(prompts, groups, seen):
    first, second = Knapsack(groups, max_rollouts=2 * groups), Knapsack(groups, max_rollouts=2 * groups)
    first.observe([prompt for prompt, _ in seen], [good for _, good in seen], [8] * len(seen))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(2):
        allocation = first.allocate(prompts)
        assert second.allocate(prompts) == allocation
        assert len(allocation) == len(prompts)
        assert sum(allocation) == groups * len(prompts)
        assert all(2 <= n <= 2 * groups for n in allocation)
        for budget in (first, second):
            budget.observe(prompts, [n // 2 for n in allocation], allocation)
    assert first.state_dict() == second.state_dict()


def test_a_state_of_many_prompts_is_small_and_soon_written():
    budget = Knapsack(8)
    prompts = range(100_000)
    budget.observe(prompts, [i % 9 for i in prompts], [8] * len(prompts))
    before = time.process_time()
    text = json.dumps(budget.state_dict())
    assert time.process_time() - before < 1
    assert len(text) < 600_000  # a row for each is 2 MB at the least, and 7 MB once rates have faded
    again = Knapsack(8)
    again.load_state_dict(json.loads(text))
    assert [again.rate(i) for i in range(99)] == [budget.rate(i) for i in range(99)]


def test_a_state_of_an_earlier_version_is_read():
    budget, again = Knapsack(8), Knapsack(8)
    budget.observe([7, 3], [3, 8], [8, 8])
    again.load_state_dict({"seen": [[3, 8.0, 8.0], [7, 3.0, 8.0]]})
    assert again.state_dict() == budget.state_dict()


def test_unseen_prompts_share_equally():
    assert Knapsack(8).allocate(range(5)) == [8] * 5
    assert Uniform(8).allocate(range(5)) == [8] * 5


def test_one_rollout_each():
    assert Knapsack(1, min_rollouts=1, max_rollouts=1).allocate([3, 4]) == [1, 1]
    assert Uniform(1).allocate([3, 4]) == [1, 1]
    assert Knapsack(4).allocate([]) == []


def test_rates_fade_pinned():
    budget = Knapsack(4, forgetting=0.5, prior_rate=0.5, prior_count=2.0)
    assert budget.rate(7) == 0.5
    budget.observe([7], [4], [4])
    assert budget.rate(7) == pytest.approx(5 / 6)
    budget.observe([7], [0], [4])
    assert budget.rate(7) == pytest.approx((2 + 1) / (2 + 4 + 2))
    budget.observe([7], [0], [0])  # nothing was measured
    assert budget.rate(7) == pytest.approx(3 / 8)


def test_a_prompt_that_stands_twice_is_one_observation():
    once, twice = Knapsack(4), Knapsack(4)
    once.observe([7], [3], [8])
    twice.observe([7, 7], [1, 2], [4, 4])
    assert once.state_dict() == twice.state_dict()


def test_as_published_only_the_last_visit_counts():
    budget = Knapsack(4, forgetting=1.0, prior_count=0.0)
    budget.observe([1, 2], [4, 2], [4, 4])
    budget.observe([1], [0], [4])
    assert (budget.rate(1), budget.rate(2), budget.rate(3)) == (0.0, 0.5, 0.5)


def test_successes_leave_out_what_was_not_measured():
    rewards = torch.tensor([[1.0, 0.5, 0.4], [math.nan, 0.9, math.nan]])
    assert count_successes(rewards, 0.5) == ([2, 1], [3, 1])


def test_a_large_step_is_fast():
    budget, generator = Knapsack(8), random.Random(0)
    budget.observe(range(512), [generator.randint(0, 8) for _ in range(512)], [8] * 512)
    times_s = []
    for _ in range(5):
        start = time.thread_time()  # which waiting for a busy processor does not count
        assert sum(budget.allocate(range(512))) == 4096
        times_s.append(time.thread_time() - start)
    assert min(times_s) < 0.2


# ------------------------------------------------------------- specs


def test_specs_make_the_budgets():
    knapsack = SPECS.validate_python({"name": "knapsack", "objective": "accuracy"})
    arguments = knapsack.arguments(("accuracy",))
    assert vars(Knapsack(8, **arguments)) == vars(Knapsack(8))  # the same defaults on both sides
    assert set(arguments) == set(inspect.signature(Knapsack).parameters) - {"rollouts_per_prompt"}
    assert SPECS.validate_python({"name": "uniform"}).arguments(()) == {}


def test_mistakes_that_only_the_job_shows():
    spec = SPECS.validate_python({"name": "knapsack", "objective": "acuracy", "min_rollouts": 4, "max_rollouts": 6})
    assert [path for path, _ in spec.problems(("accuracy", "length"), 5)] == ["objective"]
    problems = dict(spec.problems(("acuracy",), 3)) | dict(spec.problems(("acuracy",), 7))
    assert set(problems) == {"min_rollouts", "max_rollouts"}
    assert "did you mean 'accuracy'?" in dict(spec.problems(("accuracy",), 5))["objective"]
    assert list(SPECS.validate_python({"name": "uniform"}).problems((), 1)) == []


def test_specs_have_bounds():
    for wrong in ({"min_rollouts": 3, "max_rollouts": 2}, {"min_rollouts": 0}, {"forgetting": 1.5}, {"objective": ""}):
        with pytest.raises(ValidationError):
            SPECS.validate_python({"name": "knapsack", "objective": "accuracy"} | wrong)
