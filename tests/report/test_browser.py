"""The report in a real browser."""

import contextlib
import io
import itertools
import os
import shutil

import numpy as np
import pytest
from PIL import Image as pillow

from kreg import report
from kreg.io import Image
from tests.report.alignments import aligned, bent, pair, patient, scene

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

#: What Chromium is called where it is installed.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: $KREG_CHROMIUM, one of the system, or Playwright's own."""
    with playwright.sync_playwright() as started:
        found = [os.environ.get("KREG_CHROMIUM"), *map(shutil.which, NAMES)]
        path = next(filter(None, [*found, started.chromium.executable_path]))
        if not os.path.exists(path):
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        # A container has no user namespaces to build a sandbox of; the page is our own.
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A 2-D report and one of a volume."""
    path = tmp_path_factory.mktemp("reports")
    report.write(path / "picture.html", pair((60, 80), field=bent((60, 80))))
    grid = patient()
    images = [Image(scene(grid.shape, seed), grid.affine, "mm") for seed in (0, 1)]
    report.write(path / "volume.html", aligned(*images, trusted=False))
    return path


@pytest.fixture
def opened(browser, folder):
    """opened("picture") -> a page; that nothing went wrong in it is checked in the end."""
    with contextlib.ExitStack() as closing:
        complaints = []

        def open_page(name, *, width=1200, **options):
            context = browser.new_context(viewport={"width": width, "height": 800}, **options)
            closing.callback(context.close)
            page = context.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda asked: complaints.append(asked.url) if not_own(asked) else 0)
            page.goto((folder / f"{name}.html").as_uri())
            return page

        def not_own(asked):
            return not asked.url.startswith(("file:", "data:"))

        yield open_page
        assert complaints == []


def shown_left_of_middle(page):
    """The grey values at a quarter of the first stage."""
    shot = page.locator(".stage").first.screenshot()
    values = np.asarray(pillow.open(io.BytesIO(shot)).convert("L"), float)
    rows, columns = values.shape
    return values[rows // 4 : -rows // 4, columns // 4 : columns // 4 + 40]


@pytest.mark.parametrize("name", ["picture", "volume"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_fits_every_screen_and_scheme(opened, name, scheme, width):
    page = opened(name, width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    first = page.locator(".stage:visible img").first.bounding_box()
    assert 150 < first["width"] <= width
    ratio = {"picture": 80 / 60, "volume": 20 / 24}[name]
    assert first["width"] / first["height"] == pytest.approx(ratio, rel=0.02)
    paper, ink = page.evaluate(
        "(one => [one.backgroundColor, one.color])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert abs(brightness[0] - brightness[1]) > 150
    assert (
        page.locator("#verdict")
        .inner_text()
        .startswith("✔ Trusted" if name == "picture" else "✖ NOT TRUSTED")
    )


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    # A phone, a screen, and a phone turned: the picture, of 80 x 60, is hardly higher than that.
    [(360, 800, 360 - 24), (1200, 800, 1200 - 32), (800, 360, 1.2 * 360 * 80 / 60)],
)
def test_the_compared_picture_fills_the_page(opened, width, height, expected):
    page = opened("picture", width=width)
    page.set_viewport_size({"width": width, "height": height})
    stage, over = (page.locator(one).first.bounding_box() for one in (".stage", ".over"))
    assert stage["width"] == pytest.approx(expected, abs=1)
    for name in ("width", "height"):  # but for the frame
        assert over[name] == pytest.approx(stage[name] - 2, abs=0.5)


def test_slider_moves_by_keyboard_and_by_pointer(opened):
    page = opened("picture")
    over = page.locator(".over:visible")
    clip = "one => getComputedStyle(one).clipPath"
    assert over.evaluate(clip) == "inset(0px 0px 0px 50%)"
    fixed = shown_left_of_middle(page)
    page.focus("#swipe")
    page.keyboard.press("ArrowRight")
    assert over.evaluate(clip) == "inset(0px 0px 0px 51%)"
    page.keyboard.press("Home")
    assert over.evaluate(clip) in ("inset(0px)", "inset(0px 0px 0px 0%)")
    moving = shown_left_of_middle(page)
    assert np.abs(fixed - moving).mean() > 10
    # The line follows the pointer.
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.up()
    assert page.input_value("#swipe") == "70"
    np.testing.assert_allclose(shown_left_of_middle(page), fixed, atol=1)


def test_before_and_after_by_keyboard(opened):
    page = opened("picture")
    page.focus("#swipe")
    page.keyboard.press("Home")
    after = shown_left_of_middle(page)
    page.focus("input[value=after]")
    page.keyboard.press("ArrowLeft")
    assert page.is_checked("input[value=before]")
    assert np.abs(shown_left_of_middle(page) - after).mean() > 1
    assert page.locator(".over:visible").get_attribute("alt") == "moving image before registration"


def test_flicker_starts_and_stops_by_the_space_bar(opened):
    page = opened("picture")
    page.clock.install()
    over = page.locator(".over[data-state=after]")
    seen = "one => getComputedStyle(one).visibility"
    page.clock.run_for(5000)
    assert over.evaluate(seen) == "visible"  # nothing flickers unasked
    page.focus("#flicker")
    page.keyboard.press("Space")
    assert page.get_attribute("#flicker", "aria-pressed") == "true"
    states = []
    for _ in range(20):
        states.append(over.evaluate(seen))
        page.clock.run_for(100)
    changes = sum(a != b for a, b in itertools.pairwise(states))
    assert 2 <= changes <= 4  # in two seconds: at most two flashes a second
    page.keyboard.press("Space")
    assert page.get_attribute("#flicker", "aria-pressed") == "false"
    page.clock.run_for(5000)
    assert over.evaluate(seen) == "visible"


def test_nothing_moves_by_itself_where_motion_is_not_wanted(opened):
    page = opened("picture", reduced_motion="reduce")
    page.clock.install()
    over = page.locator(".over[data-state=after]")
    seen = "one => getComputedStyle(one).visibility"
    page.click("#flicker")
    page.clock.run_for(5000)
    assert over.evaluate(seen) == "hidden"
    page.click("#flicker")
    page.clock.run_for(5000)
    assert over.evaluate(seen) == "visible"


def test_slices_of_a_volume(opened):
    page = opened("volume")
    assert page.locator(".stage:visible").count() == 3
    name = page.locator(".name:visible").first
    assert name.inner_text() == "axial, slice 5 of 10"
    page.focus("#slice")
    page.keyboard.press("End")
    assert name.inner_text() == "axial, slice 8 of 10"
    assert page.locator(".stage:visible").count() == 3


def test_all_controls_are_reached_by_tab_and_seen(opened):
    page = opened("volume")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        where = page.evaluate(
            "(one => [one.id || one.value || one.hash || one.tagName,"
            " getComputedStyle(one).outlineStyle])"
            "(document.activeElement)"
        )
        assert where[1] == "solid"
        reached.append(where[0])
        if where[0] == "flicker":
            break
    assert [one for one in reached if not one.startswith("#")] == [
        "SUMMARY", "slice", "after", "swipe", "flicker",
    ]  # fmt: skip


def test_all_is_there_without_scripts(opened):
    page = opened("volume", java_script_enabled=False)
    assert page.locator(".stage:visible").count() == 15  # all slices along each axis
    assert page.locator("#flicker:visible, #slice:visible").count() == 0
    assert "one below the other" in page.locator("noscript").inner_text()
    page = opened("picture", java_script_enabled=False)
    assert page.locator(".stage:visible").count() == 1
    assert "volume" not in page.locator("noscript").inner_text()


def test_what_to_try_unfolds_by_keyboard(opened):
    page = opened("volume", width=360)
    assert not page.locator(".verdict li").first.is_visible()
    page.focus("summary")
    page.keyboard.press("Enter")
    assert "--edges" in page.locator(".verdict li:visible").all_inner_texts()[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_prints_pictures_without_controls(opened):
    page = opened("volume")
    page.emulate_media(media="print")
    assert page.locator("#flicker:visible, #slice:visible, nav:visible").count() == 0
    assert page.locator(".stage:visible").count() == 3
