"""The header of a job's page, which never scrolls away: its state, how far it is, and what may be done with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from nicegui import ui

from services.client.flows import FINAL
from services.dashboard.elements import Button, Choice, Field, Simplex, Table, Tag, say, text
from services.dashboard.figures import change, figure, span
from services.dashboard.frame import AGAIN, ONE_JOB, attempt
from services.dashboard.once import Once
from services.dashboard.panels import JobPage
from services.dashboard.through import download_path
from services.dashboard.watch import News
from services.text import taken

_TONES = {
    "running": "live",
    "starting": "live",
    "validating": "live",
    "succeeded": "good",
    "failed": "bad",
    "cancelled": "off",
}


BEGINS_ANEW = (
    "Only the policy comes along. Steps, AdamW's moments, the learning rate's schedule, the weighting's state, the "
    "order of prompts and the front begin anew; the KL reference is the policy that it starts from."
)
GOES_ON = (
    "Given a step, nothing begins anew: the job's own run goes on to it in a new job, from the newest checkpoint and "
    "with the weights that it is steered with now."
)


class HeadPanel:
    """State, step, progress, hypervolume; pause, resume, cancel, checkpoints, fork and report."""

    def __init__(self, page: JobPage, sections: Sequence[str]) -> None:
        self.page = page
        page.ask_fork = self.ask_fork
        job, may = page.watch.job, page.session.may
        self._may_fork = may("submit") and not page.watch.trains_reward
        with Tag("div", "", "job-head") as head:
            with Tag("div", "", "job-head-in"):
                with Tag("div", "", "job-line"):
                    text(job["name"], "job-name", "h1").attributes(title=job["name"])
                    self._state = text("", "pill")
                    self._state.attributes(role="status", aria_label=None)
                    with Tag("div", "", "job-actions"):
                        self._pause = Button("Pause", self._ask_pause) if may("submit") else None
                        self._resume = Button("Resume", self._do_resume, "main") if may("submit") else None
                        Button("Checkpoints", self._show_checkpoints)
                        self._fork = Button("Fork", lambda: self.ask_fork()) if self._may_fork else None
                        self._report = Button("Report", self._save_report)
                        self._cancel = Button("Cancel job", self._ask_cancel, "danger") if may("submit") else None
                with Tag("div", "", "job-facts"):
                    self._step, self._left = text("", "num"), text("", "num")
                    self._volume, self._engines = text("", "num"), text("", "num")
                    self._taken = text("", "num")
                    self._origin = Tag("span", "", "")
                    text(job["id"], "muted").attributes(title="the job's id")
                    with self._origin:
                        if lineage := job["lineage"]:
                            Tag("a", f"forked from step {lineage['step']}", href=f"/jobs/{lineage['parent']}")
                self._reason = text("", "job-reason", "p")
                self._banner = text("", "banner", "p").attributes(role="alert")
                with Tag("nav", "", "anchors", aria_label="Parts of the page"):
                    for name in sections:
                        Tag("a", name, href=f"#{name.lower()}")
            with Tag("div", "", "job-bar", aria_hidden="true"):
                self._bar = Tag("div", "")
        # The bar and the header are children of the page, beside its main part, so that the header may stick.
        head.move(target_container=page.client.content, target_index=2)
        self._show()

    async def update(self, news: News) -> None:
        if news & {"job", "steps", "front", "connection"}:
            self._show()

    def _show(self) -> None:
        watch, job = self.page.watch, self.page.watch.job
        status = job["status"]
        self._state.set_text(status)
        self._state.classes(replace=f"pill pill-{_TONES.get(status, 'wait')}")
        self._reason.set_text(job["reason"] or "")
        step, total = max(job["step"], watch.columns.last), job["total_steps"]
        self._step.set_text(f"step {step:,} of {total:,}" if total else f"step {step:,}")
        left = job["progress"].get("eta_s") if status not in (*FINAL, "paused") else None
        self._left.set_text(f"about {span(left)} left" if left else _lasted(job))
        front = watch.front
        if front and front["hypervolume"] is not None:
            gain = change(front["hypervolume_base"], front["hypervolume"])
            self._volume.set_text(
                f"hypervolume {figure(front['hypervolume'])}" + (f" ({gain} to the base)" if gain else "")
            )
        else:
            self._volume.set_text("" if watch.trains_reward else "no evaluation yet")
        self._engines.set_text("" if status in FINAL else engines_told(job["progress"].get("engines")))
        self._taken.set_text(taken_told(job))
        self._bar.style(f"width: {100 * min(1.0, step / total) if total else 0:.1f}%")
        if watch.trouble:
            self._banner.set_text(f"Nothing new: {watch.trouble}. What is below is the last that was known.")
        else:
            self._banner.set_text("")
        self._show_actions(status)

    def _show_actions(self, status: str) -> None:
        is_over = status in FINAL
        if self._pause is not None:
            self._pause.set_visibility(status in ("queued", "starting", "running", "validating"))
        if self._resume is not None:
            self._resume.set_visibility(status == "paused")
        if self._cancel is not None:
            self._cancel.set_visibility(not is_over)
            self._cancel.enable(status != "cancelling", "it is being cancelled")
        has_points = bool(self.page.watch.checkpoints)
        if self._fork is not None:
            self._fork.enable(has_points, "there is no checkpoint to fork from yet")
        self._report.enable(is_over or status == "paused", "the report is written when the job ends or pauses")

    # -- what may be done --------------------------------------------------------------------------------------

    async def _after(self, action: Callable[[], Awaitable[Any]], done: str) -> Any:
        found = await attempt(self.page.session, action, done)
        self.page.watch.poke()
        return found

    async def _do_resume(self) -> None:
        watch = self.page.watch
        await self._after(lambda: self.page.session.client.resume(watch.job_id), "It waits for a worker again.")

    def _ask_pause(self) -> None:
        async def pause(checkpoint: Literal["save", "latest"]) -> None:
            client, job_id = self.page.session.client, self.page.watch.job_id
            dialog.close()
            await self._after(lambda: client.pause(job_id, checkpoint=checkpoint), "It pauses before its next update.")

        with _dialog("Pause this job?") as dialog:
            newest = self.page.watch.job["checkpoint_step"]
            text("It lets go of its engines, and goes on from where it paused when somebody resumes it.", tag="p")
            with Tag("div", "", "dialog-buttons"):
                Button("Keep running", dialog.close, autofocus=True)
                if newest is not None:
                    Button(f"Back to step {newest}", lambda: pause("latest"))
                Button("Save and pause", lambda: pause("save"), "main")
        dialog.open()

    def _ask_cancel(self) -> None:
        async def cancel() -> None:
            dialog.close()
            client, job_id = self.page.session.client, self.page.watch.job_id
            await self._after(lambda: client.cancel(job_id), "It ends within half a minute.")

        with _dialog("Cancel this job for good?") as dialog:
            text("Its checkpoints stay, but it can't go on. A pause can be taken back; this can't.", tag="p")
            with Tag("div", "", "dialog-buttons"):
                Button("Keep it", dialog.close, autofocus=True)
                Button("Cancel the job", cancel, "danger main")
        dialog.open()

    def _show_checkpoints(self) -> None:
        rows = [
            {
                "id": found["step"],
                "name": f"step {found['step']}",
                "step": found["step"],
                "on_front": found["on_front"],
                "figures": ", ".join(f"{k} {figure(v)}" for k, v in (found["metrics"].get("objectives") or {}).items()),
                "path": found["path"],
                "policy": self._download(found["step"]),
            }
            for found in self.page.watch.checkpoints
        ]
        columns = [
            {"key": "step", "label": "Step", "kind": "number"},
            {"key": "on_front", "label": "On the front", "kind": "yes"},
            {"key": "figures", "label": "Held out"},
            {"key": "policy", "label": "Policy", "kind": "file"},
            {"key": "path", "label": "Where it lies", "kind": "code"},
        ]

        async def pick(step: int) -> None:
            dialog.close()
            await self.ask_fork(int(step))

        with _dialog("Checkpoints that are kept") as dialog:
            kept = "The newest." if self.page.watch.trains_reward else "The newest, and those on the front."
            text(f"{kept} A pause with a save writes one more.", "muted", "p")
            forks: dict[str, Any] = {"pick": "Fork", "on_pick": pick} if self._may_fork else {}
            Table(columns, caption="Checkpoints", rows=rows, empty="None yet.", **forks)
            with Tag("div", "", "dialog-buttons"):
                Button("Close", dialog.close, autofocus=True)
        dialog.open()

    def _download(self, step: int) -> dict[str, str] | None:
        """A reward model is there at the last step alone."""
        watch = self.page.watch
        if watch.trains_reward and step != watch.job["total_steps"]:
            return None
        return {"href": download_path(watch.job_id, step), "name": f"Download the policy of step {step}"}

    async def ask_fork(self, step: int | None = None) -> None:
        """A dialog for a new job from a checkpoint, with other weights."""
        page, watch = self.page, self.page.watch
        steering = watch.steering
        weights = dict(steering["weights"]) if steering else {name: 1 / len(page.names) for name in page.names}
        edited: dict[str, dict[str, float] | None] = {"weights": None}  # untouched: it begins with all of the steering
        once = Once()
        kept = {str(found["step"]): f"step {found['step']}" for found in watch.checkpoints}
        if step is not None and str(step) not in kept:
            say(f"The checkpoint of step {step:,} is no longer kept. Choose another one.", "bad")
            return
        suggested = f"{watch.job['name'][:100]} fork"
        offered = {"best": "the front's best by the weights now", "latest": "the newest"} | kept

        def edit(now: dict[str, Any]) -> None:
            edited["weights"] = now["weights"]

        async def start_fork() -> None:
            chosen: Any = start.value if start.value in ("best", "latest") else int(start.value)
            wanted: dict[str, Any] = {"checkpoint": chosen, "name": name.value.strip() or None}
            if steps.value.strip():
                try:
                    wanted |= {"checkpoint": "latest", "steps": int(steps.value)}
                except ValueError:
                    steps.problem("expected a number of steps, or nothing")
                    return
                if wanted["name"] == suggested:
                    wanted["name"] = None  # the server has a better one for a run that goes on
            else:
                wanted["weights"] = edited["weights"]
            go.set_text("Copying the checkpoint")
            go.enable(False, "the fork is being made")
            fork = page.session.client.fork
            made = await attempt(
                page.session, lambda: fork(watch.job_id, **wanted, idempotency_key=once.key(wanted)), then=ONE_JOB
            )
            if made is not None:
                dialog.close()
                page.client.open(f"/jobs/{made['data'][0]['id']}")
                return
            go.set_text("Start the fork")
            go.enable(True)

        with _dialog("Fork: a new job from a checkpoint") as dialog:
            text(BEGINS_ANEW, "muted", "p")
            start = Choice("From", offered, "best" if step is None else str(step))
            name = Field("Name", suggested, maxlength=120)
            steps = Field("Go on to step", hint=GOES_ON)
            text("Weights it begins with", "choice-label")
            unbound = {objective: [0.0, 1.0] for objective in page.names}
            Simplex(page.names, edit, weights=weights, bounds=unbound).classes("no-bounds")
            with Tag("div", "", "dialog-buttons"):
                Button("Close", dialog.close)
                go = Button("Start the fork", start_fork, "main")
        dialog.open()

    async def _save_report(self) -> None:
        watch = self.page.watch
        client = self.page.session.client
        report = await attempt(self.page.session, lambda: client.report(watch.job_id), then=AGAIN)
        if report is not None:
            ui.download.content(report, f"{watch.job_id}-report.html", "text/html")
            say("The report is one file that needs no network.", "good")


def _dialog(title: str) -> Any:
    """A dialog that is gone when it is closed."""
    dialog = ui.dialog()
    dialog.on("hide", dialog.delete, args=[])
    return _Inside(dialog, title)


class _Inside:
    def __init__(self, dialog: ui.dialog, title: str) -> None:
        self._dialog = dialog.props(f'aria-label="{title}"')
        with dialog:
            self._box = Tag("div", "", "dialog")
        with self._box:
            Tag("h2", title)

    def __enter__(self) -> ui.dialog:
        self._box.__enter__()
        return self._dialog

    def __exit__(self, *error: Any) -> None:
        self._box.__exit__(*error)


def taken_told(job: Any) -> str:
    """What the job took so far."""
    return ", ".join(f"{name} {value}" for name, value in taken(job.get("gpu_hours"), job.get("cost")).items())


def engines_told(told: Any) -> str:
    """How many serve; nothing of a single one that does."""
    if not told or told["of"] == 1 == told["serving"]:
        return ""
    return f"{told['serving']} of {told['of']} engines serve"


def _lasted(job: Any) -> str:
    began, ended = job["started_at"], job["finished_at"]
    if began is None:
        return ""
    return f"{span(ended - began)} from its first start to its end" if ended else ""  # with all that it was paused
