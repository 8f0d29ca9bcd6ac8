"""What is around every page: the bar at the top, what the session may do, and what is said when something fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from nicegui import Client, ui
from starlette.responses import RedirectResponse

from services.client import ApiError, AuthenticationError, PermissionDenied, Unavailable
from services.dashboard.elements import Button, Tag, say, text
from services.dashboard.sessions import Session
from services.dashboard.signin import next_path, way_in

_HEAD = (
    '<link rel="stylesheet" href="/assets/theme.css"><link rel="stylesheet" href="/assets/app.css">'
    '<script src="/assets/page.js"></script>'
)
_LINKS = (("/", "Jobs"), ("/compare", "Compare"), ("/submit", "Submit"))


def session_of(request: Request) -> Session:
    """The gate lets nobody without one come here."""
    session: Session = request.scope["equipoise.session"]
    return session


def address(client: Client) -> str:
    """Of the page, with its query."""
    url = client.request.url
    return next_path(url.path + (f"?{url.query}" if url.query else ""))


@contextmanager
def frame(session: Session, title: str, here: str) -> Iterator[Client]:
    """The page between the bar and the end; what is made inside is its main part."""
    client = ui.context.client
    session.pages.add(client.id)
    client.on_delete(lambda: session.pages.discard(client.id))
    client.title = f"{title} - Equipoise"
    ui.add_head_html(_HEAD)

    async def leave() -> None:
        if not client.is_deleted:
            client.open(way_in(session.why, address(client)))

    session.ending.append(leave)
    client.on_delete(lambda: session.ending.remove(leave) if leave in session.ending else None)
    Tag("a", "Skip to the page", "skip", href="#main")
    with Tag("header", "", "top"):
        with Tag("a", "", "brand", href="/", aria_label="Equipoise, jobs"):
            Tag("img", src="/assets/mark.svg", alt="", width="26", height="26")
            text("Equipoise")
        with Tag("nav", aria_label="Pages"):
            for path, name in _LINKS:
                if path == "/submit" and not session.may("submit"):
                    continue
                Tag("a", name, href=path, aria_current="page" if path == here else None)
        with Tag("div", "", "top-end"):
            text(f"{session.key['owner']} · {scopes(session)}", "who").attributes(title=session.key["name"])
            Button("Auto", tone="quiet small theme-button", aria_label="Theme").on(
                "click", js_handler="() => equipoiseTheme()"
            )
            with Tag("form", method="post", action="/signout"):
                Tag("button", "Sign out", "quiet small", type="submit")
    with Tag("main", "", "page", id="main", tabindex="-1"):
        yield client


def scopes(session: Session) -> str:
    """What the key may do, in a word or two."""
    if session.may("admin"):
        return "all rights"
    return ", ".join({"read": "read", "submit": "submit", "steer": "steer"}[scope] for scope in session.key["scopes"])


# What follows where the server is away: of what is asked for again by itself, of what a person asks for, and so on.
BY_ITSELF = "This goes on by itself when it is back."
AGAIN = "Ask again when it is back."
MAYBE_DONE = "It may have been done or not: look when it is back, and ask again if it was not."
ONE_JOB = "Ask again when it is back: it stays one job, even if this one was taken."


def problem(error: ApiError, then: str = AGAIN) -> str:
    """A line for a person. `then`: one of the above."""
    if isinstance(error, Unavailable):
        told = error.message.removesuffix("; try again shortly")
        return f"{told[:1].upper()}{told[1:]}. {then}"
    if isinstance(error, PermissionDenied):
        return f"This key may not do that: {error.message}"
    return error.message


async def failed(session: Session, error: ApiError) -> Any:
    """What a page is that could not be read: the reason, or the sign-in page where the key is no longer taken."""
    if isinstance(error, AuthenticationError):
        await session.end("key")
        return RedirectResponse(way_in("key", address(ui.context.client)), 303)
    with Tag("section", "", "card notice", role="alert"):
        Tag("h1", "Not found" if error.status == 404 else "This could not be read")
        text(problem(error, "Load this page again when it is back."), tag="p")
        Tag("a", "Back to the jobs", "button", href="/")
    return None


async def attempt(
    session: Session, action: Callable[[], Awaitable[Any]], done: str = "", *, then: str = MAYBE_DONE
) -> Any:
    """An action that a person asked for. Says how it went, `then` where it is not known; None where it was refused."""
    try:
        found = await action()
    except ApiError as error:
        if isinstance(error, AuthenticationError):
            await session.end("key")
        else:
            say(problem(error, then), "bad")
        return None
    if done:
        say(done, "good")
    return found
