"""The dashboard on a job that really trains: vLLM on CPU, real Ray, real Redis, the real driver."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewViewer, wait_for_points
from tests.browser.stage import Stage
from tests.support import Drive, make_policy, small_spec, submit

START_MS = 240_000  # vLLM on a busy machine


def test_a_person_signs_in_watches_steers_and_cancels(
    stage: Stage, new_viewer: NewViewer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = make_policy(tmp_path_factory.mktemp("policy"))
    job = submit(stage.store, small_spec(policy, name="really trains", steps=60, weighting={"name": "fixed"}))
    drive = Drive(job, stage.redis.url, stage.state_dir)
    try:
        page = new_viewer().open(f"/jobs/{job}")
        expect(page.get_by_role("heading", name="really trains")).to_be_visible()
        expect(page.locator(".job-head .pill").first).to_have_text("running", timeout=START_MS)
        page.set_default_timeout(START_MS)
        wait_for_points(page, "accuracy", 2)
        before = stage.store.job(job).step
        wait_for_points(page, "accuracy", before + 2)

        slider = page.get_by_role("slider", name="Weight of conciseness")
        slider.evaluate("box => { box.value = 0.7; box.dispatchEvent(new Event('input', {bubbles: true})) }")
        page.get_by_role("button", name="Preview").click()
        expect(page.locator(".preview")).to_contain_text("Nothing is applied")
        page.get_by_role("button", name="Apply").click()
        applied = page.locator(".steer-state.is-applied")
        expect(applied).to_contain_text("conciseness 70%", timeout=60_000)
        told = re.search(r"Applied at step (\d+)", applied.inner_text())
        assert told
        step = int(told[1])
        entry = stage.client.steering(job)["log"][-1]
        assert step == entry["effective_step"]
        record = stage.client.metrics(job, after=step - 1, limit=1)["data"][0]
        assert record["weights"]["applied"]["conciseness"] == pytest.approx(0.7, abs=1e-3)
        assert record["steering_version"] == entry["version"]
        expect(
            page.get_by_role("img", name=re.compile("Applied weights by step; now .*conciseness 70%"))
        ).to_be_attached()
        rollouts = page.get_by_role("region", name="Rollouts of the step")
        expect(rollouts.locator("tbody tr")).to_have_count(16)
        expect(page.get_by_role("img", name=re.compile("^Front of accuracy and conciseness: "))).to_be_attached()

        page.get_by_role("button", name="Cancel job").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        expect(page.locator(".job-head .pill").first).to_have_text("cancelled", timeout=60_000)
        drive.wait(120)
    finally:
        if drive.process.poll() is None:
            drive.kill()
