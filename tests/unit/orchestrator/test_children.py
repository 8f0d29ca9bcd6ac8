"""Places for child processes: owners share them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import children
from orchestrator.children import ChildBusy, ChildError, ChildTimeout, Places

LONG_S = 30.0


@contextlib.contextmanager
def held(places: Places, *owners: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner in owners:
            stack.enter_context(places.one(owner, patience_s=LONG_S))
        yield


def test_one_owner_leaves_a_place_for_the_others() -> None:
    places = Places(4)
    with held(places, "ann", "ann", "ann"):
        with pytest.raises(ChildBusy), places.one("ann", patience_s=0):
            pass
        with held(places, "bob"), pytest.raises(ChildBusy), places.one("cy", patience_s=0):
            pass
    with held(places, "bob", "bob", "bob", "ann"):  # all came back
        pass


def test_a_place_that_comes_free_is_for_whoever_has_fewest() -> None:
    """Ann has asked long before Bob; she has one place already, and he has none."""
    places, order, done = Places(3), [], threading.Event()

    def wait(owner: str) -> None:
        with places.one(owner, patience_s=LONG_S):
            order.append(owner)
            done.wait(LONG_S)

    threads = [threading.Thread(target=wait, args=(owner,)) for owner in ("ann", "bob")]
    with held(places, "ann"):
        with held(places, "cy"):
            with held(places, "cy"):
                for thread, owner in zip(threads, ("ann", "bob"), strict=True):
                    thread.start()
                    until(lambda owner=owner: places._waiting[owner] == 1)
            until(lambda: len(order) == 1)
            assert order == ["bob"]
        until(lambda: len(order) == 2)
        done.set()
    for thread in threads:
        thread.join()
    assert not places._taken + places._waiting


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


HUNGRY = """
import json, subprocess, sys, time
mib, by_another = json.load(sys.stdin)
if by_another:
    subprocess.run([sys.executable, "-c", f"import time; held = b'x' * ({mib} << 20); time.sleep(30)"])
held = b"x" * (mib << 20)
time.sleep(0.5 if mib < 200 else 30)
print(len(held))
"""


@pytest.mark.parametrize("by_another", [False, True])
def test_a_child_has_its_share_of_a_containers_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_another: bool
) -> None:
    """The kernel may end all of a container for one process that takes too much."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "memory.max").write_text(str((512 + 4 * 200) << 20))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(children, "_CONTAINER", tmp_path / "memory.max")
    if not by_another:
        assert children.ask("hungry", [50, False], timeout_s=LONG_S) == 50 << 20
    with pytest.raises(ChildError, match="more than 200 MiB of memory"):
        children.ask("hungry", [250, by_another], timeout_s=LONG_S)
    with pytest.raises(ChildTimeout, match=r"within 0\.2 s"):
        children.ask("hungry", [50, False], timeout_s=0.2)


def test_a_child_sees_how_the_hub_is_reached_and_no_password_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tell_all.py").write_text("import json, os\nprint(json.dumps(dict(os.environ)))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reached = {
        "HF_ENDPOINT": "https://mirror", "https_proxy": "http://proxy:3128", "NO_PROXY": "localhost",
        "REQUESTS_CA_BUNDLE": "/ca.pem",
    }  # fmt: skip
    secret = {"HTTPS_PROXY": "http://ann:hidden@proxy:3128", "HTTP_PROXY": "ann:hidden@proxy", "HF_TOKEN": "hidden"}
    for name, value in (reached | secret).items():
        monkeypatch.setenv(name, value)
    seen = children.ask("tell_all", {}, timeout_s=LONG_S)
    assert {name: seen.get(name) for name in reached | secret} == reached | dict.fromkeys(secret)


def test_in_a_small_container_a_child_may_still_read_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(str(512 << 20))
    monkeypatch.setattr(children, "_CONTAINER", tmp_path / "memory.max")
    assert children._most_bytes() == 192 << 20


@pytest.mark.parametrize("limit", ["max", None])
def test_where_the_container_says_nothing_there_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(children, "_CONTAINER", tmp_path / "memory.max")
    assert children._most_bytes() is None
