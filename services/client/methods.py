"""Descriptors that make of one definition a method of both clients, typed for each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from services.client.core import Core, each, finish
from services.client.requests import Request
from services.client.types import Page

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Blocking:
    """A client whose methods return results."""

    _core: Core


class Awaited:
    """A client whose methods return awaitables."""

    _core: Core


class _Descriptor(Generic[P, R]):
    """Runs a definition on the client's core: what it returns one client awaits, and the other waits for."""

    _block: Callable[[R], Any]

    def __init__(self, run: Callable[Concatenate[Core, P], R], written: Callable[..., Any]) -> None:
        self._run, self.written = run, written
        self.__doc__ = written.__doc__

    def _of(self, client: Blocking | Awaited | None) -> Any:
        if client is None:
            return self
        run, block, core = self._run, self._block, client._core
        if isinstance(client, Awaited):
            return _shown(lambda *args, **options: run(core, *args, **options), self.written)
        return _shown(lambda *args, **options: block(run(core, *args, **options)), self.written)


class Method(_Descriptor[P, Coroutine[Any, Any, T]], Generic[P, T]):
    """Gives one result."""

    _block = staticmethod(finish)

    @overload
    def __get__(self, client: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaited, owner: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Blocking | Awaited | None, owner: Any) -> Any:
        return self._of(client)


class Stream(_Descriptor[P, AsyncGenerator[T, None]], Generic[P, T]):
    """Gives one result after the other."""

    _block = staticmethod(each)

    @overload
    def __get__(self, client: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: Any) -> Callable[P, Generator[T, None, None]]: ...
    @overload
    def __get__(self, client: Awaited, owner: Any) -> Callable[P, AsyncGenerator[T, None]]: ...
    def __get__(self, client: Blocking | Awaited | None, owner: Any) -> Any:
        return self._of(client)


def endpoint(build: Callable[Concatenate[Any, P], Request[T]]) -> Method[P, T]:
    """A method that is one request."""

    def run(core: Core, /, *args: P.args, **options: P.kwargs) -> Coroutine[Any, Any, T]:
        return core.call(build(core, *args, **options))

    return Method(run, build)


def pages(by: str | None) -> Callable[[Callable[Concatenate[Any, P], Request[Page[T]]]], Stream[P, T]]:
    """A method that goes through all pages of a list. `by`: the item's field that is the cursor; None: their number."""

    def decorate(build: Callable[Concatenate[Any, P], Request[Page[T]]]) -> Stream[P, T]:
        async def run(core: Core, /, *args: P.args, **options: P.kwargs) -> AsyncGenerator[T, None]:
            request = build(core, *args, **options)
            seen = request.params.get("after") or 0
            while True:
                page = await core.call(request)
                for item in page["data"]:
                    yield item
                if not page["has_more"]:
                    return
                if (next_after := page.get("next_after")) is not None:  # a page may be empty, and yet more follow
                    request = request.after(next_after)
                    continue
                if not page["data"]:
                    return
                last: Any = page["data"][-1]
                seen = seen + len(page["data"]) if by is None else last[by]
                request = request.after(seen)

        return Stream(run, build)

    return decorate


def flow(run: Callable[Concatenate[Core, P], Coroutine[Any, Any, T]]) -> Method[P, T]:
    """A method that is several requests, or more than requests."""
    return Method(run, run)


def stream(run: Callable[Concatenate[Core, P], AsyncGenerator[T, None]]) -> Stream[P, T]:
    """The same that gives results as they come."""
    return Stream(run, run)


def _shown(call: Callable[..., Any], written: Callable[..., Any]) -> Callable[..., Any]:
    """With the name, the text and the parameters of what was written."""
    functools.update_wrapper(call, written)
    signature = inspect.signature(written)
    parameters = list(signature.parameters.values())[1:]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call
