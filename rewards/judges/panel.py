"""A batch of questions to one judge, from a synchronous caller: each different one is asked once, then remembered."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from rewards.judges import profiles
from rewards.judges.answers import READING, Verdict
from rewards.judges.cache import AnswerCache, key_of
from rewards.judges.client import (
    JudgeClient,
    JudgeDeadlineError,
    JudgeError,
    JudgeRefusalError,
    JudgeUnavailableError,
)

Unparsed = Literal["error", "lowest"]
_ASKED = 3  # times in all, where an answer holds no score
_REFUSED_KNOWN = 4096  # questions that came to nothing, and what became of them
_REMINDER = "\n\nYour answer must be that one JSON object, with every field, and no other text."

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A chat and how its answer is read."""

    messages: list[dict[str, str]]
    schema: dict[str, Any]
    names: tuple[str, ...]
    scale: tuple[float, float]
    read: Callable[[str], Verdict | None]


class Panel:
    """Asks `votes` times each, remembers the answers and what has none, and counts.

    An event loop of its own runs in a thread that does not keep the process from ending, so that connections and limits
    outlive a batch.
    """

    def __init__(
        self, profile: str, *, temperature: float, max_tokens: int, votes: int = 1, unparsed: Unparsed = "error"
    ) -> None:
        """Raises ProfileError."""
        self._profile_name, self._profile = profile, profiles.find(profile)
        self._settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._votes, self._unparsed = votes, unparsed
        self._counts: Counter[str] = Counter()
        self._refused: dict[bytes, JudgeError] = {}  # the oldest first
        try:
            self._cache = AnswerCache(self._profile.cache_entries, self._profile.cache_file)
        except OSError as error:
            raise profiles.unusable("cache_file", error.strerror or "it is no cache of answers") from None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(self._make_client())
        except BaseException:
            self._stop()
            raise

    def ask(self, questions: Sequence[Question]) -> list[list[dict[str, float]]]:
        """Every question's votes, as scores inside its scale. Raises JudgeError, and then no question has any."""
        return self._run(self._ask_all(questions))

    def figures(self) -> dict[str, float]:
        """Since the start: the client's, and what became of questions."""
        counted = ("cache_hits", "clamped", "unparsed")
        return {**self._client.figures(), **{name: float(self._counts[name]) for name in counted}}

    def close(self) -> None:
        self._run(self._client.close())
        self._stop()

    async def _make_client(self) -> JudgeClient:
        return JudgeClient(self._profile_name, self._profile)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._cache.close()

    async def _ask_all(self, questions: Sequence[Question]) -> list[list[dict[str, float]]]:
        deadline = asyncio.get_running_loop().time() + self._profile.deadline_s
        keys = [[self._key(question, vote) for vote in range(self._votes)] for question in questions]
        answers: dict[bytes, dict[str, float]] = {}
        tasks: dict[bytes, asyncio.Task[dict[str, float] | JudgeError]] = {}
        for question, row in zip(questions, keys, strict=True):
            for key in row:
                if key in answers or key in tasks:
                    self._counts["cache_hits"] += 1
                elif (known := self._remembered(key, question)) is not None:
                    self._counts["cache_hits"] += 1
                    answers[key] = known
                else:
                    tasks[key] = asyncio.create_task(self._ask(key, question, deadline))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*tasks.values())
        except TimeoutError:
            open_count = sum(not task.done() or task.cancelled() for task in tasks.values())
            why = f"{open_count} of {len(tasks)} answers were not there within {self._profile.deadline_s:g} s"
            raise JudgeDeadlineError(f"judge '{self._profile_name}': {why}") from None
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        for key, task in tasks.items():
            answer = task.result()
            if not isinstance(answer, JudgeError):
                answers[key] = answer
        for question, row in zip(questions, keys, strict=True):
            for key in row:
                if key not in answers:
                    answers[key] = self._without_score(question, tasks[key].result())
        return [[answers[key] for key in row] for row in keys]

    def _without_score(self, question: Question, error: dict[str, float] | JudgeError) -> dict[str, float]:
        """The lowest score, where that is asked for; raises the error else, and where nothing was ever answered."""
        assert isinstance(error, JudgeError)
        is_of_the_row = not isinstance(error, JudgeRefusalError) or self._client.figures()["answers"] > 0
        if self._unparsed == "lowest" and is_of_the_row:
            return dict.fromkeys(question.names, question.scale[0])
        raise error

    async def _ask(self, key: bytes, question: Question, deadline: float) -> dict[str, float] | JudgeError:
        """An error of this row comes back, so that the others' answers are there when they are asked for without it.

        It is not asked about again: whoever looks for the row by halves would pay for it each time.
        """
        if key in self._refused:
            return self._refused[key]
        try:
            return await self._scores(key, question, deadline)
        except JudgeUnavailableError:
            raise
        except JudgeError as error:
            self._refused[key] = error.with_traceback(None)
            if len(self._refused) > _REFUSED_KNOWN:
                del self._refused[next(iter(self._refused))]
            return error

    async def _scores(self, key: bytes, question: Question, deadline: float) -> dict[str, float]:
        for asked in range(_ASKED):
            chat = question if asked == 0 else _reminded(question)
            body = {"messages": chat.messages, **self._settings}
            verdict = question.read(await self._client.ask(body, question.schema, deadline=deadline))
            if verdict is not None:
                self._counts["clamped"] += verdict.clamped
                self._cache.put(key, verdict.scores)
                return verdict.scores
            self._counts["unparsed"] += 1
        what = f"{_ASKED} answers held no scores of the form that was asked for"
        raise JudgeError(f"judge '{self._profile_name}': {what}")

    def _key(self, question: Question, vote: int) -> bytes:
        profile = self._profile
        asked = (question.messages, question.schema, list(question.scale), self._settings, vote, READING)
        return key_of(profile.base_url, profile.model, profile.extra_body, asked)

    def _remembered(self, key: bytes, question: Question) -> dict[str, float] | None:
        """What another process wrote is not trusted either."""
        answer, (low, high) = self._cache.get(key), question.scale
        if not isinstance(answer, dict) or answer.keys() != set(question.names):
            return None
        fits = all(isinstance(value, int | float) and low <= value <= high for value in answer.values())
        return answer if fits else None


def _reminded(question: Question) -> Question:
    *before, last = question.messages
    return replace(question, messages=[*before, {**last, "content": last["content"] + _REMINDER}])
