"""Where a judge may lead: whatever a profile says, what is inside is not reached, and a canary there is never called.

Two layers, each tested alone: the file of profiles refuses an address as it is written, and the connection refuses what
a name resolves to. `Profile.model_construct` goes round the first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from rewards.judges import transport
from rewards.judges.client import JudgeClient, JudgeError
from rewards.judges.profiles import Profile
from tests.judge_server import ScriptedJudge, answers, says, serving
from tests.support import self_signed

ANSWER = "an answer of the inside"

# {p} is the canary's port; each would reach it, or something that only the machine itself should.
INSIDE = [
    "http://127.0.0.1:{p}/v1", "https://127.0.0.1:{p}/v1", "http://127.1:{p}/v1", "http://127.0.1:{p}/v1",
    "http://2130706433:{p}/v1", "http://0x7f000001:{p}/v1", "http://0x7f.1:{p}/v1", "http://0x7F.0.0.0x1:{p}/v1",
    "http://0177.0.0.1:{p}/v1", "http://017700000001:{p}/v1", "http://127.0.0.1.:{p}/v1", "http://0:{p}/v1",
    "http://0.0.0.0:{p}/v1", "http://[::1]:{p}/v1", "http://[::]:{p}/v1", "http://[::ffff:127.0.0.1]:{p}/v1",
    "http://[::ffff:7f00:1]:{p}/v1", "http://[::127.0.0.1]:{p}/v1", "http://[64:ff9b::127.0.0.1]:{p}/v1",
    "http://[2002:7f00:1::]:{p}/v1", "http://[fe80::1%25lo]:{p}/v1", "http://[fd00:ec2::254]/v1",
    "http://localhost:{p}/v1", "http://localhost.:{p}/v1", "http://LOCALHOST:{p}/v1", "http://ip6-localhost:{p}/v1",
    "http://127.0.0.1%2f@127.0.0.1:{p}/v1", "http://judges.example.com@127.0.0.1:{p}/v1",
    "http://user:secret@127.0.0.1:{p}/v1", "http://127.0.0.1:{p}\\@judges.example.com/v1",
    "http://127.0.0.1:{p}#@judges.example.com/v1", "http://127.0.0.1:{p}?@judges.example.com/v1",
    "http://169.254.169.254/latest/meta-data", "http://169.254.169.254.:80/v1", "http://2852039166/v1",
    "http://0xa9fea9fe/v1", "http://[::ffff:169.254.169.254]/v1", "http://10.0.0.1/v1", "http://192.168.0.1/v1",
    "http://172.16.0.1/v1", "http://100.100.100.200/v1", "http://224.0.0.1/v1", "http://255.255.255.255/v1",
    "file:///etc/passwd", "gopher://127.0.0.1:{p}/_x", "ftp://127.0.0.1:{p}/", "unix:///var/run/docker.sock",
    "dict://127.0.0.1:{p}/", "//127.0.0.1:{p}/v1", "127.0.0.1:{p}", "", "http://", "http:///v1", "jar:http://x!/",
    "http://①②⑦.⓪.⓪.①:{p}/v1", "http://127。0。0。1:{p}/v1", "http://127.0.0.1:{p}/v1\r\nx: y", "http://\t127.0.0.1:{p}/",
]  # fmt: skip
NEVER = [  # not even where the operator allows what is private
    "http://2130706433/v1", "http://0x7f.1/v1", "http://0177.0.0.1/v1", "http://127.1/v1", "http://u@127.0.0.1/v1",
    "http://169.254.169.254/v1", "http://[::ffff:169.254.169.254]/v1", "http://[fd00:ec2::254]/v1", "http://0.0.0.0/v1",
    "http://[fe80::1]/v1", "http://224.0.0.1/v1", "http://100.100.100.200/v1", "http://168.63.129.16/v1",
    "file:///etc/passwd", "gopher://127.0.0.1/", "http://127.0.0.1/v1#x", "http://127.0.0.1/v1?x=1",
]  # fmt: skip


@pytest.fixture
def canary() -> Iterator[ScriptedJudge]:
    with serving(says(ANSWER)) as canary:
        yield canary
        assert canary.paths == []


def bypassing(url: str, **changes: Any) -> Profile:
    """A profile that the file's own check never saw."""
    fields: dict[str, Any] = {"base_url": url, "model": "m", "attempts": 1, "timeout_s": 2.0, "backoff_s": 0.01}
    return Profile.model_construct(**(fields | changes))


def ask(profile: Profile, *, backend: httpcore.AsyncNetworkBackend | None = None) -> str:
    async def once() -> str:
        client = JudgeClient("x", profile, backend=backend)
        try:
            return await client.ask({"messages": []}, {}, deadline=asyncio.get_running_loop().time() + 10)
        finally:
            await client.close()

    return asyncio.run(once())


def test_the_corpus_is_as_large_as_is_said() -> None:
    assert len(set(INSIDE)) >= 40


@pytest.mark.parametrize("url", INSIDE)
def test_what_leads_inside_is_refused_in_the_file_and_on_the_wire(url: str, canary: ScriptedJudge) -> None:
    url = url.format(p=canary.port)
    with pytest.raises(ValueError, match="base_url"):
        Profile.model_validate({"base_url": url, "model": "m"})
    with pytest.raises((JudgeError, httpx.InvalidURL)):
        ask(bypassing(url))


@pytest.mark.parametrize("url", NEVER)
def test_what_is_never_called_is_refused_although_private_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Profile.model_validate({"base_url": url, "model": "m", "allow_private": True})


class Recorder(httpcore.AsyncNetworkBackend):
    """Connects to nothing, and says what it was asked for."""

    def __init__(self) -> None:
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        raise httpcore.ConnectError


def resolves(monkeypatch: pytest.MonkeyPatch, *found: list[str]) -> list[str]:
    """A name server with these answers, one after another; what was asked."""
    asked: list[str] = []

    def answer(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found[min(len(asked), len(found)) - 1]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def recorded(patch: pytest.MonkeyPatch, *, allow_private: bool = False, attempts: int = 1) -> list[tuple[str, int]]:
    """Where a judge's name was connected to; it is refused in the end."""
    recorder = Recorder()
    profile = bypassing("https://judges.example.com/v1", allow_private=allow_private, attempts=attempts)
    patch.setattr(Profile, "tls", lambda _: None)  # no handshake is come to
    with pytest.raises(JudgeError):
        ask(profile, backend=transport.CheckedBackend(allow_private=allow_private, inner=recorder))
    return recorder.connected


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"], ["::ffff:169.254.169.254"],
        ["64:ff9b::7f00:1"], ["fd00::1"], ["100.64.0.1"], ["0.0.0.0"], ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"], ["fe80::1%1"],
    ],
)  # fmt: skip
def test_a_name_that_resolves_inside_is_refused_whole(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    resolves(monkeypatch, addresses)
    assert recorded(monkeypatch) == []


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["fe80::1"], ["10.0.0.1", "169.254.169.254"], ["0.0.0.0"]])
def test_a_name_of_a_metadata_service_is_refused_although_private_is_allowed(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolves(monkeypatch, addresses)
    assert recorded(monkeypatch, allow_private=True) == []


def test_the_address_that_was_checked_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer is inside, and nobody asks for it between the check and the connection."""
    asked = resolves(monkeypatch, ["93.184.216.34", "93.184.216.35"], ["127.0.0.1"])
    assert recorded(monkeypatch) == [("93.184.216.34", 443), ("93.184.216.35", 443)]
    assert asked == ["judges.example.com"]


def test_a_name_that_turns_inside_is_refused_when_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_ADDRESSES_LAST_S", 0.0)
    asked = resolves(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    assert recorded(monkeypatch, attempts=5) == [("93.184.216.34", 443)]
    assert len(asked) == 2  # and not five times: it is no failure that may pass


def test_a_name_that_does_not_resolve_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fails(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert recorded(monkeypatch, attempts=3) == []
    assert len(asked) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["http://127.0.0.1:{p}/v1", "//127.0.0.1:{p}/", "http://localhost:{p}", "file:///x"])
def test_no_redirect_is_followed(status: int, target: str, canary: ScriptedJudge) -> None:
    with serving(answers(status, location=target.format(p=canary.port))) as judge:
        profile = Profile.model_validate({"base_url": judge.url, "model": "m", "allow_private": True})
        with pytest.raises(JudgeError, match=f"it answered {status}, and redirects are not followed"):
            ask(profile)
    assert len(judge.paths) == 1


def test_tls_is_for_the_name_although_the_address_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    with serving(says("hello"), certificate) as judge:
        profile = {"model": "m", "allow_private": True, "ca_file": certificate[0], "attempts": 1}
        url = f"https://localhost:{judge.port}/v1"
        assert ask(Profile.model_validate({**profile, "base_url": url})) == "hello"
        assert (judge.names, judge.headers[0]["host"]) == (["localhost"], f"localhost:{judge.port}")
        with pytest.raises(JudgeError, match="the connection failed"):  # nobody vouches for it
            ask(Profile.model_validate({**profile, "base_url": url, "ca_file": None}))
        resolves(monkeypatch, ["127.0.0.1"])
        with pytest.raises(JudgeError, match="the connection failed"):  # the right address under another name
            ask(Profile.model_validate({**profile, "base_url": url.replace("localhost", "judges.example.com")}))
        assert judge.names[-1] == "judges.example.com"
        assert len(judge.paths) == 1
