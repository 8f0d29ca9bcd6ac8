"""Signing in, the job table, submitting, comparing, and the states of every page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NewViewer, Viewer, wait_for_points
from tests.browser.seeded import names_of
from tests.browser.stage import Stage
from tests.lossy import frozen
from tests.toy_api import KEY


@pytest.fixture(scope="module")
def many(stage: Stage) -> str:
    """Five objectives, so every kind of chart."""
    return stage.seeded(names_of(5), steps=120, every=6, name="five objectives", total=300)


@pytest.fixture(scope="module")
def failed(stage: Stage) -> str:
    return stage.seeded(names_of(3), steps=9, every=3, name="it failed", status="failed", total=20)


def test_a_wrong_key_a_right_one_and_the_way_back(new_viewer: NewViewer, many: str) -> None:
    viewer = new_viewer(None)
    page = viewer.open(f"/jobs/{many}")
    expect(page.get_by_role("heading", name="Equipoise")).to_be_visible()
    page.get_by_label("API key").fill("eqp_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("No such key: it is wrong, expired or revoked.")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="five objectives")).to_be_visible()
    cookie = viewer.context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert page.evaluate("document.cookie") == ""
    assert KEY not in page.content()
    other = viewer.open("/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")
    expect(other.get_by_label("API key")).to_be_visible()  # every page of the session is left
    page.goto(f"{viewer.url}/jobs/{many}")
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_key_that_is_revoked_leaves_its_pages(stage: Stage, new_viewer: NewViewer, many: str) -> None:
    key = stage.client.create_key(name="short", scopes=["read"])
    page = new_viewer(key["key"]).open(f"/jobs/{many}")
    wait_for_points(page, "accuracy", 120)
    stage.client.revoke_key(key["id"])
    expect(page.locator(".signin-note")).to_contain_text("it is expired or revoked")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="five objectives")).to_be_visible()  # where it was


def test_another_owner_sees_nothing_of_it(stage: Stage, new_viewer: NewViewer, many: str) -> None:
    viewer = new_viewer(stage.client.create_key(name="theirs", scopes=["admin"], owner="other")["key"])
    page = viewer.open("/")
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    page.goto(f"{viewer.url}/jobs/{many}")
    expect(page.get_by_role("alert")).to_contain_text("Not found")
    page.goto(f"{viewer.url}/compare?ids={many}")
    expect(page.get_by_role("alert")).to_contain_text("Not found")


@pytest.mark.usefixtures("many", "failed")
def test_the_job_table_is_live_filtered_and_saved(stage: Stage, viewer: Viewer) -> None:
    page = viewer.open("/")
    table = page.get_by_role("region", name="Jobs", exact=True)
    row = table.locator("tr", has_text="it failed")
    expect(row).to_contain_text("failed")
    expect(row).to_contain_text("the learner's loss was not finite")
    expect(row).to_contain_text("9 of 20")
    expect(row.locator("svg.spark")).to_have_count(3)
    page.get_by_label("State").select_option("running")
    expect(table).not_to_contain_text("it failed")
    expect(table).to_contain_text("five objectives")
    page.get_by_label("State").select_option("")
    page.get_by_label("Name or id on this page").fill("it f")
    page.keyboard.press("Enter")
    expect(table.locator("tbody tr")).to_have_count(1)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save Jobs as CSV").click()
    assert '"it failed","failed"' in Path(saved.value.path()).read_text()
    page.get_by_label("Name or id on this page").fill("nobody has this name")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No job on this page is like that.")).to_be_visible()
    page.get_by_label("Name or id on this page").fill("")
    page.keyboard.press("Enter")
    new = stage.job(seed=77, start=False)
    expect(table).to_contain_text("toy-77")
    stage.client.cancel(new)
    expect(table.locator("tr", has_text="toy-77")).to_contain_text("cancelled")
    page.close()


def test_a_bad_spec_is_told_at_its_field_and_a_good_one_runs(stage: Stage, viewer: Viewer) -> None:
    page = viewer.open("/submit")
    text = page.get_by_label("Spec, as YAML")
    good = text.input_value()
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("Nothing is wrong with it")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("12,800")
    expect(page.get_by_text("Is this meant?")).to_have_count(0)
    text.fill(good.replace("warmup_steps: 5", "warmup_steps: 60"))
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("Is this meant?")).to_be_visible()
    expect(page.get_by_text("the learning rate still rises")).to_be_visible()
    text.fill(good.replace("steps: 50", "steps: many").replace("weight: 0.6", "wieght: 0.6"))
    text.blur()
    page.get_by_role("button", name="Submit").click()
    problems = page.locator(".problems li")
    expect(problems).to_have_count(2)
    expect(problems.first).to_contain_text("line 4: steps: ")
    expect(problems.last).to_contain_text("objectives.0.wieght: unknown field, did you mean 'weight'?")
    expect(page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
    problems.first.get_by_role("button").click()
    assert text.evaluate("box => box.value.slice(box.selectionStart, box.selectionEnd)") == "steps: many"
    before = {job["id"] for job in stage.client.jobs()["data"]}
    text.fill(good.replace("model: quickstart", "model: /nowhere"))  # only the server can know
    text.blur()
    page.get_by_role("button", name="Submit").click()
    expect(problems.first).to_contain_text("policy.model")
    expect(page.get_by_label("Policy")).to_have_attribute("aria-invalid", "true")
    text.fill("a: [")
    text.blur()
    expect(page.locator(".field-code .problem")).to_contain_text("not valid YAML")
    assert {job["id"] for job in stage.client.jobs()["data"]} == before, "nothing was queued"

    start = page.get_by_label("Start from")
    start.select_option("quickstart")
    expect(text).to_have_value(good)
    start.select_option(label="what was here")
    expect(text).to_have_value("a: [")
    start.select_option("quickstart")
    expect(text).to_have_value(good)
    page.get_by_label("Name", exact=True).fill("from the form")
    page.get_by_label("Steps").fill("7")
    page.get_by_label("Weight of clarity").fill("0.9")
    page.get_by_label("Weighting").select_option("fixed")
    expect(text).to_have_value(re.compile("name: from the form\n.*steps: 7\n", re.DOTALL))
    expect(text).to_have_value(re.compile("# steps, then a boxed answer"))
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="from the form")).to_be_visible()
    spec = stage.client.job(page.url.rpartition("/")[2])["spec"]
    assert (spec["steps"], spec["weighting"]["name"], spec["objectives"][2]["weight"]) == (7, "fixed", 0.9)
    for panel in ("The first evaluation gives the first point.", "No rollouts are kept yet.", "Nothing yet"):
        expect(page.get_by_text(panel).first).to_be_attached()
    expect(page.get_by_text("No driver works on it: it waits for a worker.")).to_be_attached()
    stage.client.cancel(page.url.rpartition("/")[2])
    page.close()


def test_a_file_of_prompts_becomes_a_dataset_of_the_spec(stage: Stage, viewer: Viewer) -> None:
    page = viewer.open("/submit")
    prompts = page.get_by_role("region", name="Prompts")
    prompts.get_by_role("button", name="Upload").click()
    expect(prompts.get_by_role("alert")).to_have_text("choose a .jsonl, .csv or .parquet file")
    good: Any = {"name": "mine.csv", "mimeType": "text/csv", "buffer": b"question,answer\nWhat is 1+1?,2\n"}
    prompts.get_by_label("File").set_input_files([good])
    prompts.get_by_label("Column of prompts").fill("question")
    prompts.get_by_role("button", name="Upload").click()
    expect(prompts.get_by_role("status")).to_contain_text("is data.train now; rows: 1.")
    kept = stage.client.datasets()["data"][0]
    assert (kept["name"], kept["rows"]) == ("mine.csv", 1)
    expect(page.get_by_label("Spec, as YAML")).to_have_value(re.compile(f"train: 'dataset:{kept['id']}'"))
    page.close()


def test_what_is_typed_outlives_a_page_that_is_loaded_anew(new_viewer: NewViewer) -> None:
    viewer = new_viewer()
    page = viewer.open("/submit")
    text = page.get_by_label("Spec, as YAML")
    mine = text.input_value().replace("steps: 50", "steps: 51")
    text.fill(mine)
    page.reload()
    expect(page.get_by_text("what you had typed here")).to_be_visible()
    expect(text).to_have_value(mine)
    expect(page.get_by_label("Steps")).to_have_value("51")  # and the server knows it
    page.get_by_label("Steps").fill("52")
    page.get_by_label("Steps").blur()
    expect(text).to_have_value(re.compile("steps: 52"))
    page.reload()
    expect(page.get_by_label("Steps")).to_have_value("52")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.goto(f"{viewer.url}/submit")
    expect(page.get_by_label("Steps")).to_have_value("50")
    assert viewer.problems == []


@pytest.mark.usefixtures("failed")
def test_comparing(viewer: Viewer, many: str) -> None:
    page = viewer.open("/compare")
    page.get_by_role("button", name="Add it failed").click()
    page.get_by_role("button", name="Add five objectives").click()
    expect(page.get_by_text("2 chosen")).to_be_visible()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="These have no common scale")).to_be_visible()
    expect(page.get_by_role("region", name="Jobs compared").locator("tbody tr")).to_have_count(2)
    page.goto(f"{viewer.url}/compare?ids={many}")
    fronts = page.get_by_role("img", name="Fronts of the jobs")
    fronts.scroll_into_view_if_needed()  # below the list of jobs, and drawn where it is in sight
    expect(fronts.locator("canvas")).to_be_visible()
    page.get_by_label("Pair").select_option("clarity|style")
    page.goto(f"{viewer.url}/compare?ids=job-000000000000")
    expect(page.get_by_role("alert")).to_contain_text("Not found")
    page.close()


def test_a_redis_that_is_away_is_told_and_waited_for(stage: Stage, viewer: Viewer, many: str) -> None:
    page = viewer.open(f"/jobs/{many}")
    wait_for_points(page, "accuracy", 120)
    with frozen(stage.redis):
        banner = page.locator(".job-head .banner")
        expect(banner).to_contain_text("the server's Redis does not answer")
        expect(page.get_by_role("img", name=re.compile("accuracy by step")).locator("canvas")).to_be_visible()
    expect(banner).to_be_empty()
    page.close()


def test_a_server_that_is_gone_is_told_and_the_way_back_is_the_sign_in(
    stage: Stage, new_viewer: NewViewer, many: str
) -> None:
    viewer = new_viewer()
    page = viewer.open(f"/jobs/{many}")
    wait_for_points(page, "accuracy", 120)
    step = stage.store.job(many).step
    stage.api.kill()
    expect(page.get_by_text("Connection lost")).to_be_visible()
    assert stage.store.job(many).step == step
    stage.api.start()
    expect(page.get_by_label("API key")).to_be_visible(timeout=30_000)


def test_it_is_usable_on_a_phone_and_with_a_keyboard(new_viewer: NewViewer, many: str) -> None:
    viewer = new_viewer(viewport={"width": 390, "height": 780}, has_touch=True)
    for path in ("/", f"/jobs/{many}", "/submit", f"/compare?ids={many}"):
        page = viewer.open(path)
        expect(page.get_by_role("heading").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
        page.close()
    page = viewer.open(f"/jobs/{many}")
    expect(page.locator(".steer-state")).to_contain_text("In force")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    slider = page.get_by_role("slider", name="Weight of clarity")
    slider.focus()
    before = slider.input_value()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".steer-state")).to_contain_text("Edited")
    expect(slider).not_to_have_value(before)
    assert float(slider.input_value()) > float(before)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Lock clarity")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Lock clarity")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Cancel job").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert viewer.problems == []


def test_times_are_in_the_viewers_zone(stage: Stage, new_viewer: NewViewer, failed: str) -> None:
    shown = {}
    for zone in ("Asia/Tokyo", "America/New_York"):
        page = new_viewer(timezone_id=zone, locale="en-GB").open(f"/jobs/{failed}")
        first = page.get_by_role("region", name="Events").locator("time").last
        expect(first).to_be_attached()
        shown[zone] = (first.get_attribute("title") or "")[-30:], first.inner_text()
        page.close()
    at = stage.client.events(failed, limit=1)["data"][0]["at"]
    tokyo, york = (int(shown[zone][1][-8:-6]) for zone in shown)
    assert (tokyo - york) % 24 in (13, 14)
    assert (tokyo - int(at // 3600)) % 24 == 9


def test_light_dark_and_the_choice_between_them(new_viewer: NewViewer) -> None:
    viewer = new_viewer(color_scheme="dark")
    page = viewer.open("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    button = page.get_by_role("button", name=re.compile("^Theme"))
    expect(button).to_have_text("Auto")
    assert page.evaluate(ground) == "rgb(15, 19, 26)"
    button.click()
    expect(button).to_have_text("Light")
    assert page.evaluate(ground) == "rgb(245, 246, 248)"
    page.reload()
    expect(button).to_have_text("Light")
    assert page.evaluate(ground) == "rgb(245, 246, 248)"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(
    new_viewer: NewViewer, axe_script: str, many: str, failed: str, theme: str
) -> None:
    viewer = new_viewer(color_scheme=theme, bypass_csp=True)  # for axe's own script
    signed_out = new_viewer(None, color_scheme=theme, bypass_csp=True)
    rules = ["color-contrast"] if theme == "dark" else None  # dark differs in its colours alone
    found = {"sign in": axe(signed_out.open("/signin"), axe_script, rules)}
    pages = {"jobs": "/", "submit": "/submit"}
    if theme == "light":
        pages |= {"compare": f"/compare?ids={many},{failed}", "choose": "/compare", "not found": "/jobs/none"}
        pages["failed"] = f"/jobs/{failed}"
    for name, path in pages.items():
        page = viewer.open(path)
        page.wait_for_timeout(400)
        found[name] = axe(page, axe_script, rules)
        page.close()
    page = viewer.open(f"/jobs/{many}")
    wait_for_points(page, "accuracy", 120)
    page.get_by_text("All points as a table").click()
    page.get_by_role("slider", name="Weight of accuracy").press("ArrowRight")
    found["job"] = axe(page, axe_script, rules)
    faint = {"light": "#999", "dark": "#444"}[theme]
    page.evaluate(f"document.querySelector('.job-name').style.color = '{faint}'")
    assert axe(page, axe_script, ["color-contrast"]), "it would have been found"
    page.evaluate("document.querySelector('.job-name').style.color = ''")
    page.get_by_role("button", name="Fork", exact=True).click()
    page.wait_for_timeout(500)
    found["fork"] = axe(page, axe_script, rules)
    assert {name: problems for name, problems in found.items() if problems} == {}
    page.evaluate("document.querySelector('[role=img]').ariaLabel = ''")
    assert axe(page, axe_script, ["role-img-alt"]), "it would have been found"


def axe(page: Page, script: str, rules: list[str] | None) -> list[str]:
    """Serious and critical violations of these rules, or of all, each with the first element that has it."""
    page.evaluate(script)
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    result = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{found['id']}: {found['nodes'][0]['html'][:160]} ({len(found['nodes'])})"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
    ]
