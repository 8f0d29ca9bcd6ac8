"""A request as data: what is asked, how its answer is read, and whether asking twice is asking once."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

import httpx

from services.client.errors import NotSendable, document

T = TypeVar("T")

LONG_S = 600.0  # for what reads or copies whole files


@dataclass(frozen=True, kw_only=True)
class Request(Generic[T]):
    """Params, headers and parts of a body that are None are not sent."""

    method: str
    route: str  # as the server's router has it, such as /v1/jobs/{job_id}
    ids: Mapping[str, str | int] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: Any = None  # JSON
    content: BinaryIO | None = field(default=None, repr=False)
    timeout_s: float | None = None  # the client's if absent
    is_repeatable: bool = False  # a second time changes nothing: it may be sent again when the answer is lost
    parse: Callable[[httpx.Response], T] = document

    @property
    def path(self) -> str:
        """Raises NotSendable for an id that would make another path of it."""
        path = self.route
        for name, value in self.ids.items():
            text = str(value)
            if text in ("", ".", ".."):
                raise NotSendable(f"{name}: '{text}' is no id")
            path = path.replace(f"{{{name}}}", quote(text, safe=""))
        return path

    def after(self, cursor: Any) -> Request[T]:
        """The same of the next page."""
        return dataclasses.replace(self, params={**self.params, "after": cursor})


def given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def new_idempotency_key() -> str:
    return secrets.token_hex(16)
