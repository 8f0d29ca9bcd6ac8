from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.judges.judge import Judge, JudgeOptions
from rewards.judges.pairwise import PairwiseJudge, PairwiseOptions
from rewards.judges.profiles import VARIABLE
from tests.judge_server import ScriptedJudge, says, serving, write_profiles

MakeJudge = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[ScriptedJudge]:
    with serving(says('{"score": 7}')) as server:
        yield server


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The operator's file of profiles, made the one that counts."""

    def write(**profiles: Any) -> Path:
        file = write_profiles(tmp_path, **profiles)
        monkeypatch.setenv(VARIABLE, str(file))
        return file

    return write


@pytest.fixture
def make_judge(server: ScriptedJudge, write: Callable[..., Path]) -> Iterator[MakeJudge]:
    """A judge of the scripted server; `profile` changes its profile, the rest are its options."""
    made: list[Any] = []

    def make(rubric: Any = "helpfulness", *, profile: dict[str, Any] | None = None, **options: Any) -> Judge:
        write(local={"base_url": server.url, "allow_private": True, **(profile or {})})
        made.append(Judge(JudgeOptions(profile="local", rubric=rubric, **options)))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def make_pairwise(server: ScriptedJudge, write: Callable[..., Path]) -> Iterator[MakeJudge]:
    made: list[PairwiseJudge] = []

    def make(*, profile: dict[str, Any] | None = None, **options: Any) -> PairwiseJudge:
        write(local={"base_url": server.url, "allow_private": True, **(profile or {})})
        made.append(PairwiseJudge(PairwiseOptions(profile="local", **options)))
        return made[-1]

    yield make
    for judge in made:
        judge.close()
