"""Key names: no owner or job id can reach into another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from orchestrator.errors import JobNotFound
from orchestrator.state.keys import Keys, is_name

PER_JOB = ["job", "spec", "events", "replies", "steps", "checkpoints", "front", "steering", "steering_log"]
names = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)


@given(names, names)
def test_one_job_lies_in_one_slot_under_its_owner(owner: str, job_id: str) -> None:
    keys = Keys(owner)
    made = [getattr(keys, part)(job_id) for part in PER_JOB]
    assert len(set(made)) == len(PER_JOB)
    assert all(key.startswith(f"mo:{owner}:job:{{{job_id}}}") for key in made)
    assert len({key_slot(key.encode()) for key in made}) == 1


@given(st.tuples(names, names), st.tuples(names, names))
def test_different_jobs_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    if one != other:
        ours = {getattr(Keys(one[0]), part)(one[1]) for part in PER_JOB}
        theirs = {getattr(Keys(other[0]), part)(other[1]) for part in PER_JOB}
        assert not ours & theirs


@pytest.mark.parametrize("text", ["", "a:b", "a}b", "{a}", "a b", "a\n", "*", "é", "../a", "x" * 256])
def test_other_characters_are_refused(text: str) -> None:
    assert not is_name(text)
    with pytest.raises(ValueError, match="owner"):
        Keys(text)
    with pytest.raises(JobNotFound):
        Keys("local").job(text)


@given(st.text())
def test_any_idempotency_key_becomes_a_digest(key: str) -> None:
    prefix, digest = Keys("local").idempotency(key).rsplit(":", 1)
    assert prefix == "mo:local:idem"
    assert len(digest) == 64


def test_shared_keys_belong_to_the_owner() -> None:
    keys = Keys("acme")
    for key in (keys.queue, keys.leases, keys.stalled, keys.jobs):
        assert key.startswith("mo:acme:")
