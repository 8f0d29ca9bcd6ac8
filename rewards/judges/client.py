"""One endpoint of chat completions: asked under its profile's limits, again where that may help, and counted.

JudgeError                      it says nothing of use about a row; names the profile, never where it is
├── JudgeRefusalError           it does not take that row's question
└── JudgeUnavailableError       it can't be asked at all, which is no row's fault
    └── JudgeDeadlineError      not within the time that a batch has
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpcore
import httpx
from pydantic import BaseModel, Field, ValidationError

from rewards.addresses import AddressError, ForbiddenAddressError
from rewards.base import RewardRefusedError
from rewards.judges import transport
from rewards.judges.answers import is_whole
from rewards.judges.pacing import Breaker, Pace, backoff_s, retry_after_s
from rewards.judges.profiles import Profile

_REFUSED_STRUCTURE = (400, 422)
_OF_A_ROW = (400, 413, 422)  # such as a text that is too long for the model
_MOST_TOKENS = 10**9  # that one call may claim to have used


class JudgeError(RewardRefusedError):
    """The text says what happened and repeats nothing that was sent or received."""


class JudgeRefusalError(JudgeError):
    """The endpoint took none of a row's questions: a filter of contents, or a text that is too long for the model."""


class JudgeUnavailableError(JudgeError, ConnectionError):
    """A ConnectionError, so that whoever hosts the reward blames no row for it."""


class JudgeDeadlineError(JudgeUnavailableError):
    """The batch's time is over, or would be before the next attempt."""


class _FailedError(Exception):
    """Of one call, which may be made again."""

    def __init__(self, why: str, *, retry_after_s: float | None = None, is_broken: bool = True) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        self.is_broken = is_broken
        """Counts for the breaker; asking us to slow down doesn't."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class JudgeClient:
    """Asks one profile's endpoint. Made on the event loop that uses it.

    waits for: a place among max_concurrency, the breaker, the pace, then the endpoint for at most timeout_s
    unblocked by: an answer, the last attempt's failure, or the deadline
    """

    def __init__(self, name: str, profile: Profile, *, backend: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._name, self._profile = name, profile
        self._clients = transport.clients(profile, backend)
        self._places: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()  # the last one used is warm
        for client in self._clients:
            self._places.put_nowait(client)
        self._breaker = Breaker(profile.breaker_failures, profile.breaker_s)
        self._pace = Pace(profile.requests_per_minute)
        self._is_structured = profile.structured_output
        self._counts: Counter[str] = Counter()
        self._latency_s = self._longest_s = 0.0

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def figures(self) -> dict[str, float]:
        """Since the start: calls, tokens, what they cost, and the seconds that answered calls took."""
        profile, counts = self._profile, self._counts
        cost = counts["input_tokens"] * profile.price_per_million_input_tokens
        cost += counts["output_tokens"] * profile.price_per_million_output_tokens
        counted = ("calls", "answers", "retries", "input_tokens", "output_tokens")
        return {
            **{name: float(counts[name]) for name in counted},
            "cost": cost / 1e6,
            "latency_s": self._latency_s / max(1, counts["answers"]),
            "longest_s": self._longest_s,
            "breaker_opened": float(self._breaker.opened),
        }

    async def ask(self, question: Mapping[str, Any], schema: Mapping[str, Any], *, deadline: float) -> str:
        """What the model says. `question` is a body without the model; `deadline` is of the loop's clock."""
        for attempt in range(self._profile.attempts):
            try:
                return await self._ask_once(question, schema, deadline)
            except _FailedError as failed:
                error = failed
            if attempt + 1 < self._profile.attempts:
                self._counts["retries"] += 1
                await self._sleep(
                    backoff_s(attempt, self._profile.backoff_s, error.retry_after_s), deadline, str(error)
                )
        raise self._error(f"{error}, in {self._profile.attempts} attempts")

    async def _ask_once(self, question: Mapping[str, Any], schema: Mapping[str, Any], deadline: float) -> str:
        client = await self._places.get()
        try:
            while (wait_s := self._breaker.wait_s()) > 0:
                await self._sleep(wait_s, deadline, "it failed many times in a row and is left alone")
            try:
                await self._sleep(self._pace.wait_s(), deadline, "its requests per minute are used up")
                text = await self._call(client, question, schema)
            except _FailedError as failed:
                (self._breaker.failed if failed.is_broken else self._breaker.left)()
                raise
            except BaseException:  # given up, or refused for good: either says nothing of the endpoint's health
                self._breaker.left()
                raise
            self._breaker.succeeded()
            return text
        finally:
            self._places.put_nowait(client)

    async def _call(self, client: httpx.AsyncClient, question: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        """With the schema where the endpoint takes one; what refuses it is asked without, and not with it again."""
        body = {"model": self._profile.model, **question, **self._profile.extra_body}
        body = {field: value for field, value in body.items() if value is not None}
        if self._is_structured:
            form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
            status, text = await self._post(client, {**body, "response_format": form})
            if status not in _REFUSED_STRUCTURE:
                return self._said(status, text)
        status, text = await self._post(client, body)
        said = self._said(status, text)
        self._is_structured = False
        return said

    async def _post(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> tuple[int, str | None]:
        """Status and what the model said, of one call; raises _FailedError where another may help."""
        timeout_s = self._profile.timeout_s
        self._counts["calls"] += 1
        started = time.monotonic()
        try:
            # httpx's own timeout is of each read, so a byte a second would never end.
            async with asyncio.timeout(timeout_s), client.stream("POST", self._profile.url, json=body) as response:
                content = await self._read(response)
        except (TimeoutError, httpx.TimeoutException):
            raise _FailedError(f"no answer within {timeout_s:g} s") from None
        except httpx.HTTPError as error:  # its text and its request hold the address and the key
            raise _FailedError(f"the connection failed ({type(error).__name__})") from None
        except ForbiddenAddressError as error:
            raise self._error(str(error)) from None
        except AddressError as error:
            raise _FailedError(str(error)) from None
        status = response.status_code
        if status == 429 or status >= 500:
            asked_s = retry_after_s(response.headers.get("retry-after"))
            raise _FailedError(f"it answered {status}", retry_after_s=asked_s, is_broken=status != 429)
        if status != 200:
            return status, None
        text = self._parsed(content)
        took_s = time.monotonic() - started
        self._counts["answers"] += 1
        self._latency_s += took_s
        self._longest_s = max(self._longest_s, took_s)
        return status, text

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._profile.max_response_bytes
        if response.headers.get("content-encoding", "identity") != "identity":  # may be small and unpack to gigabytes
            raise self._error("it answered in a compression that was not asked for")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limit:
                raise self._error(f"its answer has more than {limit} bytes")
        return bytes(content)

    def _parsed(self, content: bytes) -> str:
        try:
            reply = _Reply.model_validate_json(content)
        except ValidationError:  # its text repeats what was received
            raise _FailedError("its answer is no chat completion") from None
        for field, name in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            used = reply.usage.get(field) if isinstance(reply.usage, dict) else None
            if type(used) is int:
                self._counts[name] += min(max(used, 0), _MOST_TOKENS)
        said = reply.choices[0]
        text = said.message.content or ""
        # Cut short, its end is no verdict, and may be a quotation.
        return "" if said.finish_reason == "length" and not is_whole(text) else text

    def _said(self, status: int, text: str | None) -> str:
        if text is not None:
            return text
        redirect = ", and redirects are not followed" if 300 <= status < 400 else ""
        told = f"judge '{self._name}': it answered {status}{redirect}"
        raise (JudgeRefusalError if status in _OF_A_ROW else JudgeUnavailableError)(told)

    async def _sleep(self, seconds: float, deadline: float, why: str) -> None:
        if seconds <= 0:
            return
        if asyncio.get_running_loop().time() + seconds > deadline:
            raise JudgeDeadlineError(f"judge '{self._name}': {why}; the batch's time is over before another attempt")
        await asyncio.sleep(seconds)

    def _error(self, why: str) -> JudgeUnavailableError:
        return JudgeUnavailableError(f"judge '{self._name}': {why}")
