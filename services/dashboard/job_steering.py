"""A hand on the weights: edit, preview, apply, and be told what became of it.

A change lives through idle -> edited -> queued -> applied, or failed. What is shown as applied is the server's word
with the step at which it took effect, never what was asked for. An edit is made on one version of the steering; where
another person's change comes first, theirs stands, the edit is kept, and its maker decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Literal

from orchestrator.steering import MAX_OVER
from services.client import ApiError, AuthenticationError, StaleVersion, Unavailable
from services.client.types import Steering
from services.dashboard.elements import Button, Field, Moment, Simplex, Tag, say, text
from services.dashboard.frame import MAYBE_DONE, problem
from services.dashboard.panels import JobPage, section
from services.dashboard.steering_edit import PARTS, Edit, alike, changed, mix, mode_name, parts_at
from services.dashboard.steering_preview import show_preview
from services.dashboard.watch import JobWatch, News

State = Literal["idle", "edited", "queued", "applied", "failed"]
_MODES = (("auto", "Learner"), ("blend", "Blend"), ("manual", "Manual"))
_MODE_WORDS = {
    "auto": "The learner's strategy decides, within floors and ceilings. Your weights are its preference.",
    "blend": "A mix of your weights and the learner's choice.",
    "manual": "Your weights are applied as they are, within floors and ceilings.",
}


class SteeringPanel:
    """At the side of the page, so that the charts are in sight while a hand moves."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._state: State = "idle"
        self._told = ""
        self._edit: Edit | None = None
        self._queued: tuple[int, int] | None = None  # version, effective step
        self._lost: tuple[int, dict[str, Any]] | None = None  # on what version, and a change without an answer
        self._told_of = 0  # the version up to which `_told` holds, once that is over
        self._conflict_of: tuple[int, int] | None = None  # the versions that are shown to be in conflict
        self._is_sending = self._is_previewing = False
        self._seen = 0  # of watch.steered
        self._is_blend_wrong = self._is_over_wrong = self._is_restored = False
        self._steps = 1  # in which the next change takes effect
        self._waiting: Edit | None = None  # one of before the page was loaded anew, until the steering is known
        self._kept: dict[str, Any] | None = None  # what the browser was given of the edit
        self._may = page.session.may("steer")
        with section("Steering"), Tag("div", "", "steer"):
            self._line = text("", "steer-state", "p").attributes(role="status")
            self._conflict = Tag("div", "", "")
            self._now = text("", "legend-line", "p")
            if self._may:
                self._build_controls()
            self._preview = Tag("div", "", "", aria_live="polite")
        with Tag("section", "", "card", aria_label="Changes"):
            with Tag("div", "", "section-head"):
                Tag("h2", "Who changed what")
            self._changes = Tag("ul", "", "changes")
        self._shown_version = 0
        self._show()
        if self._may:
            page.client.on_connect(self.restore)

    def _build_controls(self) -> None:
        page = self.page
        self._controls = Tag("div", "", "stack")
        with self._controls:
            with Tag("div", "", "segments", role="group", aria_label="Who decides"):
                self._modes = {mode: Button(words, lambda mode=mode: self._choose_mode(mode)) for mode, words in _MODES}
            self._mode_words = text("", "legend-line", "p")
            with Tag("div", "", "") as self._blend_row:
                self._blend = Field("Your share of the blend, in percent", "50", self._typed_blend)
            even = {name: 1 / len(page.names) for name in page.names}
            free = {name: [0.0, 1.0] for name in page.names}
            keep = f"equipoise-draft {page.session.key['owner']} steering {page.watch.job_id}"
            self._simplex = Simplex(page.names, self._moved, weights=even, bounds=free, keep=keep)
            self._over = Field("Over how many steps (1: at once)", "1", self._typed_over)
            text("Above a slider: the weight that is applied. Below it: the learner's own choice.", "legend-line", "p")
            with Tag("div", "", "steer-buttons"):
                self._apply = Button("Apply", self._do_apply, "main")
                self._try = Button("Preview", self._do_preview)
                self._reset = Button("Discard", self._do_reset)
                self._back = Button("Hand back to the learner", self._hand_back, "quiet")

    async def update(self, news: News) -> None:
        if "steering" in news or "events" in news or "job" in news:
            self._take_up()
            self._recognise()  # before the events, which may tell already what became of it
            self._follow()
            self._show()
        elif "steps" in news:
            self._show_now()

    async def restore(self) -> None:
        """What was edited here before the page was loaded anew; a page that only connects again has it."""
        if self._is_restored:
            return
        self._is_restored = True
        with contextlib.suppress(TimeoutError):  # the page is gone again
            self._waiting = Edit.read(await self._simplex.run_method("kept", timeout=10.0), self.page.names)
            self._take_up()
            self._show()

    def _take_up(self) -> None:
        """An edit of before, unless it is in force by now, or was replaced by another."""
        steering, edit = self.page.watch.steering, self._waiting
        if steering is None or edit is None:
            return
        self._waiting, self._kept = None, edit.document()
        if self._edit is None and not self.page.watch.is_over and edit.onto(steering).change():
            self._begin(edit, "This is what you had edited here.")

    # -- the life of a change ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """What the server tells of the change that is under way."""
        new, self._seen = self.page.watch.steered[self._seen :], len(self.page.watch.steered)
        for event in new:
            if self._queued is None:
                continue
            version, data = event["data"].get("version"), event["data"]
            if event["type"] == "steering.rejected" and version == self._queued[0]:
                reason = data.get("reason") or "the job ended before it"
                self._enter("failed", f"Version {version} was not applied: {reason}.", version)
                self._queued = None
            elif event["type"] == "steering.applied" and version == self._queued[0]:
                held = [name for name, was in (data.get("clamped") or {}).items() if was]
                limits = f" Floors or ceilings held {', '.join(held)}." if held else ""
                told = (
                    f"Applied at step {data.get('step')}: {mix(data.get('applied') or {})}{_on_the_way(data)}.{limits}"
                )
                self._enter("applied", told, version)
                self._queued = None
            elif event["type"] == "steering.applied" and isinstance(version, int) and version > self._queued[0]:
                told = f"Version {self._queued[0]} was replaced by version {version} before its step came."
                self._enter("failed", told, version)
                self._queued = None
        if self.page.watch.is_over and self._queued is not None:
            version = self._queued[0]
            self._enter("failed", f"The job ended before version {version} was applied.", version)
            self._queued = None

    def _enter(self, state: State, told: str, version: int) -> None:
        """`told` stands until there is a newer version than this one."""
        if state in ("applied", "failed") and self._edit is not None and self._edit.change():
            self._told = told  # an edit goes on: what became of the one before is said beside it
            return
        self._state, self._told, self._told_of = state, told, version

    def _recognise(self) -> None:
        """A change whose answer was lost, where the server took it: nobody else's, although it is a newer version."""
        steering, edit = self.page.watch.steering, self._edit
        if self._lost is None or steering is None or edit is None:
            return
        base, change = self._lost
        entry = next((found for found in steering["log"] if found["version"] == base + 1), None)
        if entry is None:
            return
        self._lost = None
        if entry["by"] != self.page.session.key["name"] or not alike(entry["change"], change):
            return
        if alike(self._change(edit), change):
            self._taken(entry["version"], entry["effective_step"])
        elif steering["version"] == base + 1:
            self._rebase(steering)

    def _taken(self, version: int, step: int) -> None:
        self._edit = None
        self._preview.clear()
        self._queued = (version, step)
        self._state = "queued"
        when = f"at step {step:,}" if self._steps == 1 else f"from step {step:,} to step {step + self._steps - 1:,}"
        self._told = f"Queued: version {version} takes effect {when}."
        self._forget_over()

    # -- what is shown -----------------------------------------------------------------------------------------

    def _show(self) -> None:
        steering = self.page.watch.steering
        if steering is None:
            self._line.set_text("Loading")
            return
        is_stale = self._edit is not None and self._edit.base["version"] != steering["version"]
        if self._edit is not None and not self._edit.change():
            self._edit = None
            is_stale = False
        if self._edit is None and self._may:
            base = Edit.of(steering)
            self._simplex.set(base.weights, base.bounds)
            self._show_mode(base)
        if self._state in ("applied", "failed") and steering["version"] > self._told_of:
            self._state, self._told = "edited" if self._edit is not None else "idle", ""
        words = {
            "idle": standing(self.page.watch, steering),
            "edited": "Edited, not applied." + (f" {self._told}" if self._told else ""),
        }.get(self._state, self._told)
        if not self._may and self._state == "idle":
            words += " This key may look, not steer."
        self._line.set_text(words)
        self._line.classes(replace=f"steer-state is-{self._state}")
        self._keep()
        self._show_conflict(steering if is_stale else None)
        self._show_now()
        self._show_buttons()
        if self._shown_version != steering["version"]:
            self._shown_version = steering["version"]
            self._show_changes(steering)

    def _keep(self) -> None:
        """In the browser: a page whose connection was lost for long is loaded anew."""
        edited = self._edit.document() if self._edit is not None else None
        if self._may and self._waiting is None and edited != self._kept:
            self._kept = edited
            self._simplex.run_method("store", edited)

    def _show_now(self) -> None:
        page = self.page
        applied = {name: page.latest(f"{name}.applied") for name in page.names}
        strategy = {name: page.latest(f"{name}.strategy") for name in page.names}
        step = page.watch.columns.last
        self._now.set_text(
            f"Applied at step {step:,}: {mix(applied, page.falling)}" if step else "No step is committed yet."
        )
        if self._may:
            self._simplex.change(applied=applied, strategy=strategy)

    def _show_buttons(self) -> None:
        if not self._may:
            return
        over = self.page.watch.is_over or self.page.watch.job["status"] == "cancelling"
        has_edit = self._edit is not None
        why = "it is being sent" if self._is_sending else "it is being reckoned" if has_edit else "nothing is edited"
        ended = f"the job is {self.page.watch.job['status']}"
        why = ended if over else why
        is_right = not self._is_refused()
        why = why if is_right else "the share of the blend or the number of steps is not as expected"
        self._apply.enable(has_edit and is_right and not over and not self._is_sending, why)
        self._try.enable(has_edit and is_right and not self._is_previewing, why)
        self._reset.enable(has_edit, "nothing is edited")
        steering = self.page.watch.steering
        is_manual = steering is not None and steering["mode"] != "auto"
        why = "the number of steps is not as expected" if is_manual else "the learner decides already"
        self._back.enable(not over and is_manual and not self._is_over_wrong, ended if over else why)
        self._simplex.change(disabled=over)

    def _show_mode(self, edit: Edit) -> None:
        for mode, button in self._modes.items():
            button.attributes(aria_pressed="true" if mode == edit.mode else "false")
        self._mode_words.set_text(_MODE_WORDS.get(edit.mode, ""))
        self._blend_row.set_visibility(edit.mode == "blend")
        if self._is_blend_wrong and edit.mode == "blend":
            return  # it is still being typed
        self._is_blend_wrong = False
        self._blend.problem("")
        shown = f"{100 * edit.blend:g}"
        if self._blend.value != shown:
            self._blend.set(shown)

    def _show_conflict(self, theirs: Steering | None) -> None:
        mine = self._edit.base["version"] if self._edit is not None else 0
        shown = (mine, theirs["version"]) if theirs is not None and self._edit is not None else None
        if shown == self._conflict_of:
            return
        self._conflict_of = shown
        self._conflict.clear()
        if theirs is None or shown is None:
            return
        newest = theirs["log"][-1] if theirs["log"] else None
        is_own = newest is not None and newest["by"] == self.page.session.key["name"]
        with self._conflict, Tag("div", "", "conflict", role="alert"):
            text(
                f"{'This key was used to steer' if is_own else 'Someone else steered'} meanwhile: "
                f"version {theirs['version']}"
                + (f" by {newest['by']}: {changed(newest['change'])}." if newest else ".")
                + " Yours is kept here, and not applied.",
                tag="p",
            )
            with Tag("div", "", "steer-buttons"):
                Button("Put mine on top", lambda: self._rebase(theirs))
                Button("Take theirs", self._do_reset)

    def _show_changes(self, steering: Steering) -> None:
        self._changes.clear()
        with self._changes:
            for entry in reversed(steering["log"][-12:]):
                with Tag("li", "", ""):
                    begun = f"Version {entry['version']}, from step {entry['effective_step']:,} on"
                    text(f"{begun}: {changed(entry['change'])}")
                    self._offer(entry["version"], steering)
                    Tag("br")
                    text(f"{entry['by']}, ", "muted")
                    Moment(entry["at"]).classes("muted")
        if len(steering["log"]) > 12 or steering["log_has_more"]:
            with self._changes, Tag("li", "", ""):
                text("Older changes are in the log.", "muted")

    def _offer(self, version: int, steering: Steering) -> None:
        """A way back to a version that is not the newest."""
        if self._may and version != steering["version"] and not self.page.watch.is_over:
            label = f"Edit from this version: {version}"
            Button("Edit from this version", lambda: self._edit_from(version), "quiet small", aria_label=label)

    # -- what a person does ------------------------------------------------------------------------------------

    def _editing(self) -> Edit | None:
        steering = self.page.watch.steering
        if self._edit is None and steering is not None:
            self._edit = Edit.of(steering)
            self._told = ""
        return self._edit

    def _edited(self) -> None:
        if self._edit is not None:
            self._state = "edited" if self._edit.change() else "idle"
            self._show_mode(self._edit)
        self._preview.clear()
        self._show()

    def _begin(self, edit: Edit, told: str) -> None:
        """With an edit that no hand has made on the sliders."""
        self._edit, self._told, self._is_blend_wrong = edit, told, False
        self._simplex.set(edit.weights, edit.bounds)
        self._edited()

    async def _edit_from(self, version: int) -> None:
        """The sliders as they stood under a version; nothing is applied yet."""
        try:
            parts = await self._parts_at(version)
        except ApiError as error:
            say(problem(error), "bad")
            return
        steering = self.page.watch.steering
        if steering is not None and not self.page.watch.is_over:
            bounds = {name: list(pair) for name, pair in parts["bounds"].items()}
            edit = Edit(steering, parts["mode"], parts["blend"], dict(parts["weights"]), bounds)
            is_other = bool(edit.change())
            self._begin(edit, f"It began as version {version}." if is_other else "")
            if not is_other:
                say(f"Version {version} is as what stands now.")

    async def _parts_at(self, version: int) -> dict[str, Any]:
        steering = self.page.watch.steering
        assert steering is not None, "what is offered is of its log"
        log, has_more = list(steering["log"]), steering["log_has_more"]
        while has_more and len(parts_at(log, version)) < len(PARTS):
            job_id = self.page.watch.job_id
            earlier = await self.page.session.client.steering(job_id, log_before=log[0]["version"])
            log, has_more = earlier["log"] + log, earlier["log_has_more"]
        return parts_at(log, version)

    def _is_refused(self) -> bool:
        """The share of a blend or a number of steps was typed, and is none."""
        is_share_wrong = self._is_blend_wrong and self._edit is not None and self._edit.mode == "blend"
        return self._is_over_wrong or is_share_wrong

    def _change(self, edit: Edit) -> dict[str, Any]:
        """What is sent of an edit; empty where nothing differs."""
        change = edit.change()
        return change | {"over": self._steps} if change and self._steps > 1 else change

    def _typed_over(self) -> None:
        typed = self._over.value.strip()
        self._is_over_wrong = not (typed.isascii() and typed.isdigit() and 1 <= int(typed[:8]) <= MAX_OVER)
        self._over.problem(f"expected 1 to {MAX_OVER:,}" if self._is_over_wrong else "")
        self._steps = 1 if self._is_over_wrong else int(typed)
        self._preview.clear()
        self._show_buttons()

    def _forget_over(self) -> None:
        """The next change is at once again, unless its maker says otherwise."""
        self._steps, self._is_over_wrong = 1, False
        self._over.problem("")
        self._over.set("1")

    def _choose_mode(self, mode: str) -> None:
        if (edit := self._editing()) is not None:
            edit.mode = mode
            self._edited()

    def _moved(self, now: Mapping[str, Any]) -> None:
        edit = self._editing()
        if edit is None:
            return
        edit.weights = {name: float(now["weights"][name]) for name in self.page.names}
        edit.bounds = {name: [float(end) for end in now["bounds"][name]] for name in self.page.names}
        if edit.mode == "auto" and "weights" in edit.change():
            edit.mode = "manual"  # who moves a weight wants it to count
        self._edited()

    def _typed_blend(self) -> None:
        edit = self._editing()
        try:
            share = float(self._blend.value) / 100
        except ValueError:
            share = -1.0
        self._is_blend_wrong = not 0 <= share <= 1
        self._blend.problem("expected 0 to 100" if self._is_blend_wrong else "")
        if self._is_blend_wrong:
            self._show_buttons()
        elif edit is not None:
            edit.blend = share
            self._edited()

    def _do_reset(self) -> None:
        self._edit, self._state, self._told, self._lost = None, "idle", "", None
        self._is_blend_wrong = False
        self._forget_over()
        self._preview.clear()
        self._show()

    def _rebase(self, theirs: Steering) -> None:
        if self._edit is not None:
            self._edit = self._edit.onto(theirs)
            self._simplex.set(self._edit.weights, self._edit.bounds)
            self._edited()

    async def _hand_back(self) -> None:
        """The strategy alone decides again; floors and ceilings stay."""
        steering = self.page.watch.steering
        if steering is not None and not self._is_sending:
            self._edit = Edit.of(steering)
            self._edit.mode = "auto"
            await self._do_apply()

    async def _do_apply(self) -> None:
        edit = self._edit
        if self._is_sending or self._is_refused() or edit is None or not (change := self._change(edit)):
            return
        self._is_sending = True
        self._apply.enable(False, "it is being sent")
        try:
            await self._send(edit, change)
        finally:
            self._is_sending = False
        self._show()

    async def _send(self, edit: Edit, change: dict[str, Any]) -> None:
        client, job_id = self.page.session.client, self.page.watch.job_id
        try:
            taken = await client.steer(job_id, if_match=edit.base["version"], **change)
        except StaleVersion:
            self.page.watch.poke()  # what comes back shows whose change was first; this edit stays
            if self._lost is None:
                say("Someone else steered meanwhile; your edit is kept.", "bad")
        except AuthenticationError:
            await self.page.session.end("key")
        except Unavailable as error:
            self._lost = (edit.base["version"], change)
            self._fail(problem(error, MAYBE_DONE), edit)
            self.page.watch.poke()
        except ApiError as error:
            self._fail(f"Refused: {problem(error)}", edit)
        else:
            self._lost = None
            self._taken(taken["version"], taken["effective_step"])
            self._told = " ".join([self._told, *(f"But {note}." for note in taken.get("notes", ()))])
            self.page.watch.poke()

    def _fail(self, told: str, edit: Edit) -> None:
        steering = self.page.watch.steering or edit.base
        self._state, self._told, self._told_of = "failed", told, max(steering["version"], edit.base["version"])

    async def _do_preview(self) -> None:
        if self._is_previewing or self._is_refused() or self._edit is None or not (change := self._change(self._edit)):
            return
        self._preview.clear()
        self._is_previewing = True
        self._show_buttons()
        try:
            found = await self.page.session.client.preview(self.page.watch.job_id, **change)
        except ApiError as error:
            if self._is_still(change):
                with self._preview:
                    text(f"No preview: {problem(error)}", "problem", "p")
        else:
            if self._is_still(change):
                with self._preview:
                    show_preview(found, self.page.names)
        finally:
            self._is_previewing = False
            self._show_buttons()

    def _is_still(self, change: dict[str, Any]) -> bool:
        return self._edit is not None and self._change(self._edit) == change


def standing(watch: JobWatch, steering: Steering) -> str:
    """Of the newest version: that it is in force, from when on it will be, or why it never was."""
    version = steering["version"]
    entry = next((found for found in reversed(steering["log"]) if found["version"] == version), None)
    event = next((found for found in reversed(watch.steered) if found["data"].get("version") == version), None)
    if entry is not None and event is not None and event["type"] == "steering.rejected":
        reason = event["data"].get("reason") or "the job ended before it"
        return f"Version {version} by {entry['by']} was not applied: {reason}."
    last = max(watch.job["step"], watch.columns.last)
    ramp = event["data"].get("ramp") if event is not None else None
    if ramp is not None and ramp["until"] > last:
        if watch.is_over:
            return f"The job ended on the way to version {version}, which step {ramp['until']:,} would have reached."
        return f"Under way to version {version}, {mode_name(steering['mode'])}: reached at step {ramp['until']:,}."
    if entry is None or event is not None or version == 1 or entry["effective_step"] <= last:
        return f"In force: version {version}, {mode_name(steering['mode'])}."
    if watch.is_over:
        return f"Version {version} by {entry['by']} was not applied: the job ended before it."
    told = f"version {version}, {changed(entry['change'])}, from step {entry['effective_step']:,} on"
    return f"Queued: {told}, by {entry['by']}."


def _on_the_way(applied: Mapping[str, Any]) -> str:
    """What an event says of a steer that takes effect gradually."""
    ramp = applied.get("ramp")
    return f", on the way to {mix(ramp['target'])} at step {ramp['until']:,}" if ramp else ""
