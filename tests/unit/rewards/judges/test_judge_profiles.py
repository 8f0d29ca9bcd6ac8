"""The operator's file: every mistake in it is named, and nobody else learns what it holds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards.judges import profiles
from rewards.judges.profiles import VARIABLE, Profile, ProfileError, ProfileFileError

KEY = "sk-canary-0123456789"
GOOD = {"base_url": "https://judges.example.com/v1", "model": "judge-1"}


def environment(tmp_path: Path, content: Any) -> dict[str, str]:
    file = tmp_path / "judges.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return {VARIABLE: str(file)}


def test_profiles_have_defaults_and_names(tmp_path: Path) -> None:
    found = environment(tmp_path, {"judges": {"strict": GOOD, "cheap": {**GOOD, "timeout_s": 5}}})
    assert profiles.names(found) == ["cheap", "strict"]
    profile = profiles.find("strict", found)
    assert profile.url == "https://judges.example.com/v1/chat/completions"
    assert (profile.allow_private, profile.max_concurrency, profile.max_response_bytes) == (False, 16, 1 << 20)
    assert profiles.problem("strict", found) is None
    assert profiles.load({}) == {}


def test_an_unknown_profile_is_told_those_that_there_are(tmp_path: Path) -> None:
    found = environment(tmp_path, {"judges": {"strict": GOOD, "cheap": GOOD}})
    with pytest.raises(ProfileError, match="did you mean 'strict'\\? there are cheap, strict") as caught:
        profiles.find("strikt", found)
    assert "example.com" not in str(caught.value)
    with pytest.raises(ProfileError, match="no judges; its operator names a file of profiles by EQUIPOISE_JUDGES"):
        profiles.find("strict", {})


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"base_url": "http://judges.example.com/v1"}, "judges.bad: base_url: expected https://"),
        ({"base_url": "https://127.0.0.1/v1"}, "base_url: the address is not a public one"),
        ({"base_url": "https://judges.example.com:8443/v1"}, "base_url: only port 443"),
        ({"base_url": "https://a:b@judges.example.com/v1"}, "base_url: a URL with a user name"),
        ({"base_url": "https://judges.example.com/v1?key=1"}, "base_url: expected no query"),
        ({"base_url": 5}, "base_url"),
        ({"model": ""}, "model"),
        ({"allow_private": "yes"}, "allow_private"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s|mapping"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"max_response_bytes": 2 << 20}, "max_response_bytes"),
        ({"api_key": KEY}, "api_key: Extra inputs"),
        ({"api_key_file": "key"}, "api_key_file: expected an absolute path"),
        ({"header_files": {"host": "/x"}}, "header_files: expected names"),
        ({"header_files": {"a\r\nb": "/x"}}, "header_files: expected names"),
        ({"header_files": {"Authorization": "/x"}, "api_key_file": "/x"}, "header_files: api_key_file is sent"),
    ],
)
def test_a_mistake_is_named_to_the_operator_alone(tmp_path: Path, change: dict[str, Any], detail: str) -> None:
    found = environment(tmp_path, {"judges": {"good": GOOD, "bad": {**GOOD, **change}}})
    with pytest.raises(ProfileFileError) as caught:
        profiles.load(found)
    assert re.search(detail, caught.value.detail)
    assert KEY not in caught.value.detail
    assert str(caught.value) == profiles.problem("good", found)
    assert "equipoise judges" in str(caught.value)
    for secret in ("example.com", "127.0.0.1", KEY, str(tmp_path)):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "judges", "- a", "judges: {a: [", f"judges: {{a: {KEY}}}", "other: {}", "judges: {A: {}}", "\x00",
     "a: &a [*a]", "judges: {a: 2026-01-01}", "!!python/object/apply:os.system ['true']"],
)  # fmt: skip
def test_what_is_no_file_of_profiles_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ProfileFileError) as caught:
        profiles.load(environment(tmp_path, content))
    assert KEY not in caught.value.detail


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileFileError) as caught:
        profiles.load({VARIABLE: str(tmp_path / "none.yaml")})
    assert caught.value.detail == "EQUIPOISE_JUDGES: No such file or directory"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two\nlines", "kéy".encode(), b"a\x00b", b"x" * 20_000, b"k\r\nx-evil: 1"]
)
def test_a_key_that_is_no_line_is_refused_without_repeating_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    found = environment(tmp_path, {"judges": {"a": {**GOOD, "api_key_file": str(tmp_path / "key")}}})
    assert profiles.problem("a", found) == "the profile's api_key_file can't be used: its operator must see to it"
    with pytest.raises(ProfileFileError) as caught:
        profiles.find("a", found).headers()
    assert caught.value.detail == "api_key_file: expected one line of printable ASCII"


@pytest.mark.parametrize("field", ["api_key_file", "ca_file", "header_files"])
def test_a_file_that_cannot_be_read_is_named_by_its_field(tmp_path: Path, field: str) -> None:
    missing = str(tmp_path / "missing")
    value: Any = {"x-team": missing} if field == "header_files" else missing
    problem = profiles.problem("a", environment(tmp_path, {"judges": {"a": {**GOOD, field: value}}}))
    assert problem is not None
    assert field in problem
    assert str(tmp_path) not in problem


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ProfileFileError):
        Profile.model_validate({**GOOD, "ca_file": tmp_path / "ca.pem"}).tls()


def test_keys_are_read_from_files_and_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    profile = Profile.model_validate(
        {**GOOD, "api_key_file": tmp_path / "key", "header_files": {"x-a": tmp_path / "key"}}
    )
    headers = profile.headers()
    assert headers["authorization"].get_secret_value() == f"Bearer {KEY}"
    assert headers["x-a"].get_secret_value() == KEY
    assert KEY not in repr((profile, headers, profile.model_dump()))
    assert KEY not in "".join(os.environ.values())
