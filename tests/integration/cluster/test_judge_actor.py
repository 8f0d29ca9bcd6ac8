"""A judge in a real Ray actor: it finds its profile and its key where it scores, and tells neither."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from rewards import registry
from rewards.base import RewardBatch, RewardError
from rewards.host import Host
from rewards.hosting import SINGLE, Hosting, actor_replica
from rewards.judges.profiles import VARIABLE
from rewards.pool import RewardPool
from tests.judge_server import answers, says, serving, write_profiles

KEY = "sk-canary-0123456789"
BATCH = RewardBatch(
    prompts=("p",) * 3,
    completions=("a", "b", "a"),
    answers=(None,) * 3,
    completion_tokens=(1,) * 3,
    truncated=(False,) * 3,
    max_tokens=8,
)


@pytest.mark.usefixtures("ray_cluster")
def test_it_scores_in_an_actor_whose_errors_hold_no_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with serving(says('{"score": 10}')) as server:
        profile = {"base_url": server.url, "allow_private": True, "api_key_file": str(tmp_path / "key")}
        file = write_profiles(tmp_path, strict=profile)
        options = {"profile": "strict", "rubric": "style"}
        where = {"env_vars": {VARIABLE: str(file)}}  # a path alone; the actors of a driver inherit it
        factory = functools.partial(registry.build, "judge", options)
        hosting = Hosting(deadline_s=120, attempts=1)
        pool = RewardPool([Host("judge", {"judged": SINGLE}, [actor_replica(factory, runtime_env=where)], hosting)])
        try:
            pool.wait_ready()
            assert pool.score(BATCH).scores == {"judged": [1.0] * 3}
            assert len(server.bodies) == 2
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"
            server.script = answers(401, KEY)
            other = BATCH.rows([0, 1])
            with pytest.raises(RewardError, match="JudgeUnavailableError: judge 'strict': it answered 401") as caught:
                pool.score(RewardBatch(**{**vars(other), "completions": ("c", "d")}))
            for secret in (KEY, str(server.port)):
                assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__}"
        finally:
            pool.close()
