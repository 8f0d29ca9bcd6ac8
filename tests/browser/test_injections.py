"""Thirty injections in every field that a user or a model fills: each is shown as the text that it is."""

from __future__ import annotations

import json
import random
from urllib.parse import quote

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from services.client import Client
from tests.browser.conftest import NewViewer, Viewer
from tests.browser.seeded import front_of, lease_of, spec_of, write_rollouts
from tests.browser.stage import Stage

HIT = "window.hit=(window.hit||0)+1"
PAYLOADS = (
    f"<script>{HIT}</script>",
    f"<img src=x onerror={HIT}>",
    f"<svg onload={HIT}>",
    f"\"><script>{HIT}</script>",
    f"'><img src=x onerror={HIT}>",
    f"</script><script>{HIT}</script>",
    f"</title><script>{HIT}</script>",
    f"</textarea><img src=x onerror={HIT}>",
    f"</style><svg/onload={HIT}>",
    "<iframe srcdoc='<script>parent.hit=(parent.hit||0)+1</script>'>",
    f"<details open ontoggle={HIT}>x",
    f"<input autofocus onfocus={HIT}>",
    f"<body onload={HIT}>",
    f"<a href=javascript:{HIT}>x</a>",
    f"javascript:{HIT}",
    f"<math><mtext></mtext><style><img src=x onerror={HIT}></style></math>",
    f"<video><source onerror={HIT}></video>",
    f"<object data=javascript:{HIT}>",
    f"<link rel=import href='data:text/html,<script>{HIT}</script>'>",
    f"{{{{constructor.constructor('{HIT}')()}}}}",
    f"${{{HIT}}}",
    f"`-({HIT})-`",
    f"`${{{HIT}}}`",
    f"';{HIT};//",
    f"\\\";{HIT};//",
    f"&lt;img src=x onerror={HIT}&gt;",
    f"\u2028{HIT}//",
    f"<<a|<script>{HIT}</script>>",
    f"{{c|{HIT}}}<img src=x onerror={HIT}>",
    f":options={HIT}",
)  # fmt: skip
NAMES = list(PAYLOADS)  # of objectives, which a spec could not have: the page must not rely on that


def test_thirty() -> None:
    assert len(set(PAYLOADS)) == 30
    assert all(len(payload) <= 128 for payload in PAYLOADS)


@pytest.fixture(scope="module")
def job(stage: Stage) -> str:
    """A job that holds them all in every field of its page."""
    spec = spec_of(NAMES, name=PAYLOADS[3], steps=6)
    spec["metadata"] = {f"k{i}": payload for i, payload in enumerate(PAYLOADS)}
    spec["policy"]["model"] = PAYLOADS[0]
    spec["weighting"] = {"name": PAYLOADS[1]}
    job = stage.seeded(NAMES, steps=6, spec=spec, name=PAYLOADS[3])
    store, lease = stage.store, lease_of(stage.store, job)
    front = front_of(NAMES, 6, 1, random.Random(1))
    for point in front["points"]:
        point["on_front"] = True
    store.set_front(lease, front)
    for step in (1, 2, 3):
        metrics = {"objectives": dict.fromkeys(NAMES, 0.5)}
        store.register_checkpoint(lease, step=step, path=PAYLOADS[step], digest="0")
        store.update_checkpoints(lease, {step: {"on_front": True, "metrics": metrics}})
    for i, payload in enumerate(PAYLOADS):
        store.event(job, payload, {"message": payload}, lease, level="warning", token=f"t{i}")
        store.event(
            job, "told", {payload: payload, "nested": {payload: [payload]}}, lease, level="error", token=f"u{i}"
        )
    rows = [
        {"step": 6, "fence": 1, "policy_version": payload, "steering_version": payload, "group": i, "prompt_index": i,
         "prompt": payload if i % 2 else [{"role": payload, "content": payload}], "completion": payload, "tokens": i,
         "truncated": False, "rewards": dict.fromkeys(NAMES, i / 30), "signal": dict.fromkeys(NAMES, i / 30),
         "scales": {}, "choice": {}, "advantage": 0.1}
        for i, payload in enumerate(PAYLOADS)
    ]  # fmt: skip
    write_rollouts(stage.state_dir, job, 6, rows)
    for payload in PAYLOADS[:12]:
        stage.store.steer(
            job,
            change={"weights": {payload: 0.5}, "mode": payload},
            by=payload,
            if_match=stage.store.steering(job).version,
        )
    store.set_progress(lease, {"stage": PAYLOADS[1], "eta_s": 4})
    return job


@pytest.fixture(scope="module")
def hostile(stage: Stage, new_viewer: NewViewer) -> Viewer:
    """Of a key whose name is one too; with all that the browser said."""
    return new_viewer(stage.client.create_key(name=PAYLOADS[1][:64], scopes=["admin"])["key"])


def _clean(page: Page, viewer: Viewer) -> None:
    assert page.evaluate("window.hit || 0") == 0
    assert [said for said in viewer.problems if said.startswith(("dialog", "pageerror"))] == []
    refused = [said for said in viewer.problems if "Content Security Policy" in said]
    assert refused == [], "nothing even came to where the policy has to stop it"
    for tag in ("iframe", "object", "embed", "base", "video", "math"):
        assert page.locator(f"body {tag}").count() == 0, tag
    assert page.locator("[onerror], [onload], [onfocus], [ontoggle]").count() == 0
    assert page.locator("a[href^='javascript:' i]").count() == 0


def test_the_payloads_are_live_and_the_policy_stops_them(browser: Browser, hostile: Viewer) -> None:
    """Put in as HTML they run on a bare page, and none does on ours: what the other tests see could fail."""
    put_in = """payloads => {
        for (const payload of payloads) {
            const box = document.createElement('div');
            box.innerHTML = payload;
            document.body.append(box);
        }
    }"""
    bare = browser.new_page()
    bare.route("http://bare.test/**", lambda route: route.fulfill(content_type="text/html", body="<body></body>"))
    bare.goto("http://bare.test/")
    bare.evaluate(put_in, list(PAYLOADS))
    bare.wait_for_function("window.hit >= 5")
    bare.close()
    page = hostile.open("/compare")
    expect(page.get_by_role("heading", name="Compare jobs")).to_be_visible()
    refused = len(hostile.problems)
    page.evaluate(put_in, list(PAYLOADS))
    page.wait_for_timeout(1000)
    assert page.evaluate("window.hit || 0") == 0
    assert any("Content Security Policy" in said for said in hostile.problems[refused:])
    page.close()
    hostile.problems.clear()


def test_a_jobs_page_shows_them_as_text(stage: Stage, hostile: Viewer, job: str) -> None:
    page = hostile.open(f"/jobs/{job}")
    expect(page.get_by_role("heading", name=PAYLOADS[3], exact=True)).to_be_visible()
    assert page.title() == f"{PAYLOADS[3]} - Equipoise"
    events = page.get_by_role("region", name="Events")
    expect(events.locator("tbody tr")).to_have_count(63)
    rollouts = page.get_by_role("region", name="Rollouts of the step")
    expect(rollouts.locator("tbody tr")).to_have_count(30)
    shown = rollouts.locator("tbody tr td:nth-child(4)").all_text_contents()
    assert shown == list(PAYLOADS), "to the letter"
    told = events.locator("tbody td:nth-child(4)").all_text_contents()
    assert set(PAYLOADS) <= set(told)
    spec = page.get_by_label("Resolved spec").text_content() or ""
    assert list(yaml.safe_load(spec)["metadata"].values()) == list(PAYLOADS)
    expect(page.locator(".weight-name").nth(29)).to_contain_text(PAYLOADS[29])
    expect(page.locator(".changes li").first).to_contain_text(PAYLOADS[11])
    _use_everything(page)
    lease = lease_of(stage.store, job)
    for payload in PAYLOADS[4:8]:
        stage.store.set_progress(lease, {"stage": payload, "eta_s": 1})
        stage.store.event(job, "told", {"message": payload}, lease)
        expect(page.locator("#health")).to_contain_text(payload)
    _clean(page, hostile)
    page.close()


def _use_everything(page: Page) -> None:
    """Tooltips, dialogs, details, another pair, groups."""
    page.locator("#front").get_by_label("Pair").select_option(index=5)
    page.get_by_text("All points as a table").click()
    page.get_by_role("button", name="Select step 2").click()
    expect(page.locator(".chosen-point")).to_contain_text(PAYLOADS[2])
    for chart in page.locator(".chart-canvas").all()[:36:3]:
        chart.scroll_into_view_if_needed()
        chart.hover()
    rollouts = page.locator("#rollouts")
    rollouts.get_by_role("button", name="Open rollout 1", exact=True).click()
    expect(rollouts.locator(".verbatim").last).to_have_text(PAYLOADS[0])
    rollouts.get_by_label("Order").select_option(index=61)
    rollouts.get_by_label("View").select_option("groups")
    page.get_by_role("button", name="Checkpoints").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(PAYLOADS[1])
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Fork", exact=True).click()
    expect(dialog.get_by_label("Name")).to_have_value(f"{PAYLOADS[3]} fork")
    dialog.get_by_role("button", name="Close").click()


def test_the_job_table_and_its_csv(stage: Stage, hostile: Viewer, job: str) -> None:
    stage.store.set_progress(lease_of(stage.store, job), {"stage": PAYLOADS[1], "eta_s": 1})
    for i, payload in enumerate(PAYLOADS):
        made = stage.seeded(["a"], steps=1, name=payload, spec=spec_of(["a"], name=payload, steps=2))
        if i % 3 == 0:
            stage.store.release(lease_of(stage.store, made), payload)  # back in the queue, with its reason
    page = hostile.open("/")
    table = page.get_by_role("region", name="Jobs", exact=True)
    expect(table.locator("tbody tr")).to_have_count(25)
    seen = set(table.locator("tbody td:nth-child(1)").all_text_contents())
    seen_reasons = set(table.locator("tbody td:nth-child(3)").all_text_contents())
    page.get_by_role("button", name="Older").click()
    expect(table.locator("tbody tr").first).not_to_contain_text(PAYLOADS[29])
    seen |= set(table.locator("tbody td:nth-child(1)").all_text_contents())
    seen_reasons |= set(table.locator("tbody td:nth-child(3)").all_text_contents())
    assert set(PAYLOADS) <= seen
    assert set(PAYLOADS[::3]) <= seen_reasons
    _clean(page, hostile)
    page.close()


def test_compare_and_submit(stage: Stage, hostile: Viewer, job: str) -> None:
    others = [found["id"] for found in stage.client.jobs(limit=7)["data"]]
    page = hostile.open(f"/compare?ids={','.join([job, *others])}")
    expect(page.get_by_role("region", name="Jobs compared").locator("tbody tr")).to_have_count(8)
    page.get_by_role("img", name="Fronts of the jobs").hover()
    _clean(page, hostile)
    page.goto(f"{hostile.url}/submit?like={job}")
    text = page.get_by_label("Spec, as YAML")
    expect(text).to_be_visible()
    page.get_by_role("button", name="Dry run").click()
    expect(page.locator(".problems li").first).to_contain_text("objectives")
    for payload in PAYLOADS:
        text.fill(
            f"name: {json.dumps(payload)}\n{json.dumps(payload)}: {json.dumps(payload)}\nsteps: {json.dumps(payload)}\n"
        )
        text.blur()
        page.get_by_role("button", name="Dry run").click()
        expect(page.locator(".problems li", has_text="unknown field").first).to_be_visible()
        expect(page.get_by_label("Name", exact=True)).to_have_value(payload)
    _clean(page, hostile)
    page.close()


def test_addresses_are_no_way_in(hostile: Viewer) -> None:
    page = hostile.page()
    for path in ("/jobs/{}", "/submit?like={}", "/compare?ids={}", "/signin?next={}"):
        for payload in PAYLOADS[:5]:
            page.goto(hostile.url + path.format(quote(payload, safe="")))
            assert page.evaluate("window.hit || 0") == 0
    _clean(page, hostile)
    page.close()


def test_a_sign_in_that_is_refused_repeats_nothing(new_viewer: NewViewer, stage: Stage) -> None:
    viewer = new_viewer(None)
    page = viewer.open("/signin")
    for payload in PAYLOADS[:6]:
        page.get_by_label("API key").fill(payload)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert "hit" not in page.content()
    with Client(stage.url, "eqp_x") as client, pytest.raises(Exception, match="unknown, expired or revoked"):
        client.jobs()
    _clean(page, viewer)
