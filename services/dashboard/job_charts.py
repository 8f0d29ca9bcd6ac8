"""Objectives, weights and health over steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.clock import PHASES
from services.dashboard import charts, watched
from services.dashboard.charts import STAGES, Marks
from services.dashboard.elements import Chart, Moment, Tag, text
from services.dashboard.figures import figure, span
from services.dashboard.health import engines_told, rewards_told
from services.dashboard.panels import JobPage, section
from services.dashboard.steering_edit import mix
from services.dashboard.watch import News


def steered_steps(page: JobPage) -> list[int]:
    """Where a change of the weights took effect."""
    return [step for step, _ in page.watch.versions[1:]]


class _Marked:
    """Charts with a line at every step where someone steered, or a watch found something."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._marked: tuple[list[int], int, int] = ([], 0, 0)

    def has_new_marks(self) -> bool:
        watch = self.page.watch
        found = (steered_steps(self.page), len(watch.warned), len(watch.steered))
        is_new, self._marked = found != self._marked, found
        return is_new

    def marks(self, metrics: Iterable[str], objective: str = "") -> Marks:
        return watched.marks(steered_steps(self.page), self.page.watch.warned, metrics=metrics, objective=objective)


class ObjectivesPanel(_Marked):
    """The raw mean of each with its spread, on one step axis, and their total by the applied weights."""

    def __init__(self, page: JobPage) -> None:
        super().__init__(page)
        spec = page.watch.job["spec"]
        self._charts: dict[str, Chart] = {}
        self._targets = {o["name"]: watched.targets(o) for o in spec["objectives"]}
        self._ranges = {o["name"]: o.get("range") or (0.0, 1.0) for o in spec["objectives"]}
        self._gold = (spec["gold"].get("range") or (0.0, 1.0)) if spec.get("gold") else None
        self._evaluations = (0, 0)
        note = "mean of each batch, one standard deviation around it; diamonds are held out"
        with section("Objectives", f"{note}, the thin line is gold" if self._gold else note):
            self._thinned = text("", "muted", "p")
            with Tag("div", "", "small-charts"):
                for i, name in enumerate(page.names):
                    option = self._option(i, name)
                    self._charts[name] = Chart(name, option, label=f"{name} by step", height=150, loading=True)
                option = self._total_option()
                self._total = Chart("Weighted total", option, label="Weighted total by step", height=150, loading=True)

    def _levels(self, name: str) -> list[charts.Level]:
        return [*self._targets[name], *watched.limits(self.page.watch, watched.drawn_of(name))]

    def _option(self, index: int, name: str) -> dict[str, Any]:
        marks, gold = self.marks(watched.told_of(name), name), ""
        if self._gold:
            gold = "gold" if list(self._gold) == list(self._ranges[name]) else "gold, to this range"
        return charts.objective(name, index, marks, self._levels(name), gold=gold)

    def _total_option(self) -> dict[str, Any]:
        levels = watched.limits(self.page.watch, ["total"])
        return charts.line("total", hue=charts.MUTED, marks=self.marks(["total"]), levels=levels)

    def _grow(self, name: str, chart: Chart) -> None:
        columns, gold = charts.objective_columns(name), self._gold
        if not gold:
            self.page.grow(chart, columns)
            return
        scale = self._ranges[name]
        self.page.grow(chart, [*columns, "gold"], lambda rows: charts.gold_scaled(rows, gold, scale))

    async def update(self, news: News) -> None:
        page = self.page
        if "steps" in news:
            for name, chart in self._charts.items():
                self._grow(name, chart)
                mean, told = figure(page.latest(f"{name}.mean")), watched.told(self._levels(name))
                chart.change(loading=False, note=mean + told, label=f"{name} by step; the latest is {mean}{told}")
            self._thinned.set_text(page.thinned)
            page.grow(self._total, ["total"], extremes=True)
            self._total.change(loading=False, note=_noted(page, "total"))
            self._update_evaluations()
        if self.has_new_marks():
            for i, (name, chart) in enumerate(self._charts.items()):
                chart.merge({"series": self._option(i, name)["series"]})
            self._total.merge({"series": self._total_option()["series"]})

    def _update_evaluations(self) -> None:
        found, generation = self.page.watch.evaluations, self.page.watch.generation
        if self._evaluations == (len(found), generation):
            return
        self._evaluations = (len(found), generation)
        for name, chart in self._charts.items():
            points = [[point["step"], point["objectives"].get(name)] for point in found]
            self.page.put(chart, 0, points, dataset=1)


class WeightsPanel(_Marked):
    """Applied weights as a stack, the learner's own choice dashed; who changed what stands beside it."""

    def __init__(self, page: JobPage) -> None:
        super().__init__(page)
        with section("Weights", "as they were applied; dashed, where the learner alone would have parted them"):
            self._thinned = text("", "muted", "p")
            self._chart = Chart(
                "Applied weights", charts.weights(page.names), label="Applied weights by step", height=230, loading=True
            )
            self._now = text("", "legend-line")
            with Tag("ul", "", "reasons", aria_label="Why the weights are what they are"):
                self._why = [Tag("li") for _ in page.names]

    async def update(self, news: News) -> None:
        page = self.page
        if "steps" in news:
            self._thinned.set_text(page.thinned)
            page.grow(self._chart, charts.weight_columns(page.names))
            now = mix({name: page.latest(f"{name}.applied") for name in page.names}, page.falling)
            self._chart.change(loading=False, label=f"Applied weights by step; now {now}")
            version, step = page.latest("steering_version"), page.watch.columns.last
            self._now.set_text(f"step {step:,}: {now} (steering version {version})" if step else "")
            self._tell()
        if self.has_new_marks():
            shares = [f"weights.{kind}.{name}" for kind in ("applied", "strategy") for name in page.names]
            self._chart.merge({"series": charts.weights(page.names, self.marks(shares))["series"]})

    def _tell(self) -> None:
        """A sentence for each objective, why its weight is what it is; none of a step that does not tell."""
        told = [reason.sentence for reason in self.page.watch.reasons]
        for i, line in enumerate(self._why):
            line.set_text(told[i] if i < len(told) else "")
            line.set_visibility(i < len(told))


_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("kl", "KL to the start", ""),
    ("entropy", "Entropy", ""),
    ("mean_tokens", "Tokens a completion", ""),
    ("truncated_share", "Cut off at the limit", "share"),
    ("staleness", "Staleness, in steps", ""),
    ("tokens_per_s", "Tokens a second", ""),
    ("grad_norm", "Gradient norm", ""),
    ("loss", "Loss", ""),
    ("clip_share", "Clipped tokens", ""),
    ("sampler_gap", "Gap between learner and engines, in nats", ""),
    ("lr", "Learning rate", ""),
)
_TRAINING_FIGURES = (("loss", "Loss"), ("grad_norm", "Gradient norm"), ("lr", "Learning rate"))


class HealthPanel(_Marked):
    """Whether training is well, and where its time goes."""

    def __init__(self, page: JobPage) -> None:
        super().__init__(page)
        self._charts: dict[str, Chart] = {}
        with section("Health"):
            self._words, self._thinned = text("", "muted", "p"), text("", "muted", "p")
            with Tag("p", "", "muted") as self._at:
                self._at_words, self._since = text(""), Moment(None)
            self._rewards, self._engines = text("", "muted", "p"), text("", "muted", "p")
            with Tag("div", "", "small-charts"):
                options = self._options()
                for column, title, _ in _FIGURES:
                    self._charts[column] = Chart(
                        title, options[column], label=f"{title} by step", height=120, loading=True
                    )
            with Tag("div", "", "two-charts"):
                self._zero = Chart(
                    "Groups without signal",
                    charts.lines(page.names, y=charts.SHARE),
                    label="Share of groups whose rewards are all alike, by objective",
                    height=180,
                    loading=True,
                )
                self._time = Chart(
                    "Where the time goes",
                    charts.stages(),
                    label="Share of a step's time by stage",
                    height=180,
                    loading=True,
                )

    async def update(self, news: News) -> None:
        page = self.page
        progress = page.watch.job["progress"]
        at, since = str(progress.get("at")), progress.get("since")
        self._at_words.set_text(f"The step under way: {PHASES.get(at, at)} since ")
        self._since.change(at=since)
        self._at.set_visibility(since is not None)
        if self.has_new_marks():
            for column, option in self._options().items():
                self._charts[column].merge({"series": option["series"]})
        if not _grown(page, news, self._words, self._charts):
            return
        self._thinned.set_text(_thinned(page))
        self._rewards.set_text(rewards_told(page.watch.signs.get("reward_health", {})))
        self._engines.set_text(engines_told(page.watch.signs))
        page.grow(self._zero, [f"{name}.zero_share" for name in page.names])
        page.grow(self._time, [f"time.{stage}" for stage in STAGES], charts.stage_rows)
        self._zero.change(loading=False)
        self._time.change(loading=False)

    def _options(self) -> dict[str, dict[str, Any]]:
        return {
            column: charts.line(
                column,
                hue=charts.colour(i),
                marks=self.marks([column]),
                levels=watched.limits(self.page.watch, [column]),
                y=charts.SHARE if kind == "share" else {},
            )
            for i, (column, _, kind) in enumerate(_FIGURES)
        }


class TrainingPanel:
    """Of a job that trains a reward model: how well it learns. What came of it are its last event and its report."""

    def __init__(self, page: JobPage) -> None:
        self.page = page
        self._charts: dict[str, Chart] = {}
        with section("Training", "of a reward model; how well it predicts stands in the report when it has ended"):
            self._words, self._thinned = text("", "muted", "p"), text("", "muted", "p")
            with Tag("div", "", "small-charts"):
                for i, (column, title) in enumerate(_TRAINING_FIGURES):
                    option = charts.line(column, hue=charts.colour(i))
                    self._charts[column] = Chart(title, option, label=f"{title} by step", height=150, loading=True)

    async def update(self, news: News) -> None:
        if _grown(self.page, news, self._words, self._charts):
            self._thinned.set_text(_thinned(self.page))


def _grown(page: JobPage, news: News, words: Tag, drawn: Mapping[str, Chart]) -> bool:
    """The words, and each column's chart with its new steps; False where there is none."""
    if news & {"job", "steps", "events"}:
        words.set_text(_said(page))
    if "steps" not in news:
        return False
    for column, chart in drawn.items():
        page.grow(chart, [column], extremes=True)
        chart.change(loading=False, note=_noted(page, column))
    return True


def _noted(page: JobPage, column: str) -> str:
    """The newest figure, and what is allowed of it."""
    now = page.latest(column)
    allowed = watched.told(watched.limits(page.watch, [column]))
    is_unknown = now is None and page.watch.columns.last  # of a job without steps nothing could be measured
    return ("not measured" if is_unknown else figure(now)) + allowed


def _thinned(page: JobPage) -> str:
    return page.thinned and f"{page.thinned} The shade is from the least to the most of them."


def _restarts(count: int) -> str:
    return f" It was started anew {'once' if count == 1 else f'{count} times'} after a crash." if count else ""


def _said(page: JobPage) -> str:
    """Of the parts that serve the job the API tells no more than its state and stage."""
    job, seconds = page.watch.job, page.latest("time.step")
    stage = job["progress"].get("stage")
    words = {
        "running": f"The driver holds the job, at the stage '{stage}'." if stage else "The driver holds the job.",
        "starting": "Engines and reward models are being placed and started"
        + (f"; the driver's last word is '{stage}'." if stage else "."),
        "queued": "No driver works on it: it waits for a worker.",
        "paused": "No driver works on it: it is paused.",
    }.get(job["status"], f"The job is {job['status']}.")
    restarts = _restarts(page.watch.restarts)
    return f"{words}{restarts}" + (
        f" The last step took {span(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}." if seconds else ""
    )
