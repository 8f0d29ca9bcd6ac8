"""Places for child processes: owners share them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from orchestrator.children import ChildBusy, Places

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
