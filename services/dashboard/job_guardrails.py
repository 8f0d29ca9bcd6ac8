"""The guardrails of a running job: those that hold, when they were breached, and a form to change them.

Every change is a version of the steering, as those of the weights are, and is sent at once, made on the newest version
that the page knows: where another person's came first, nothing is sent, and what was typed stays.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.guardrails import in_force, is_of
from orchestrator.specs.guardrails import metrics
from services.client import ApiError, AuthenticationError, StaleVersion, Unavailable
from services.dashboard.elements import Button, Choice, Field, Tag, text
from services.dashboard.figures import figure
from services.dashboard.frame import MAYBE_DONE, problem
from services.dashboard.panels import JobPage, section
from services.dashboard.watch import News

Rule = Mapping[str, Any]
_ACTIONS = {"alert": "an event tells of it", "pause": "the job is paused"}
_LONGEST = 1_000_000
_NAMED = 6  # breaches of one guardrail


class GuardrailsPanel:
    """Beside the steering, of which guardrails are a part."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._told = ""
        self._shown: Any = None  # what the list was made of
        self._edited: Rule | None = None  # the one that the form replaces; None: it adds one
        self._is_sending = self._is_restored = False
        with section("Guardrails"):
            self._line = text("", "legend-line", "p").attributes(role="status")
            self._list = Tag("ul", "", "guards")
            self._may = page.session.may("steer")
            if self._may:
                self._build_form()
                page.client.on_connect(self.restore)
        self._show()

    def _build_form(self) -> None:
        keep = f"equipoise-draft {self.page.session.key['owner']} guardrail {self.page.watch.job_id}"
        names = self._metrics()
        with Tag("div", "", "stack", role="group", aria_label="A guardrail"):
            self._title = Tag("h3", _ADD)
            self._metric = Choice("Figure", names, next(iter(names)), lambda _: self._typed())
            self._fields = {
                "min": Field("At least", "", self._typed, keep=keep),
                "max": Field("At most", "", self._typed),
                "for_steps": Field("Outside for how many readings in a row", "1", self._typed),
            }
            self._action = Choice("Then", _ACTIONS, "alert", lambda _: self._typed())
            with Tag("div", "", "steer-buttons"):
                self._send = Button("Add", self._do_send, "main")
                self._leave = Button("Leave it as it is", self._clear, "quiet")
        self._leave.set_visibility(False)

    def _metrics(self) -> dict[str, str]:
        """What may be watched, without KL where it is not measured and nobody watches it."""
        spec = self.page.watch.job["spec"]
        known = metrics(tuple(self.page.names), has_gold=bool(spec.get("gold")))
        has_kl = bool((spec.get("loss") or {}).get("kl_coef")) or any(rule["metric"] == "kl" for rule in self._rules())
        return {name: name for name in known if has_kl or name != "kl"}

    def _rules(self) -> list[Rule]:
        return in_force(self.page.watch.job["spec"], self.page.watch.steering or {})

    async def update(self, news: News) -> None:
        if news & {"steering", "events", "job", "steps"}:
            self._show()

    async def restore(self) -> None:
        """What was typed here before the page was loaded anew; a page that only connects again has it."""
        if self._is_restored:
            return
        self._is_restored = True
        with contextlib.suppress(TimeoutError):  # the page is gone again
            kept = await self._fields["min"].run_method("shelf", timeout=10.0)
            if isinstance(kept, dict) and all(isinstance(kept.get(part), str) for part in ("metric", *self._fields)):
                self._fill(kept)

    # -- what is shown -----------------------------------------------------------------------------------------

    def _show(self) -> None:
        watch = self.page.watch
        rules = self._rules()
        self._line.set_text(self._told or self._waits() or ("" if rules else "None is watched."))
        breaches = [[event["data"]["step"] for event in watch.warned if _is_breach(event, rule)] for rule in rules]
        shown = (rules, breaches, self._may and self._closed())
        if shown != self._shown:
            self._shown = shown
            self._list.clear()
            with self._list:
                for rule, steps in zip(rules, breaches, strict=True):
                    self._show_rule(rule, steps)
        if self._may:
            self._send.enable(not self._closed() and not self._is_sending, self._closed() or "it is being sent")

    def _waits(self) -> str:
        """Of the newest change that no step has followed yet."""
        watch = self.page.watch
        last = max(watch.job["step"], watch.columns.last)
        for entry in reversed(watch.steering["log"] if watch.steering else ()):
            if "guardrails" in entry["change"]:
                if entry["effective_step"] <= last or watch.is_over or entry["version"] == 1:
                    return ""
                return f"These hold from step {entry['effective_step']:,} on, by {entry['by']}."
        return ""

    def _show_rule(self, rule: Rule, breaches: list[int]) -> None:
        with Tag("li", "", ""):
            text(told(rule))
            if self._may and not self._closed():
                label = told(rule)
                Button("Change", lambda: self._change(rule), "quiet small", aria_label=f"Change: {label}")
                Button("Remove", lambda: self._remove(rule), "quiet small", aria_label=f"Remove: {label}")
            Tag("br")
            text(_breached(breaches), "problem" if breaches else "muted")

    def _closed(self) -> str:
        """Why nothing can be changed any more."""
        watch = self.page.watch
        return f"the job is {watch.job['status']}" if watch.is_over or watch.job["status"] == "cancelling" else ""

    # -- what a person does ------------------------------------------------------------------------------------

    def _typed(self) -> None:
        self._fields["min"].run_method("shelve", self._draft())

    def _draft(self) -> dict[str, str]:
        values = {name: field.value for name, field in self._fields.items()}
        return {"metric": self._metric.value, **values, "action": self._action.value}

    def _fill(self, draft: Mapping[str, str]) -> None:
        known = self._metrics()
        self._metric.offer(known, draft["metric"] if draft["metric"] in known else next(iter(known)))
        self._action.offer(_ACTIONS, draft["action"] if draft.get("action") in _ACTIONS else "alert")
        for name, field in self._fields.items():
            field.set(draft[name])
            field.problem("")

    def _change(self, rule: Rule) -> None:
        """Into the form; nothing is sent yet."""
        self._edited = rule
        self._title.set_text(f"Change the guardrail on {rule['metric']}")
        self._send.set_text("Apply")
        self._leave.set_visibility(True)
        ends = {end: "" if rule.get(end) is None else str(rule[end]) for end in ("min", "max")}
        self._fill({**ends, "metric": rule["metric"], "for_steps": str(rule["for_steps"]), "action": rule["action"]})
        self._typed()
        self._fields["min"].run_method("go", 1)

    def _clear(self) -> None:
        """An empty form, for another guardrail."""
        self._edited = None
        self._title.set_text(_ADD)
        self._send.set_text("Add")
        self._leave.set_visibility(False)
        self._fill({"metric": self._metric.value, "min": "", "max": "", "for_steps": "1", "action": "alert"})
        self._fields["min"].run_method("forget")

    async def _remove(self, rule: Rule) -> None:
        await self._steer([found for found in self._rules() if found != rule])

    async def _do_send(self) -> None:
        if (rule := self._read()) is None:
            return
        rules = self._rules()
        place = rules.index(self._edited) if self._edited in rules else len(rules)
        if await self._steer([*rules[:place], rule, *rules[place + 1 :]], place):
            self._clear()

    def _read(self) -> dict[str, Any] | None:
        """What the form says; None where a field says what can't be meant, which then stands beside it."""
        for field in self._fields.values():
            field.problem("")
        (is_low_right, low), (is_high_right, high) = self._end("min"), self._end("max")
        if not (is_low_right and is_high_right):
            return None
        if low is None and high is None:
            self._fields["min"].problem("expected a number here, or in the next field, or in both")
            return None
        if low is not None and high is not None and low > high:
            self._fields["min"].problem(f"is above {high:g}, which it may be at most: every value would be outside")
            return None
        typed = self._fields["for_steps"].value.strip()
        if not (typed.isascii() and typed.isdigit() and 1 <= int(typed[:8]) <= _LONGEST):
            self._fields["for_steps"].problem(f"expected 1 to {_LONGEST:,}")
            return None
        ends = {"min": low, "max": high}
        return {"metric": self._metric.value, **ends, "for_steps": int(typed), "action": self._action.value}

    def _end(self, name: str) -> tuple[bool, float | None]:
        """(whether it can be meant, the number; None of an empty field)."""
        typed = self._fields[name].value.strip()
        try:
            value = float(typed) if typed else None
        except ValueError:
            value = math.nan
        if value is None or math.isfinite(value):
            return True, value
        self._fields[name].problem("expected a number, or nothing")
        return False, None

    async def _steer(self, rules: list[Rule], place: int | None = None) -> bool:
        """All that are to hold; `place` is that of the form's. Whether they were taken."""
        steering = self.page.watch.steering
        if steering is None or self._is_sending:
            return False
        self._is_sending, self._told = True, ""
        self._show()
        try:
            client, job_id = self.page.session.client, self.page.watch.job_id
            taken = await client.steer(job_id, if_match=steering["version"], guardrails=[dict(rule) for rule in rules])
        except StaleVersion:
            self._told = "Someone steered meanwhile: look at what stands now, and send it again."
        except AuthenticationError:
            await self.page.session.end("key")
        except Unavailable as error:
            self._told = problem(error, MAYBE_DONE)
        except ApiError as error:
            self._refused(error, place)
        else:
            notes = "".join(f" But {note}." for note in taken.get("notes", ()))
            self._told = f"Version {taken['version']} takes effect at step {taken['effective_step']:,}.{notes}"
            return True
        finally:
            self._is_sending = False
            self.page.watch.poke()
            self._show()
        return False

    def _refused(self, error: ApiError, place: int | None) -> None:
        """Beside the field that it is about, if that is one of the form's."""
        branch, _, name = (error.param or "").rpartition(".")
        if branch == f"guardrails.{place}" and name in self._fields:
            self._fields[name].problem(problem(error).removeprefix(f"{error.param}: "))
        else:
            self._told = f"Refused: {problem(error)}"


_ADD = "Add a guardrail"


def told(rule: Rule) -> str:
    """`entropy at least 0.1, for 3 readings in a row; else the job is paused`."""
    words = (("min", "at least"), ("max", "at most"))
    ends = " and ".join(f"{word} {figure(rule[end])}" for end, word in words if rule.get(end) is not None)
    count = rule.get("for_steps", 1)
    last = f"when it is outside {count:,} times in a row, " if count > 1 else "else "
    return f"{rule['metric']} {ends}; {last}{_ACTIONS.get(rule.get('action', 'alert'), '')}"


def _is_breach(event: Any, rule: Rule) -> bool:
    data = event["data"]
    return event["type"] == "guardrail.breached" and isinstance(data.get("step"), int) and is_of(data, rule)


def _breached(steps: list[int]) -> str:
    if not steps:
        return "not breached"
    named = ", ".join(f"{step:,}" for step in steps[-_NAMED:])
    earlier = len(steps) - _NAMED
    return f"breached at step {named}" + (f", and {earlier} times before" if earlier > 0 else "")
