"""Every page and state of the dashboard as a picture, light and dark: `make screenshots`.

    python -m tests.browser.screenshots [FOLDER] [NAME ...]

They show a server with toy jobs and seeded ones, so they differ in figures from run to run, never in kind.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import services.dashboard
from tests.browser.chromium import launch
from tests.browser.conftest import Viewer, wait_for_points
from tests.browser.seeded import lease_of, names_of, write_rollouts
from tests.browser.stage import Stage
from tests.lossy import frozen
from tests.toy_api import KEY

FOLDER = Path(__file__).parents[2] / "deploy" / "screenshots"
MOST_BYTES = 1 << 20  # of the folder, with the report's picture
WIDE, NARROW = (1280, 720), (390, 780)
SCALE = 0.8  # of the wide ones, to fit the room
COLOURS = 24  # of one picture
TOP_PX = 430  # of pages whose state is told in their upper half

Colour = tuple[int, int, int]
LOOKS: dict[Viewer, dict[str, Any]] = {}
Shot = Callable[["Set", Viewer], Page]


class Set:
    """The jobs that the pictures show."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        three = names_of(3)
        self.many = stage.seeded(names_of(5), steps=420, every=10, name="five objectives", total=600)
        self.failed = stage.seeded(three, steps=37, every=5, name="lr too high", status="failed", total=200)
        self.queued = stage.job(start=False, seed=11)
        self.done = stage.job(steps=60, step_s=0.0, seed=12, every=3)
        self.three = stage.seeded(three, steps=180, every=6, name="math, concise and clear", total=300)
        write_rollouts(stage.state_dir, self.three, 180, _rollouts(three))
        told = {"message": "truncated_share is 0.11, above its ceiling of 0.1"}
        lease = lease_of(stage.store, self.three)
        stage.store.event(self.three, "guardrail.breached", told, lease, level="warning")
        stage.client.steer(self.three, mode="manual", weights=dict(zip(three, (0.5, 0.3, 0.2), strict=True)))
        self.live = stage.job(steps=5000, step_s=0.4, seed=13)
        self.reader = stage.client.create_key(name="a viewer", scopes=["read"], owner="acme")["key"]
        self.watcher = stage.client.create_key(name="a viewer", scopes=["read"])["key"]
        stage.wait(lambda: stage.store.job(self.done).status == "succeeded")
        stage.wait_for_step(self.live, 14)


def _rollouts(names: list[str]) -> list[dict[str, object]]:
    answers = (
        "17 * 6 = 102\n102 + 9 = 111\n\\boxed{111}",
        "First we take 17 times 6, which makes 102. Then we add 9, and get 111.\n\\boxed{111}",
        "\\boxed{101}",
        "17 * 6 = 96\n96 + 9 = 105\n\\boxed{105}",
    )
    return [
        {"step": 180, "fence": 1, "policy_version": 179, "steering_version": 1, "group": g, "prompt_index": g,
         "prompt": f"What is 17 * 6 + {9 + g}?", "completion": answer, "tokens": 12 + 7 * i, "truncated": False,
         "rewards": dict(zip(names, (float(i < 2), 0.9 - 0.2 * i, 0.3 + 0.2 * (i != 2)), strict=True)),
         "signal": dict.fromkeys(names, 0.5), "scales": {}, "choice": {}, "advantage": 0.9 - 0.6 * i}
        for g in range(3) for i, answer in enumerate(answers)
    ]  # fmt: skip


def _job(viewer: Viewer, job: str, least: int = 10) -> Page:
    page = viewer.open(f"/jobs/{job}")
    wait_for_points(page, "", least)
    return page


def _at(page: Page, part: str) -> Page:
    page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
    page.wait_for_timeout(700)
    return page


def another(viewer: Viewer) -> Viewer:
    """Somebody else with the same screen."""
    browser = viewer.context.browser
    assert browser is not None
    return Viewer(browser.new_context(**LOOKS[viewer]), viewer.url)


def signin(_: Set, viewer: Viewer) -> Page:
    return another(viewer).open("/signin")


def signin_refused(found: Set, viewer: Viewer) -> Page:
    page = signin(found, viewer)
    page.get_by_label("API key").fill("eqp_wrong")
    page.get_by_role("button").click()
    return page


def jobs(_: Set, viewer: Viewer) -> Page:
    page = viewer.open("/")
    page.wait_for_timeout(500)
    return page


def jobs_empty(found: Set, viewer: Viewer) -> Page:
    return another(viewer).sign_in(found.reader)


def job(found: Set, viewer: Viewer) -> Page:
    return _job(viewer, found.three)


def steering(found: Set, viewer: Viewer) -> Page:
    page = _job(viewer, found.live)
    slider = page.get_by_role("slider", name="Weight of accuracy")
    slider.evaluate("box => { box.value = 0.35; box.dispatchEvent(new Event('input', {bubbles: true})) }")
    expect(page.locator(".steer-state")).to_contain_text("Edited")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator(".preview")).to_be_visible()
    page.locator(".preview").scroll_into_view_if_needed()
    return page


def front(found: Set, viewer: Viewer) -> Page:
    page = _at(_job(viewer, found.many), "front")
    page.get_by_text("All points as a table").click()
    page.get_by_role("button", name=re.compile("^Select step")).nth(3).click()
    page.get_by_text("All points as a table").click()
    return _at(page, "front")


def point(found: Set, viewer: Viewer) -> Page:
    """What is chosen of the front, and how it is used."""
    page = front(found, viewer)
    page.locator(".chosen-point").evaluate("card => card.scrollIntoView()")
    return page


def rollouts(found: Set, viewer: Viewer) -> Page:
    page = _job(viewer, found.three)
    page.get_by_role("button", name="Open rollout 2", exact=True).click()
    return _at(page, "rollouts")


def health(found: Set, viewer: Viewer) -> Page:
    return _at(_job(viewer, found.three), "health")


def log(found: Set, viewer: Viewer) -> Page:
    return _at(_job(viewer, found.three), "log")


def job_failed(found: Set, viewer: Viewer) -> Page:
    return _job(viewer, found.failed)


def job_succeeded(found: Set, viewer: Viewer) -> Page:
    return _job(viewer, found.done)


def job_queued(found: Set, viewer: Viewer) -> Page:
    page = viewer.open(f"/jobs/{found.queued}")
    expect(page.get_by_text("Nothing yet").first).to_be_visible()
    return page


def job_readonly(found: Set, viewer: Viewer) -> Page:
    other = another(viewer)
    other.sign_in(found.watcher).close()
    return _job(other, found.three)


def fork(found: Set, viewer: Viewer) -> Page:
    page = _job(viewer, found.three)
    page.get_by_role("button", name="Fork", exact=True).click()
    page.wait_for_timeout(600)
    return page


def cancel(found: Set, viewer: Viewer) -> Page:
    page = _job(viewer, found.live)
    page.get_by_role("button", name="Cancel job").click()
    page.wait_for_timeout(600)
    return page


def not_found(_: Set, viewer: Viewer) -> Page:
    return viewer.open("/jobs/job-000000000000")


def submit(_: Set, viewer: Viewer) -> Page:
    page = viewer.open("/submit")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("Nothing is wrong with it")).to_be_visible()
    return page


def submit_errors(_: Set, viewer: Viewer) -> Page:
    page = viewer.open("/submit")
    text = page.get_by_label("Spec, as YAML")
    text.fill(text.input_value().replace("steps: 50", "steps: many").replace("weight: 0.6", "wieght: 0.6"))
    text.blur()
    page.get_by_role("button", name="Dry run").click()
    expect(page.locator(".problems")).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    return page


def compare(found: Set, viewer: Viewer) -> Page:
    page = viewer.open(f"/compare?ids={found.failed},{found.three}")
    page.wait_for_timeout(1200)
    return page


def compare_choose(_: Set, viewer: Viewer) -> Page:
    page = viewer.open("/compare")
    page.wait_for_timeout(500)
    return page


def disconnected(found: Set, viewer: Viewer) -> Page:
    """Redis is away, and the page says so."""
    page = _job(viewer, found.three)
    with frozen(found.stage.redis):
        expect(page.locator(".job-head .banner")).to_contain_text("Redis does not answer", timeout=40_000)
        page.evaluate("scrollTo(0, 0)")
    return page


SHOTS: tuple[Shot, ...] = (
    signin, signin_refused, jobs, jobs_empty, job, steering, front, point, rollouts, health, log, job_failed,
    job_succeeded, job_queued, job_readonly, fork, cancel, not_found, submit, submit_errors, compare, compare_choose,
    disconnected,
)  # fmt: skip
STATES = (job_failed, job_succeeded, job_queued, job_readonly, disconnected, not_found)
PHONE: tuple[Shot, ...] = (signin, jobs, job, steering, submit, compare)


def take(browser: Browser, found: Set, folder: Path, wanted: list[str]) -> None:
    for theme in ("light", "dark"):
        for size, shots, suffix in ((WIDE, SHOTS, ""), (NARROW, PHONE, "-phone")):
            look: dict[str, Any] = {"viewport": {"width": size[0], "height": size[1]}, "color_scheme": theme}
            look["device_scale_factor"] = 1 if suffix else SCALE
            viewer = Viewer(browser.new_context(**look), found.stage.url)
            LOOKS[viewer] = look
            viewer.sign_in(KEY).close()
            for shot in shots:
                name = f"{shot.__name__.replace('_', '-')}{suffix}-{theme}"
                if wanted and not any(part in name for part in wanted):
                    continue
                page = shot(found, viewer)
                page.wait_for_timeout(250)
                height = TOP_PX if shot in STATES else size[1]
                clip: Any = {"x": 0, "y": 0, "width": size[0], "height": height}
                save(page.screenshot(animations="disabled", clip=clip), folder / f"{name}.png")
                print(name, (folder / f"{name}.png").stat().st_size, flush=True)
                page.close()
            for said in viewer.problems:
                print(f"  {theme}{suffix}: {said}")
            viewer.context.close()


def save(png: bytes, path: Path) -> None:
    """In the theme's own colours, their mixtures with the ground, and the shades of its text: a page has no others."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    theme = themes()["dark" if "dark" in path.name else "light"]
    card, ink = theme["card"], theme["ink"]
    shades = [mixed(ink, card, share / 11) for share in range(12)]
    unseen = {f"s{i}" for i in range(8, 31)}  # no picture has so many objectives
    hues = [colour for name, colour in theme.items() if name not in unseen]
    hues += [mixed(theme[f"s{i}"], card, share) for i in range(8) for share in (0.16, 0.5, 0.75)]
    hues += [mixed(theme["muted"], card, 0.5), mixed(theme["accent"], card, 0.6), (0, 0, 0), (255, 255, 255)]
    palette = Image.new("P", (1, 1))
    flat = [part for colour in dict.fromkeys([*hues, *shades]) for part in colour]
    palette.putpalette(flat + flat[:3] * (256 - len(flat) // 3))
    plain = image.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")
    plain.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def themes() -> dict[str, dict[str, Colour]]:
    """The colours of theme.css."""
    sheet = (Path(services.dashboard.__file__).parent / "static" / "theme.css").read_text()
    blocks = {"light": sheet.partition(":root {")[2], "dark": sheet.partition('[data-theme="dark"] {')[2]}
    found: dict[str, dict[str, Colour]] = {}
    for name, block in blocks.items():
        pairs = re.findall(r"--([a-z0-9-]+): #([0-9a-f]{6});", block.partition("}")[0])
        found[name] = {key: (int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16)) for key, h in pairs}
    return found


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="equipoise-screenshots-"))
    try:
        with sync_playwright() as playwright, Stage(scratch) as stage:
            browser = launch(playwright)
            take(browser, Set(stage), folder, arguments[1:])
            browser.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1024:.0f} KiB of {MOST_BYTES // 1024}")
    if size > MOST_BYTES:
        sys.exit("more than there is room for: fewer colours, or fewer pictures")


if __name__ == "__main__":
    main(sys.argv[1:])
