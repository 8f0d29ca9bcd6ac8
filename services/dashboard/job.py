"""A job's page: is it healthy, is the trade-off moving, what are the weights doing, and a hand on them."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from services.client import ApiError
from services.dashboard.elements import Tag
from services.dashboard.frame import failed, frame, session_of
from services.dashboard.job_charts import HealthPanel, ObjectivesPanel, TrainingPanel, WeightsPanel
from services.dashboard.job_front import FrontPanel
from services.dashboard.job_guardrails import GuardrailsPanel
from services.dashboard.job_head import HeadPanel
from services.dashboard.job_log import EventsPanel, SpecPanel
from services.dashboard.job_rollouts import RolloutsPanel
from services.dashboard.job_steering import SteeringPanel
from services.dashboard.panels import JobPage, Panel
from services.dashboard.watch import JobWatch, News

ALL: News = frozenset({"job", "steps", "events", "front", "steering", "checkpoints", "connection"})
_SECTIONS = ("Objectives", "Weights", "Front", "Steering", "Guardrails", "Rollouts", "Health", "Log", "Spec")
_REWARD_SECTIONS = ("Training", "Log", "Spec")


async def page(request: Request, job_id: str) -> Any:
    """`/jobs/{job_id}`"""
    session = session_of(request)
    try:
        watch = await JobWatch.of(session, job_id)
    except ApiError as error:
        with frame(session, "Job", ""):
            return await failed(session, error)
    with frame(session, watch.job["name"], "") as client:
        shared = JobPage(session, watch, client)
        client.content.classes("job-page")
        panels = _build(shared)

        async def listen(news: News) -> None:
            if client.is_deleted:
                return
            with client:
                for panel in panels:
                    await panel.update(news)
                shared.flush()

        started: list[Any] = []

        async def start() -> None:
            if not started:  # a reconnection goes on with what there is
                started.append(watch.on_news(listen))
                client.on_delete(started[0])
                if watch.loaded:
                    await listen(ALL)

        client.on_connect(start)
    return None


def _build(shared: JobPage) -> list[Panel]:
    if shared.watch.trains_reward:
        head = HeadPanel(shared, _REWARD_SECTIONS)
        with Tag("div", "", "job-main"):
            return [head, TrainingPanel(shared), EventsPanel(shared), SpecPanel(shared)]
    head = HeadPanel(shared, _SECTIONS)
    with Tag("div", "", "job-grid"):
        with Tag("div", "", "job-main"):
            main: list[Panel] = [ObjectivesPanel(shared), WeightsPanel(shared), FrontPanel(shared)]
            main += [RolloutsPanel(shared), HealthPanel(shared), EventsPanel(shared), SpecPanel(shared)]
        with Tag("aside", "", "job-side", aria_label="Steering"):
            side: list[Panel] = [SteeringPanel(shared), GuardrailsPanel(shared)]
    return [head, *main, *side]
