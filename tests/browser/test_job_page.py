"""A job's page in a real browser, against a real server and the real driver over fakes."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from services.client import Client
from tests.browser.conftest import NewViewer, Viewer, wait_for_points
from tests.browser.stage import Stage


@pytest.fixture(scope="module")
def job(stage: Stage) -> str:
    return stage.job(steps=4000, step_s=0.25, seed=21, every=3)


@pytest.fixture(scope="module")
def page(stage: Stage, viewer: Viewer, job: str) -> Page:
    stage.wait_for_step(job, 7)
    page = viewer.open(f"/jobs/{job}")
    expect(page.get_by_role("heading", name="toy-21")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("accuracy by step; the latest"))).to_be_visible()
    return page


_CHARTS = (
    "Weighted total", "Applied weights", "Front", "Hypervolume", "KL to the start", "Entropy", "Tokens a completion",
    "Cut off at the limit", "Staleness", "Tokens a second", "Share of groups", "Share of a step's time",
    "Clipped tokens", "Gap between learner and engines", "Learning rate",
)  # fmt: skip


def _set(page: Page, name: str, share: float) -> None:
    """As a hand on the slider does."""
    slider = page.get_by_role("slider", name=f"Weight of {name}")
    slider.evaluate("(box, v) => { box.value = v; box.dispatchEvent(new Event('input', {bubbles: true})) }", share)


def _value(page: Page, name: str) -> float:
    return float(page.get_by_role("slider", name=f"Weight of {name}").input_value())


def test_charts_move_with_the_steps(page: Page, stage: Stage, job: str) -> None:
    wait_for_points(page, "accuracy by step", 7)
    step = stage.store.job(job).step
    stage.wait_for_step(job, step + 3)
    wait_for_points(page, "accuracy by step", step + 3)
    expect(page.locator(".job-facts")).to_contain_text(re.compile(r"step \d+ of 4,000"))
    expect(page.locator(".job-facts")).to_contain_text(re.compile(r"hypervolume 0\.\d+ \(\+[\d.e-]+ to the base\)"))
    expect(page.locator(".job-head .pill").first).to_have_text("running")


def test_every_part_of_the_page_shows_something(page: Page) -> None:
    for name in ("Objectives", "Weights", "Front", "Rollouts", "Health", "Log", "Spec", "Steering", "Guardrails"):
        expect(page.get_by_role("heading", name=name, exact=True).first).to_be_attached()
    for chart in _CHARTS:
        image = page.get_by_role("img", name=re.compile(re.escape(chart))).first
        image.scroll_into_view_if_needed()
        expect(image.locator("canvas")).to_be_visible()
    expect(page.get_by_role("region", name="Events")).to_contain_text("job.running")
    expect(page.get_by_label("Resolved spec")).to_contain_text("rollouts_per_prompt: 4")


def test_moving_a_weight_takes_from_the_others_and_a_lock_pins(page: Page) -> None:
    _set(page, "accuracy", 0.4)
    expect(page.locator(".steer-state")).to_contain_text("Edited, not applied")
    assert _value(page, "brevity") == pytest.approx(0.6, abs=0.01)
    lock = page.get_by_role("button", name="Lock accuracy")
    lock.click()
    expect(lock).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("slider", name="Weight of accuracy")).to_be_disabled()
    _set(page, "brevity", 0.1)
    assert _value(page, "accuracy") == pytest.approx(0.4, abs=0.01)  # two objectives: the lock leaves nothing to move
    assert _value(page, "brevity") == pytest.approx(0.6, abs=0.01)
    lock.click()
    page.get_by_role("button", name="Discard").click()
    expect(page.locator(".steer-state")).to_contain_text("In force")
    assert _value(page, "accuracy") == pytest.approx(0.75, abs=0.01)


def test_a_preview_applies_nothing(page: Page, stage: Stage, job: str) -> None:
    _set(page, "accuracy", 0.1)
    page.get_by_role("button", name="Preview").click()
    preview = page.locator(".preview")
    expect(preview).to_contain_text("Nothing is applied")
    expect(preview).to_contain_text("they disagree in")
    assert stage.client.steering(job)["version"] == 1
    page.get_by_role("button", name="Discard").click()
    expect(preview).to_have_count(0)


def test_a_change_is_queued_then_applied_and_the_weights_follow(page: Page, stage: Stage, job: str) -> None:
    _set(page, "accuracy", 0.3)
    expect(page.get_by_role("button", name="Manual")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Apply").click()
    queued = page.locator(".steer-state.is-queued")
    applied = page.locator(".steer-state.is-applied")
    expect(queued.or_(applied)).to_be_visible()
    expect(applied).to_be_visible()
    told = re.search(r"Applied at step (\d+): accuracy 30%, brevity 70%", applied.inner_text())
    assert told, applied.inner_text()
    step = int(told[1])
    entry = stage.client.steering(job)["log"][-1]
    assert entry["effective_step"] <= step
    record = stage.client.metrics(job, after=step - 1, limit=1)["data"][0]
    assert record["weights"]["applied"]["accuracy"] == pytest.approx(0.3, abs=1e-3)
    before = stage.client.metrics(job, after=entry["effective_step"] - 2, limit=1)["data"][0]
    assert before["weights"]["applied"]["accuracy"] == pytest.approx(0.75)
    expect(
        page.get_by_role("img", name=re.compile("Applied weights by step; now accuracy 30%, brevity 70%"))
    ).to_be_attached()
    expect(page.locator(".changes")).to_contain_text(f"Version {entry['version']}, from step {entry['effective_step']}")


def test_a_guardrail_is_added_and_taken_away_from_the_keyboard(page: Page, stage: Stage, job: str) -> None:
    part = page.get_by_role("region", name="Guardrails")
    part.get_by_label("Figure").select_option("entropy")
    least, add = part.get_by_label("At least"), part.get_by_role("button", name="Add")
    least.fill("much")
    add.press("Enter")
    expect(least).to_have_attribute("aria-invalid", "true")
    expect(part.get_by_text("expected a number, or nothing")).to_be_visible()
    least.fill("0.001")
    add.press("Enter")
    expect(part.get_by_role("status")).to_contain_text("takes effect at step")
    remove = part.get_by_role("button", name=re.compile("Remove: entropy at least 0.001"))
    expect(remove).to_be_visible()
    (rule,) = stage.client.steering(job)["guardrails"]
    assert (rule["metric"], rule["min"], rule["action"]) == ("entropy", 0.001, "alert")
    remove.press("Enter")
    expect(remove).to_have_count(0)
    assert stage.client.steering(job)["guardrails"] == []


def test_floors_and_ceilings_hold_and_blend_is_sent(page: Page, stage: Stage, job: str) -> None:
    page.get_by_role("spinbutton", name="floor of accuracy").fill("45")
    page.get_by_role("spinbutton", name="floor of accuracy").press("Tab")
    page.get_by_role("button", name="Blend").click()
    share = page.get_by_label("Your share of the blend")
    share.fill("250")
    share.press("Tab")
    expect(page.get_by_text("expected 0 to 100")).to_be_visible()
    share.fill("80")
    share.press("Tab")
    expect(page.get_by_text("expected 0 to 100")).to_have_count(0)
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".steer-state.is-applied")).to_contain_text("Floors or ceilings held accuracy")
    steering = stage.client.steering(job)
    assert (steering["mode"], steering["blend"], steering["bounds"]["accuracy"]) == ("blend", 0.8, [0.45, 1.0])


def test_handing_back_to_the_learner(page: Page, stage: Stage, job: str) -> None:
    page.get_by_role("button", name="Hand back to the learner").click()
    # The change before this one stands there as applied until the click is answered.
    stage.wait(lambda: stage.client.steering(job)["mode"] == "auto", what="the learner decides")
    expect(page.locator(".steer-state.is-applied")).to_contain_text("Applied at step")
    expect(page.get_by_role("button", name="Learner", exact=True)).to_have_attribute("aria-pressed", "true")


def test_a_steer_that_is_refused_has_failed_and_says_why(page: Page) -> None:
    for name, floor in (("accuracy", "80"), ("brevity", "70")):
        box = page.get_by_role("spinbutton", name=f"floor of {name}")
        box.fill(floor)
        box.press("Tab")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".steer-state.is-failed")).to_contain_text("leave no weights that sum to 1")
    page.get_by_role("button", name="Discard").click()


def test_what_is_being_typed_stays_while_steps_come(page: Page, stage: Stage, job: str) -> None:
    """A floor counts when its box is left; until then the page is drawn anew with every step."""
    box = page.get_by_role("spinbutton", name="floor of accuracy")
    box.fill("35")
    step = stage.client.job(job)["step"]
    expect(page.get_by_text(re.compile(r"^Applied at step"))).not_to_contain_text(f"step {step:,}:")
    page.wait_for_timeout(1_000)
    expect(box).to_have_value("35")
    box.press("Tab")
    page.get_by_role("button", name="Discard").click()
    expect(box).not_to_have_value("35")
    before = box.input_value()
    box.press_sequentially("7")
    box.press("Backspace")
    box.press("Tab")  # as it was: the browser tells of no change, and nothing of it is kept
    steering = stage.client.steering(job)
    stage.client.steer(job, if_match=steering["version"], bounds={"accuracy": [0.05, 1.0]})
    expect(box).to_have_value("5")
    stage.client.steer(job, if_match=steering["version"] + 1, bounds={"accuracy": steering["bounds"]["accuracy"]})
    expect(box).to_have_value(before)


def test_what_is_applied_is_the_last_that_was_shown(page: Page, stage: Stage, job: str) -> None:
    """Many edits within a moment, and Apply at once: none is lost on the way."""
    for share in (0.9, 0.8, 0.35, 0.65, 0.55):
        _set(page, "accuracy", share)
    page.get_by_role("slider", name="Weight of accuracy").dispatch_event("change")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".steer-state.is-applied")).to_contain_text("accuracy 55%")
    assert stage.client.steering(job)["weights"]["accuracy"] == pytest.approx(0.55, abs=1e-3)


def test_two_people_edit_at_once_and_the_second_keeps_an_edit(
    page: Page, stage: Stage, job: str, new_viewer: NewViewer
) -> None:
    key = stage.client.create_key(name="the other", scopes=["read", "steer"])["key"]
    other = new_viewer(key).open(f"/jobs/{job}")
    expect(other.locator(".steer-state")).to_contain_text("In force")
    _set(page, "accuracy", 0.6)
    _set(other, "accuracy", 0.5)
    expect(page.locator(".steer-state")).to_contain_text("Edited")
    other.get_by_role("button", name="Apply").click()
    expect(other.locator(".steer-state.is-applied")).to_be_visible()
    conflict = page.locator(".conflict")
    expect(conflict).to_contain_text("Someone else steered meanwhile")
    expect(conflict).to_contain_text("the other")
    assert _value(page, "accuracy") == pytest.approx(0.6, abs=0.01), "the edit is kept"
    page.get_by_role("button", name="Apply").click()  # on the old version: refused, and still kept
    expect(page.get_by_text("your edit is kept")).to_be_visible()
    assert stage.client.steering(job)["weights"]["accuracy"] == pytest.approx(0.5, abs=0.01)
    conflict.get_by_role("button", name="Put mine on top").click()
    expect(conflict).to_have_count(0)
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".steer-state.is-applied")).to_contain_text("accuracy 60%")
    expect(other.locator(".changes")).to_contain_text("accuracy 60%, brevity 40%")
    other.close()


def test_an_edit_on_its_way_outlives_what_the_server_said_before_it_came(
    stage: Stage, job: str, new_viewer: NewViewer
) -> None:
    page = new_viewer().page()
    held: list[tuple[WebSocketRoute, str | bytes]] = []
    is_slow = False

    def through(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        socket.on_message(lambda said: held.append((server, said)) if is_slow else server.send(said))

    page.route_web_socket(re.compile("socket.io"), through)
    page.goto(f"{stage.url}/jobs/{job}")
    expect(page.locator(".steer-state")).to_contain_text("In force")
    is_slow = True
    _set(page, "accuracy", 0.7)
    version = stage.client.steering(job)["version"]
    stage.client.steer(job, if_match=version, weights={"accuracy": 0.3, "brevity": 0.7})
    expect(page.locator(".changes")).to_contain_text("accuracy 30%")
    assert _value(page, "accuracy") == pytest.approx(0.7, abs=0.01)
    is_slow = False
    for server, said in held:
        server.send(said)
    expect(page.locator(".conflict, .steer-state.is-edited").first).to_be_visible()
    assert _value(page, "accuracy") == pytest.approx(0.7, abs=0.01)
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("slider", name="Weight of accuracy")).to_have_value("0.3")
    page.close()


def test_what_is_seen_can_be_saved(page: Page) -> None:
    page.locator("#rollouts").get_by_label("View").select_option("each")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save Rollouts of the step as CSV").click()
    text = Path(saved.value.path()).read_text(encoding="utf-8-sig")
    assert text.startswith('"step","rollout","group","prompt","completion","accuracy","brevity"')
    assert len(text.splitlines()) == 13
    image = page.get_by_role("button", name="Save accuracy as PNG")
    image.scroll_into_view_if_needed()
    with page.expect_download() as saved:
        image.click()
    content = Path(saved.value.path()).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5_000, "a drawn chart, not an empty canvas"


def test_pause_resume_and_cancel_ask_first(page: Page, stage: Stage, job: str) -> None:
    page.get_by_role("button", name="Pause").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Keep running").click()
    expect(dialog).to_have_count(0)
    assert stage.store.job(job).status == "running"
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Save and pause").click()
    pill = page.locator(".job-head .pill").first
    expect(pill).to_have_text("paused")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Report").click()
    assert "<!doctype html>" in Path(saved.value.path()).read_text()[:200].lower()
    page.get_by_role("button", name="Resume").click()
    expect(pill).to_have_text("queued")
    stage.start(job)
    expect(pill).to_have_text("running")
    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("for good")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    assert stage.store.job(job).status == "running"
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(pill).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Cancel job")).to_be_hidden()
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    expect(page.locator("#health")).to_contain_text("The job is cancelled")


@pytest.fixture(scope="module")
def finished(stage: Stage) -> str:
    job = stage.job(steps=24, step_s=0.01, seed=22, every=3)
    stage.wait(lambda: stage.store.job(job).status == "succeeded", what="the end")
    return job


@pytest.fixture(scope="module")
def over(viewer: Viewer, finished: str) -> Page:
    page = viewer.open(f"/jobs/{finished}")
    expect(page.locator(".job-head .pill").first).to_have_text("succeeded")
    wait_for_points(page, "accuracy by step", 24)
    return page


def test_a_point_of_the_front_is_selected_by_a_click_and_forked(
    over: Page, stage: Stage, viewer: Viewer, finished: str
) -> None:
    page, job = over, finished
    scatter = page.get_by_role("img", name=re.compile("^Front of accuracy and brevity"))
    scatter.scroll_into_view_if_needed()
    page.get_by_text("All points as a table").click()
    page.get_by_role("button", name="Select step 0").click()
    detail = page.locator(".chosen-point")
    expect(detail).to_contain_text("Step 0")
    page.get_by_role("button", name="Select step 0").click()
    expect(detail).to_have_count(0)

    newest = max(p["step"] for p in stage.client.front(job)["points"] if p["on_front"])
    _click_point(page, newest)
    expect(detail).to_contain_text("on the front")
    expect(detail).to_contain_text("accuracy")
    use = page.get_by_role("region", name="Use it")
    expect(use).to_contain_text(f"equipoise download {job} {newest} ./{job}-step-{newest}")
    expect(use).to_contain_text(f"vllm serve ./{job}-step-{newest}")
    use.get_by_role("button", name="Copy: fetch it").click()
    expect(use.get_by_text(re.compile("^(Copied|Selected)$"))).to_be_visible()
    with page.expect_download() as saved:
        use.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == f"{job}-step-{newest}.tar"
    with tarfile.open(saved.value.path()) as archive:
        assert {name.split("/")[0] for name in archive.getnames()} == {f"{job}-step-{newest}"}
    page.get_by_role("button", name="Checkpoints").click()
    links = page.get_by_role("dialog").get_by_role("link", name=f"Download the policy of step {newest}")
    expect(links).to_have_attribute("href", f"/jobs/{job}/checkpoints/{newest}/download")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("button", name=re.compile("^Fork$")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name=re.compile("Fork"))).to_be_visible()
    dialog.get_by_label("Name").fill("a fork of it")
    slider = dialog.get_by_role("slider", name="Weight of accuracy")
    slider.evaluate("box => { box.value = 0.2; box.dispatchEvent(new Event('input', {bubbles: true})) }")
    page.wait_for_timeout(400)
    with page.expect_navigation(url=re.compile(rf"/jobs/job-(?!{job[4:]})")):
        dialog.get_by_role("button", name="Start the fork").click()
    expect(page.get_by_role("heading", name="a fork of it")).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("forked from step"))).to_have_attribute("href", f"/jobs/{job}")
    fork = page.url.rpartition("/")[2]
    assert stage.client.steering(fork)["weights"]["accuracy"] == pytest.approx(0.2, abs=0.01)
    expect(page.locator(".job-head .pill").first).to_have_text("queued")
    page.goto(f"{viewer.url}/compare?ids={job},{fork}")
    expect(page.locator(".tree .tree")).to_contain_text("a fork of it")
    expect(page.get_by_role("region", name="Jobs compared")).to_contain_text("toy-22")
    page.goto(f"{viewer.url}/jobs/{job}")
    expect(page.get_by_role("heading", name="toy-22")).to_be_visible()


def _click_point(page: Page, step: int) -> None:
    """On the canvas, where ECharts draws that point."""
    place = """async step => {
        const { echarts } = await import('nicegui-echart');
        const box = document.querySelector('[aria-label^="Front of accuracy"]');
        box.scrollIntoView({ block: 'center' });
        const chart = echarts.getInstanceByDom(box);
        const points = () => chart.getOption().series.find((one) => one.id === 'front').data;
        for (;;) {
            const at = chart.convertToPixel({ seriesId: 'front' }, points().find((one) => one[2] === step).slice(0, 2));
            if (at) return at;
            await new Promise(requestAnimationFrame);
        }
    }"""
    x, y = page.evaluate(place, step)
    box = page.locator('[aria-label^="Front of accuracy"]').bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + x, box["y"] + y)


def test_rollouts_by_step_sorted_by_conflict_and_by_group(over: Page, stage: Stage, finished: str) -> None:
    page, job = over, finished
    table = page.get_by_role("region", name="Rollouts of the step")
    table.scroll_into_view_if_needed()
    expect(table).to_contain_text("train")
    step = page.locator("#rollouts").get_by_label("Step", exact=True)
    step.fill("3")
    step.press("Enter")
    expect(page.locator("#rollouts")).to_contain_text("Step 3: 12 rollouts are kept")
    rows = stage.client.rollouts(job, step=3)["data"]
    page.locator("#rollouts").get_by_label("Order").select_option("-r.accuracy")
    best = max(row["rewards"]["accuracy"] for row in rows)
    expect(table.locator("tbody tr").first).to_contain_text(f"{best:.3g}"[:4])
    page.locator("#rollouts").get_by_label("Order").select_option("conflict:accuracy|brevity")
    versions = f"{rows[0]['policy_version']} / {rows[0]['steering_version']}"
    expect(table.locator("tbody tr").first).to_contain_text(versions)
    table.get_by_role("button", name=re.compile("^Open rollout")).first.click()
    expect(page.locator(".rollout-detail")).to_contain_text("Completion")
    page.locator("#rollouts").get_by_label("View").select_option("groups")
    expect(table.locator("tbody tr")).to_have_count(3)
    step.fill("99999")
    step.press("Enter")
    expect(page.locator("#rollouts .problem")).to_contain_text("no rollouts are kept of this step")
    page.locator("#rollouts").get_by_role("button", name="Latest").click()
    expect(page.locator("#rollouts .problem")).to_have_count(0)


def test_nothing_went_wrong_in_the_browser(viewer: Viewer) -> None:
    assert viewer.problems == []


def test_a_key_that_may_only_read_sees_no_controls_and_is_refused_anyway(
    stage: Stage, new_viewer: NewViewer, job: str
) -> None:
    key = stage.client.create_key(name="reader", scopes=["read"])["key"]
    reader = new_viewer(key)
    page = reader.open(f"/jobs/{job}")
    expect(page.locator(".steer-state")).to_contain_text("This key may look, not steer")
    expect(page.get_by_role("img", name=re.compile("accuracy by step; the latest"))).to_be_visible()
    assert page.get_by_role("slider").count() == 0
    for name in ("Apply", "Preview", "Pause", "Cancel job", "Fork", "Resume"):
        assert page.get_by_role("button", name=name, exact=True).count() == 0, name
    assert page.get_by_role("link", name="Submit").count() == 0
    page.goto(f"{reader.url}/submit")
    expect(page.get_by_text("This key may look, not submit")).to_be_visible()
    with Client(stage.url, key) as client, pytest.raises(Exception, match="scope 'steer'"):
        client.steer(job, mode="manual")
    assert reader.problems == []
