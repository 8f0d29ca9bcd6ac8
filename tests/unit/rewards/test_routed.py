"""Rewards that are asked about some domains alone: which rows reach them, and where their scores go."""

import pickle
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import RewardBatch, RewardLengthError, RewardOptions
from rewards.routed import Routed, RoutedHeads, build, scatter

DOMAINS = st.lists(st.sampled_from(["math", "code", "chat", None]), max_size=12)


class Recorder:
    """Gives a completion its length, and keeps what it was asked."""

    name: ClassVar[str] = "recorder"
    Options = RewardOptions
    range = (0.0, 99.0)

    def __init__(self) -> None:
        self.asked: list[RewardBatch] = []

    def score(self, batch: RewardBatch) -> list[float | None]:
        self.asked.append(batch)
        return [float(len(text)) for text in batch.completions]


class Heads(Recorder):
    def score_heads(self, batch: RewardBatch) -> dict[str, list[float | None]]:
        return {"long": self.score(batch), "row": [float(text.count("x")) for text in batch.completions]}


def batch_of(domains: list[str | None]) -> RewardBatch:
    size = len(domains)
    return RewardBatch(
        prompts=tuple(map(str, range(size))),
        completions=tuple("x" * row for row in range(size)),
        answers=(None,) * size,
        completion_tokens=(1,) * size,
        truncated=(False,) * size,
        max_tokens=9,
        domains=tuple(domains),
    )


@given(domains=DOMAINS, wanted=st.sets(st.sampled_from(["math", "code", "chat"]), min_size=1))
def test_its_own_rows_alone_reach_a_reward_and_their_scores_come_back_in_place(
    domains: list[str | None], wanted: set[str]
) -> None:
    reward = Recorder()
    scores = Routed(reward, sorted(wanted)).score(batch_of(domains))
    own = [row for row, domain in enumerate(domains) if domain in wanted]
    assert scores == [float(row) if row in own else None for row in range(len(domains))]
    assert [list(batch.prompts) for batch in reward.asked] == ([list(map(str, own))] if own else [])


@given(domains=DOMAINS)
def test_heads_are_routed_as_single_scores_are(domains: list[str | None]) -> None:
    reward = Heads()
    found = RoutedHeads(reward, ["math"]).score_heads(batch_of(domains))
    expected = [float(row) if domain == "math" else None for row, domain in enumerate(domains)]
    for head in ("long", "row"):
        assert head in found
        assert found[head] == expected
    assert len(reward.asked) == ("math" in domains)


@pytest.mark.parametrize("scores", [[1.0], None, 3.0, "12"])
def test_a_reward_that_gives_another_number_of_scores_is_named(scores: Any) -> None:
    with pytest.raises(RewardLengthError, match=r"'short': expected (a list of 2 numbers|2 scores)"):
        scatter("short", scores, [0, 2], 3)


def test_it_is_what_the_reward_is_also_in_another_process() -> None:
    routed = build("conciseness", {"max_tokens": 5}, ["chat"])
    assert (routed.name, routed.range) == ("conciseness", (0.0, 1.0))
    again = pickle.loads(pickle.dumps(routed))  # noqa: S301
    assert again.score(batch_of(["chat", None])) == routed.score(batch_of(["chat", None]))
    with pytest.raises(AttributeError):
        routed.score_heads  # noqa: B018
    assert not isinstance(build("conciseness", {}), Routed)
