"""A new job: YAML, a form for what is changed most, a dry run, and errors at their fields."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import yaml
from fastapi import Request
from nicegui import Client

from services.client import ApiError, AuthenticationError
from services.dashboard import spec_text
from services.dashboard.elements import Button, Choice, Field, Tag, Upload, text
from services.dashboard.frame import AGAIN, ONE_JOB, address, failed, frame, problem, session_of
from services.dashboard.once import Once
from services.dashboard.plan import show_plan
from services.dashboard.sessions import Session
from services.dashboard.spec_text import BadText, SpecError
from services.dashboard.watch import trains_reward

Problems = list[tuple[str, str, int]]  # path, message, line
_FORM: tuple[tuple[str, str], ...] = (
    ("name", "Name"),
    ("steps", "Steps"),
    ("policy.model", "Policy"),
    ("optimizer.lr", "Learning rate"),
)
_REWARD_FORM: tuple[tuple[str, str], ...] = (
    ("name", "Name"),
    ("training.epochs", "Epochs"),
    ("training.model", "Backbone"),
    ("training.lr", "Learning rate"),
)
_SPLITS = ("train", "validation", "test")
_BACK = "back:"  # and which of the texts that were left
_MOST_LEFT = 20
_RULES = (("weighting.name", "Weighting", "weighting"), ("estimator.name", "Advantages", "estimator"))


async def page(request: Request, like: str = "") -> Any:
    """`/submit`, and `/submit?like=JOB` for another one like it."""
    session = session_of(request)
    with frame(session, "Submit", "/submit") as client:
        if not session.may("submit"):
            with Tag("section", "", "card notice"):
                Tag("h1", "Submit")
                text("This key may look, not submit. Sign in with one that has the scope submit.", tag="p")
            return None
        try:
            rules = {kind: await _rules(session, kind) for _, _, kind in _RULES}
            begun = await _like(session, like) if like else example("quickstart")
        except ApiError as error:
            return await failed(session, error)
        form = SubmitForm(session, client, begun, rules)
    client.on_connect(form.restore)
    return None


async def _rules(session: Session, kind: str) -> list[str]:
    return [rule["name"] for rule in (await session.client.rules(kind=kind))["data"]]


async def _like(session: Session, job_id: str) -> str:
    spec = (await session.client.job(job_id))["spec"]
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)


def _examples() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in resources.files("deploy").joinpath("jobs").iterdir())


def example(name: str) -> str:
    return resources.files("deploy").joinpath(f"jobs/{name}.yaml").read_text(encoding="utf-8")


class SubmitForm:
    """The YAML is the truth; the form writes into it, and is read from it."""

    def __init__(self, session: Session, client: Client, begun: str, rules: dict[str, list[str]]) -> None:
        self._session, self._client, self._rules = session, client, rules
        self._fields: dict[str, Field] = {}
        self._choices: dict[str, Choice] = {}
        self._known: dict[str, str] = {}  # what the text says, by path
        self._once = Once()
        self._is_restored = False
        self._left: list[str] = []  # texts that made room for an example, the newest first
        self._loaded: str | None = None  # the example as it came
        self._checked_text: str | None = None  # what the verdict is of
        with Tag("div", "", "title-row"):
            Tag("h1", "Submit a job")
            self._banner = text("", "banner").attributes(role="status")
        with Tag("div", "", "columns"):
            with Tag("section", "", "card stack", aria_label="Spec"):
                with Tag("div", "", "filters"):
                    self._start = Choice("Start from", self._starts(), "", self._start_from)
                hint = "the same document as `equipoise submit` takes"
                keep = f"equipoise-draft {session.key['owner']} {address(client)}"
                self._yaml = Field("Spec, as YAML", begun, self._read_form, rows=30, code=True, hint=hint, keep=keep)
            with Tag("div", "", "stack"):
                with Tag("section", "", "card stack", aria_label="Check and submit"):
                    with Tag("div", "", "steer-buttons"):
                        Button("Dry run", self._dry_run)
                        self._submit = Button("Submit", self._do_submit, "main")
                    self._age = text("", "muted", "p").attributes(role="status")
                    self._result = Tag("div", "", "stack", aria_live="polite")
                with Tag("section", "", "card stack", aria_label="Form"):
                    Tag("h2", "What is changed most")
                    self._form = Tag("div", "", "stack")
                with Tag("section", "", "card stack", aria_label="Prompts") as self._prompts:
                    Tag("h2", "Prompts of your own")
                    self._split = Choice("Used as", {name: name for name in _SPLITS}, _SPLITS[0])
                    Upload(self._use)
                    self._uploaded = text("", "muted", "p").attributes(role="status")
        self._shape: list[tuple[str, str]] = []
        self._read_form()

    async def restore(self) -> None:
        """What was typed here before the page was loaded anew; a page that only connects again has it."""
        if self._is_restored:
            return
        self._is_restored = True
        with contextlib.suppress(TimeoutError):  # the page is gone again
            kept = await self._yaml.run_method("kept", timeout=10.0)
            left = await self._yaml.run_method("shelf", timeout=10.0)
            if isinstance(left, list):
                self._left = [found for found in left if isinstance(found, str)][:_MOST_LEFT]
                self._start.offer(self._starts(), "")
            if isinstance(kept, str) and kept != self._yaml.value:
                self._yaml.set(kept)
                self._banner.set_text("This is what you had typed here; `Start from` begins anew.")
                self._read_form()

    # -- the form ----------------------------------------------------------------------------------------------

    def _read_form(self) -> None:
        """The form as the YAML has it; a text that is no YAML leaves it as it was."""
        self._tell_age()
        try:
            document = spec_text.read(self._yaml.value)
        except BadText as error:
            self._yaml.problem(f"line {error.line}: {error}" if error.line else str(error))
            return
        self._yaml.problem("")
        objectives = document.get("objectives")
        weights = [
            (f"objectives.{i}.weight", f"Weight of {str(found.get('name'))[:40]}")
            for i, found in enumerate(objectives if isinstance(objectives, list) else [])
            if isinstance(found, dict)
        ][:31]
        is_reward = trains_reward(document)
        self._prompts.set_visibility(not is_reward)
        shown = [*_REWARD_FORM] if is_reward else [*_FORM, *weights]
        if self._shape != shown:
            self._shape = shown
            self._build_form(shown, () if is_reward else _RULES)
        for path, _ in shown:
            value = spec_text.value_at(document, path.split("."))
            self._tell(path, "" if value is None else str(value))
        for path, _, kind in () if is_reward else _RULES:
            now = str(spec_text.value_at(document, path.split(".")) or "")
            offered = {} if now else {"": "the default"}
            names = dict.fromkeys([*([now] if now else []), *self._rules[kind]])
            self._choices[path].offer(offered | {name: name for name in names}, now)

    def _tell(self, path: str, value: str) -> None:
        """To the form's field; one whose value in the text is the old one is left alone, as somebody may be typing."""
        if self._known.get(path) != value:
            self._known[path] = value
            self._fields[path].set(value)

    def _build_form(self, shown: Sequence[tuple[str, str]], rules: Sequence[tuple[str, str, str]]) -> None:
        self._form.clear()
        self._fields, self._choices, self._known = {}, {}, {}
        with self._form:
            for path, label in shown:
                self._fields[path] = Field(
                    label, on_change=lambda path=path: self._write(path, self._fields[path].value)
                )
            for path, label, _ in rules:
                write = lambda value, path=path: self._write(path, value)  # noqa: E731
                self._choices[path] = Choice(label, {}, "", write)

    def _write(self, path: str, typed: str) -> None:
        """A value from the form into the text."""
        if not typed.strip():
            self._fields[path].set(self._known.get(path, ""))
            self._banner.set_text("An empty field changes nothing: for the default, take its line out of the text.")
            return
        self._known[path] = typed
        try:
            self._yaml.set(spec_text.put(self._yaml.value, path.split("."), _scalar(typed.strip(), path)))
        except (BadText, LookupError, ValueError) as error:
            self._banner.set_text(f"The form can't write into this text: {error}")
            return
        self._banner.set_text("")
        self._read_form()

    def _use(self, uploaded: dict[str, Any]) -> None:
        """A dataset that was just uploaded, into the text."""
        dataset_id, rows, split = str(uploaded.get("id")), uploaded.get("rows"), self._split.value
        try:
            self._yaml.set(spec_text.use_dataset(self._yaml.value, split, dataset_id))
        except (BadText, LookupError, ValueError) as error:
            self._uploaded.set_text(f"dataset:{dataset_id} is kept, but can't be written into this text: {error}")
            return
        self._uploaded.set_text(f"dataset:{dataset_id} is data.{split} now; rows: {rows}.")
        self._read_form()

    # -- what it starts from -----------------------------------------------------------------------------------

    def _starts(self) -> dict[str, str]:
        """The examples, and the texts that made room for one: the newest first of all."""
        is_example = self._loaded is not None
        texts = {f"{_BACK}{i}": f"what was here before ({i + 1})" for i in range(is_example, len(self._left))}
        first = "what was here" if is_example and self._left else "what is here"
        return {"": first} | {name: name for name in _examples()} | texts

    def _start_from(self, chosen: str) -> None:
        """An arrow key on a select chooses at once: what is in the text is kept, and comes back by the choice."""
        is_example = bool(chosen) and not chosen.startswith(_BACK)
        place = int(chosen.removeprefix(_BACK) or 0) if not is_example else 0
        if is_example or place < len(self._left):
            now, was = self._yaml.value, self._loaded
            taken = example(chosen) if is_example else self._left.pop(place)
            self._loaded = taken if is_example else None
            if now.strip() and now not in (was, taken, *self._left):
                self._left = [now, *self._left][:_MOST_LEFT]
            self._yaml.run_method("shelve", self._left)
            self._yaml.set(taken)
            self._banner.set_text("")
            self._read_form()
        self._start.offer(self._starts(), chosen if is_example else "")
        self._start.update()  # also where nothing differs: the select may have gone on meanwhile

    # -- checking and submitting -------------------------------------------------------------------------------

    async def _checked(self) -> dict[str, Any] | None:
        """The document, if its own fields are right; else its problems are shown."""
        self._result.clear()
        for field in self._fields.values():
            field.problem("")
        source = self._checked_text = self._yaml.value
        self._tell_age()
        try:
            return await asyncio.to_thread(spec_text.checked, source)
        except BadText as error:
            self._show([("", str(error), error.line)])
        except SpecError as error:
            self._show([(path, message, spec_text.line_of(source, path)) for path, message in error.problems])
        return None

    async def _dry_run(self) -> None:
        document = await self._checked()
        if document is None:
            return
        try:
            plan = await self._session.client.plan(document)
        except ApiError as error:
            await self._refused(error, AGAIN)
            return
        with self._result:
            show_plan(plan)

    def _tell_age(self) -> None:
        """A verdict stays where the text changes, as there may be more to mend, and says that it is an older one."""
        is_old = self._checked_text not in (None, self._yaml.value)
        self._age.set_text("What follows is of the text before your change: check it again." if is_old else "")
        for field in self._fields.values() if is_old else ():
            field.problem("")

    async def _do_submit(self) -> None:
        """The button stays off where it was taken: the page leaves for the job's."""
        self._submit.enable(False, "it is being sent")
        is_taken = False
        try:
            is_taken = await self._submitted()
        finally:
            self._submit.enable(not is_taken, "it is submitted")

    async def _submitted(self) -> bool:
        document = await self._checked()
        if document is None:
            return False
        try:
            job = await self._session.client.submit(document, idempotency_key=self._once.key(document))
        except ApiError as error:
            await self._refused(error, ONE_JOB)
            return False
        self._yaml.run_method("forget")
        self._client.open(f"/jobs/{job['id']}")
        return True

    async def _refused(self, error: ApiError, then: str) -> None:
        if isinstance(error, AuthenticationError):
            await self._session.end("key")
        elif error.code == "invalid_spec":
            source = self._checked_text or ""
            self._show([(path, said, spec_text.line_of(source, path)) for path, said in parted(error)])
        else:
            self._show([("", problem(error, then), 0)])

    def _show(self, problems: Problems) -> None:
        """In a list whose entries lead to their lines, and at the form's fields."""
        with self._result:
            Tag(
                "h3",
                "Not submitted: mend this first" if len(problems) == 1 else f"Not submitted: {len(problems)} problems",
            )
            with Tag("ul", "", "problems", role="list"):
                for path, message, line in problems[:20]:
                    place = f"line {line}: " if line else ""
                    with Tag("li", "", ""):
                        button = Button("", (lambda path=path, line=line: self._go(path, line)) if line else None)
                        with button:
                            text(place)
                            if path:
                                text(path, tag="code")
                                text(": ")
                            text(message)
        if self._checked_text != self._yaml.value:  # the answer took longer than the next change
            return
        for path, message, _ in problems:
            if path in self._fields:
                self._fields[path].problem(message)
        first = problems[0]
        self._yaml.problem(f"{first[0]}: {first[1]}" if first[0] else first[1])

    def _go(self, path: str, line: int) -> None:
        """To where a field stands now."""
        self._yaml.run_method("go", (path and spec_text.line_of(self._yaml.value, path)) or line)


def parted(error: ApiError) -> list[tuple[str, str]]:
    """(field, what is wrong) of the API's one line for a spec."""
    found = []
    for part in re.split(r"; (?=[a-z_]+(?:\.[A-Za-z0-9_]+)*: )", error.message):
        path, colon, message = part.partition(": ")
        is_path = bool(colon) and re.fullmatch(r"[a-z_]+(?:\.[A-Za-z0-9_]+)*", path) is not None
        found.append((path, message) if is_path else ("", part))
    return found


def _scalar(typed: str, path: str) -> str | float | int:
    """A number where the field has one; what isn't is written as it is, and refused where it is checked."""
    if path in ("name", "policy.model", "training.model") or path.endswith(".name"):
        return typed
    for kind in (int, float):
        try:
            return kind(typed)
        except ValueError:
            continue
    return typed
