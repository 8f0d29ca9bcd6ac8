"""The page that asks for a key: plain HTML without any script."""

from __future__ import annotations

import re
from html import escape
from urllib.parse import urlencode

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A path of ours and nothing that a browser takes for another host (//, /\), with an optional query.
_NEXT = re.compile(r"/(?:[A-Za-z0-9_-][A-Za-z0-9_/-]*)?(?:\?[A-Za-z0-9_=&,%.-]*)?")


def next_path(given: str) -> str:
    """Where to go after signing in; the job table where `given` is no page of ours."""
    return given if len(given) <= 1000 and _NEXT.fullmatch(given) else "/"


# What is said to somebody who was signed in, by how that ended (services/dashboard/sessions.py).
_ENDED = {
    "signed_out": "You are signed out.",
    "over": "Your session is over: it lasts 12 hours. Sign in again.",
    "others": "Your session made room: too many people have signed in with your key, or with keys of its owner.",
    "key": "The key that you had signed in with is no longer taken: it is expired or revoked.",
}


def way_in(ended: str = "", then: str = "/") -> str:
    """The address of this page, and where it leads; who has signed out goes nowhere in particular."""
    told = {"ended": ended} if ended else {}
    back = {"next": then} if then != "/" and ended != "signed_out" else {}
    query = urlencode(told | back)
    return f"/signin?{query}" if query else "/signin"


def signin_page(*, then: str, problem: str = "", ended: str = "") -> str:
    """`problem` is ours, and so is `then` once next_path has passed it; `ended` is what anybody may write."""
    told = f'<p class="signin-problem" role="alert">{escape(problem)}</p>' if problem else ""
    if ended in _ENDED and not problem:
        told = f'<p class="signin-note" role="status">{_ENDED[ended]}</p>'
    described = ' aria-invalid="true" aria-describedby="problem"' if problem else ""
    told = told.replace("<p ", '<p id="problem" ', 1)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sign in - Equipoise</title>
<link rel="icon" href="/assets/mark.svg" type="image/svg+xml"><link rel="stylesheet" href="/assets/theme.css">
<link rel="stylesheet" href="/assets/signin.css"></head>
<body class="signin"><main>
<img src="/assets/mark.svg" alt="" width="44" height="44"><h1>Equipoise</h1>
<p class="signin-lead">Watch the trade-off, and keep a hand on it.</p>
<form method="post" action="/signin"><input type="hidden" name="next" value="{escape(then)}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 maxlength="512" spellcheck="false" placeholder="eqp_..."{described}>{told}
<button type="submit">Sign in</button></form>
<p class="signin-help">The server keeps its own key in <code>api.json</code> of its state directory.
<code>equipoise keys create</code> makes others, with fewer rights.</p>
</main></body></html>"""
