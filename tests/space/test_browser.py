"""The page in headless Chromium, as a visitor sees it."""

import base64
import io
import shutil
import time

import pytest
from PIL import Image

from tests.launch import ROOT
from tests.space.test_uploads import write_video


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; run `make page-test`")
pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Root and small /dev/shm, as in containers, need the first and the last.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
SAMPLE = ROOT / "model_card" / "sample"
POSES = [str(path) for path in sorted((SAMPLE / "poses").glob("*.png"))]
NEWEST = "#live figure:last-child img"


@pytest.fixture(scope="module")
def browser(server):
    if CHROMIUM is None:
        pytest.skip(f"no browser is installed under the names {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """A function that opens the page at a size, and returns it with what it reported as errors."""
    opened = []

    def open_page(width=1100, height=900):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(30_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        opened.append(page)
        page.goto(server.address)
        page.wait_for_selector(NEWEST)
        return page

    yield open_page
    for page in opened:
        assert page.errors == []
        page.close()


def show_own(page):
    page.get_by_role("tab", name="Your own").click()
    page.wait_for_selector("#animate")


def wait_for_files(page, number):
    page.wait_for_function(f"document.querySelectorAll('#photo a, #poses a').length === {number + 1}")


def choose_steps(page, number):
    """Sample with a number of the model's own steps, whose controls are folded at first."""
    full = page.get_by_label("Full", exact=True).locator("visible=true")
    if full.count() == 0:
        page.get_by_text("How it is sampled").locator("visible=true").click()
    full.check()
    steps = page.get_by_label("number input for Steps").locator("visible=true")
    page.wait_for_timeout(500)  # until the switch has brought the model's own number
    steps.fill(str(number))
    steps.press("Tab")


def test_the_page_opens_with_a_figure_that_moves(visit):
    page = visit()
    first = page.locator(NEWEST).screenshot()
    page.wait_for_timeout(400)
    assert page.locator(NEWEST).screenshot() != first


def test_another_motion_is_shown_frame_by_frame_as_it_is_made(visit):
    page = visit()
    page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const note = document.querySelector("#live [role=status]");
                if (note && note.innerText !== (window.seen.at(-1) || [])[0])
                    window.seen.push([note.innerText, performance.now()]);
            }).observe(document.querySelector("#live"), {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.get_by_label("Raise both arms").check()
    page.wait_for_function("window.seen.length > 1 && window.seen.at(-1)[0].startsWith('16 frames')")
    assert page.locator("#live figure").count() == 3
    made = [time for note, time in page.evaluate("window.seen") if note.startswith("Frame ")]
    assert len(made) >= 4  # of 16; the browser may leave out some
    rate = 1000 * (len(made) - 1) / (made[-1] - made[0])
    print(f"{rate:.1f} frames a second are shown as they are made")
    assert rate > 2


def test_a_slider_poses_the_body_by_keyboard(visit):
    page = visit()
    turn = page.get_by_label("range slider for Turn")
    turn.focus()
    for _ in range(3):
        turn.press("ArrowRight")
    page.wait_for_function("document.querySelector('#live [role=status]').innerText.startsWith('Your pose')")
    before = page.locator(NEWEST).get_attribute("src")
    turn.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('{NEWEST}').src !== {before!r}")


def test_the_switch_to_full_steps_brings_the_models_own_values(visit):
    page = visit()
    page.get_by_text("How it is sampled").first.click()
    full = page.get_by_label("Full", exact=True).first
    if not full.is_enabled() or page.get_by_label("Few steps", exact=True).count() == 0:
        pytest.skip("the small model has no few-step LoRA in this checkout")
    full.check()
    steps = page.get_by_label("number input for Steps").first
    page.wait_for_function("element => element.value === '4'", arg=steps.element_handle())


def test_the_sample_runs_from_its_button_to_a_video_that_plays(visit):
    page = visit()
    show_own(page)
    page.click("#sample")
    wait_for_files(page, len(POSES))
    page.click("#animate")
    video = page.wait_for_selector("#video video")
    page.wait_for_function("video => video.duration > 0", arg=video)
    assert video.evaluate("video => video.duration") == pytest.approx(len(POSES) / 12, abs=0.05)
    video.evaluate("video => { video.muted = true; return video.play(); }")
    page.wait_for_function("video => video.currentTime > 0.3", arg=video)
    assert "32 frames in" in page.inner_text("#own")
    assert "animate.py --model model_card/tiny" in page.inner_text("#code")
    with page.expect_download() as download:
        page.locator("#download a").first.click()
    assert download.value.suggested_filename == "dreampose.zip"


def test_visitors_see_the_length_of_the_queue_and_get_each_their_own_video(visit):
    first, second, third = (visit() for _ in range(3))
    for page, poses in ((first, POSES), (second, POSES[:9])):
        show_own(page)
        page.set_input_files("#photo input[type=file]", str(SAMPLE / "photo.png"))
        page.set_input_files("#poses input[type=file]", poses)
        wait_for_files(page, len(poses))
    choose_steps(first, 8)
    first.click("#animate")
    first.wait_for_function("document.querySelector('#own').innerText.includes('Frame ')")
    second.click("#animate")
    second.get_by_text("queue: 1/1").first.wait_for()
    third.get_by_label("Walk round").check()
    third.get_by_text("queue: 2/2").first.wait_for()
    for page, number in ((first, len(POSES)), (second, 9)):
        video = page.wait_for_selector("#video video")
        page.wait_for_function("video => video.duration > 0", arg=video)
        assert video.evaluate("video => video.duration") == pytest.approx(number / 12, abs=0.05)
    third.wait_for_function("document.querySelector('#live [role=status]').innerText.startsWith('16 frames')")


def test_the_poses_on_the_photo_s_body_are_shown_before_the_run(visit, tmp_path):
    page = visit()
    show_own(page)
    page.set_input_files("#photo input[type=file]", str(SAMPLE / "photo.png"))
    page.set_input_files("#poses input[type=file]", POSES[:3])
    page.locator("#chosen").get_by_text("Poses as they are").wait_for()
    page.set_input_files("#photo_iuv input[type=file]", str(SAMPLE / "photo_iuv.png"))
    page.locator("#chosen").get_by_text("Poses on the photo's body").wait_for()
    page = visit()  # with a dance, in which the fake DensePose of the tests sees the body of an IUV picture
    show_own(page)
    write_video(tmp_path / "dance.mov", [Image.open(path).convert("RGB") for path in POSES[:5]], "png", "rgb24")
    page.set_input_files("#photo input[type=file]", POSES[0])
    page.set_input_files("#dance input[type=file]", str(tmp_path / "dance.mov"))
    page.locator("#chosen").get_by_text("5 poses").wait_for()


def test_the_newest_frames_move_while_the_next_ones_are_made(visit):
    page = visit()
    show_own(page)
    page.click("#sample")
    wait_for_files(page, len(POSES))
    assert page.locator("#video").count() == 0  # there are no empty fields of results
    choose_steps(page, 15)
    page.click("#animate")
    page.wait_for_function("document.querySelector('#own').innerText.includes('Frame 8 of 32')")
    newest = page.locator("#own figure:last-child img").get_attribute("src")
    frames = Image.open(io.BytesIO(base64.b64decode(newest.partition(",")[2])))
    assert (frames.format, frames.n_frames, frames.info["loop"]) == ("WEBP", 4, 1)
    page.click("#stop")


def test_a_bad_upload_shows_its_sentence(visit, tmp_path):
    page = visit()
    show_own(page)
    (tmp_path / "photo.png").write_text("no picture")
    page.set_input_files("#photo input[type=file]", str(tmp_path / "photo.png"))
    page.set_input_files("#poses input[type=file]", POSES[:2])
    wait_for_files(page, 2)
    page.click("#animate")
    page.get_by_text("`photo` must be a readable picture").first.wait_for()


def test_stop_ends_a_video_and_the_next_one_runs(visit, server):
    page = visit()
    show_own(page)
    page.click("#sample")
    wait_for_files(page, len(POSES))
    choose_steps(page, 15)
    page.click("#animate")
    page.wait_for_function("document.querySelector('#own').innerText.includes('Frame ')")
    page.click("#stop")
    end = time.monotonic() + 30
    while server.results():
        assert time.monotonic() < end, "a stopped video leaves its folder"
        time.sleep(0.1)
    choose_steps(page, 1)
    page.click("#animate")
    page.wait_for_selector("#video video")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scroll_and_every_control_has_a_name(visit, scheme):
    page = visit(360, 740)
    page.emulate_media(color_scheme=scheme)
    for tab in ("Live", "Your own"):
        page.get_by_role("tab", name=tab).click()
        page.get_by_text("How it is sampled").locator("visible=true").click()
        width, shown = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= shown == 360
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("input, button, img, video, select, textarea")]
                .filter(e => e.offsetParent !== null)
                .filter(e => !(e.labels && e.labels.length) && !e.getAttribute("aria-label") && !e.title && !e.alt
                    && !e.innerText.trim())
                .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


def test_every_motion_is_shown_by_a_thumbnail_that_moves(visit):
    page = visit(1100, 1400)
    label = page.locator("#motions label").nth(2)
    pictures = []
    for _ in range(2):
        path = label.screenshot()
        pictures.append(path)
        page.wait_for_timeout(500)
    assert pictures[0] != pictures[1]
