"""The report in headless Chromium, as a person uses it. Debian's `chromium` and `chromium-driver` are enough; else all are skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model_bytes
from PIL import Image
from test_report import EVIL, data_of, pixels_of

from tools import report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver")


class Browser:
    """A tab with the report in it."""

    def __init__(self, page: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        # The sandbox cannot be had by root, nor in most containers; only our own page is opened.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.page, self.data = page, data_of(page)

    def open(self, width: int = 1280, height: int = 900, mobile: bool = False, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(self.page.as_uri())
        self.until("return document.querySelectorAll('.layer[data-shown]').length == 2 * document.querySelectorAll('.photo').length")

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def until(self, condition: str, *arguments: Any) -> None:
        WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: self.script(condition, *arguments), condition)

    def find(self, selector: str, photo: int | None = None) -> Any:
        inside = self.driver if photo is None else self.driver.find_elements(By.CSS_SELECTOR, ".photo")[photo]
        return inside.find_element(By.CSS_SELECTOR, selector)

    def shown(self, side: str, photo: int) -> str:
        """The name in the album of the picture that is on one side."""
        layer = self.find(f".layer:nth-child({1 if side == 'left' else 2})", photo)
        self.until("return arguments[0].dataset.shown === arguments[0].dataset.wanted", layer)
        source = layer.find_element(By.TAG_NAME, "img").get_attribute("src")
        found: str = next(name for name, url in self.data["pictures"].items() if url == source)
        return found

    def version(self, photo: int, size: int, key: str) -> Any:
        return next(version for version in self.data["images"][photo]["sizes"][size]["versions"] if version["key"] == key)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "tiny.safetensors").write_bytes(tiny_model_bytes())
    images = folder / "images"
    images.mkdir()
    Image.fromarray(photograph[:176, :240]).save(images / EVIL)
    Image.fromarray(photograph[200:248, 300:364]).save(images / "small.png")
    options = ["--model", folder / "tiny.safetensors", "--codecs", "jpeg-420", "webp", "-o", folder / "report.html"]
    assert report.main([str(argument) for argument in (images, *options)]) == 0
    tab = Browser(folder / "report.html")
    yield tab
    try:
        # Whatever the tests did: no error or warning, and nothing was asked of the network.
        assert tab.driver.get_log("browser") == []
        names = tab.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in names if not name.startswith("data:")] == []
    finally:
        tab.driver.quit()


def test_the_page_loads_and_says_what_it_carries(browser: Browser) -> None:
    browser.open()
    headings = browser.driver.find_elements(By.CSS_SELECTOR, ".photo h3")
    assert [heading.text for heading in headings] == [f"{EVIL}240 × 176", "small.png64 × 48"]
    cells = [cell.text for cell in browser.driver.find_elements(By.CSS_SELECTOR, ".rd tbody td")]
    expected = [cell for row in browser.data["rd"]["bd"]["psnr"]["rows"] for cell in row["cells"]]
    assert set(cells) - {""} >= {cell for cell in expected if "%" in cell}
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, ".curve")) == len(browser.data["rd"]["curves"])


def test_the_pictures_are_exactly_what_the_decoders_gave(browser: Browser) -> None:
    browser.open()
    assert browser.shown("left", 1) == browser.version(1, 1, "jpeg-420")["picture"]
    name = browser.shown("right", 1)
    assert name == browser.version(1, 1, "rdae")["picture"]
    drawn = browser.script(
        """const picture = arguments[0], canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(picture, 0, 0);
        return JSON.stringify([...context.getImageData(0, 0, canvas.width, canvas.height).data]);""",
        browser.find(".layer:nth-child(2) img", 1),
    )
    pixels = np.array(json.loads(drawn), np.uint8).reshape(48, 64, 4)
    np.testing.assert_array_equal(pixels[..., :3], pixels_of(browser.data["pictures"][name]))


def test_the_slider_moves_by_mouse(browser: Browser) -> None:
    browser.open()
    frame, handle = browser.find(".frame", 0), browser.find(".handle", 0)
    assert frame.size == {"width": 240, "height": 176}
    ActionChains(browser.driver).move_to_element(handle).click_and_hold().move_by_offset(-60, 5).release().perform()
    assert handle.get_attribute("aria-valuenow") == "25"
    assert "inset(0px 0px 0px 60px)" in browser.script(
        "return getComputedStyle(arguments[0]).clipPath", browser.find(".layer:nth-child(2)", 0)
    )
    assert handle.get_attribute("aria-valuetext") == "25 % JPEG 4:2:0, 75 % rdae"
    # A click elsewhere brings the divider there; a drag beyond the edge ends at the edge.
    ActionChains(browser.driver).move_to_element_with_offset(frame, 84, 40).click().perform()
    assert handle.get_attribute("aria-valuenow") == "85"
    ActionChains(browser.driver).move_to_element(handle).click_and_hold().move_by_offset(300, 0).release().perform()
    assert handle.get_attribute("aria-valuenow") == "100"
    assert browser.find(".handle", 1).get_attribute("aria-valuenow") == "50"


def test_the_slider_moves_by_keyboard(browser: Browser) -> None:
    browser.open()
    handle = browser.find("[role=slider]", 0)
    for keys, expected in (
        (Keys.ARROW_LEFT, 48),
        (Keys.ARROW_RIGHT * 3, 54),
        (Keys.PAGE_UP, 64),
        (Keys.PAGE_DOWN * 2, 44),
        (Keys.HOME + Keys.ARROW_LEFT, 0),
        (Keys.END, 100),
    ):
        handle.send_keys(keys)
        assert handle.get_attribute("aria-valuenow") == str(expected)
    before = browser.shown("left", 0), browser.shown("right", 0)
    handle.send_keys("x")
    assert (browser.shown("right", 0), browser.shown("left", 0)) == before
    handle.send_keys("l")  # from rdae, which is last, on to the original
    assert browser.shown("left", 0) == browser.data["images"][0]["original"]
    handle.send_keys(",")
    assert browser.shown("right", 0) == browser.version(0, 0, "jpeg-420")["picture"]


def test_the_selectors_change_the_picture_and_the_numbers(browser: Browser) -> None:
    browser.open()
    seen = set()
    for size in (0, 2):
        browser.find(f".bar label:nth-child({size + 1}) input", 0).click()
        for side, key in (("left", "jpeg-420"), ("right", "rdae")):
            version = browser.version(0, size, key)
            assert browser.shown(side, 0) == version["picture"]
            seen.add(version["picture"])
            text = browser.find(f".caption.{side} dl", 0).text
            for value in (version["setting"], f"{version['bytes']:,} bytes", f"{version['bpp']:.4f} bpp", f"{version['psnr']:.2f} dB"):
                assert value in text
            assert f"{version['ms_ssim']:.4f}" in text
    assert len(seen) == 4
    jpeg, rdae = browser.version(0, 2, "jpeg-420"), browser.version(0, 2, "rdae")
    assert f"+{100 * (jpeg['bytes'] / rdae['bytes'] - 1):.1f} %" in browser.find(".caption.left dl", 0).text
    browser.find(".caption.left option[value=webp]", 0).click()
    assert browser.shown("left", 0) == browser.version(0, 2, "webp")["picture"]
    assert "picture too small" in browser.find(".caption.left dl", 1).text


def test_zoom_and_pan(browser: Browser) -> None:
    browser.open(width=500)
    frame, handle = browser.find(".frame", 0), browser.find(".handle", 0)

    def picture() -> tuple[float, float, float, str]:
        box = "const p = arguments[0].getBoundingClientRect(), f = arguments[1].getBoundingClientRect();"
        inside = browser.find(".layer:nth-child(2) img", 0)
        return tuple(browser.script(f"{box} return [p.width, p.x - f.x, p.y - f.y, arguments[0].style.imageRendering]", inside, frame))

    handle.send_keys("4")
    assert browser.find("input:checked[value='4']", 0)
    width, left, _, rendering = picture()
    assert (width, rendering) == (960, "pixelated")
    handle.send_keys(Keys.SHIFT + Keys.ARROW_RIGHT + Keys.NULL)
    assert picture()[1] == pytest.approx(left - 48, abs=1)
    assert handle.get_attribute("aria-valuenow") == "50"
    ActionChains(browser.driver).move_to_element_with_offset(frame, 100, 0).click_and_hold().move_by_offset(30, 1).release().perform()
    assert picture()[1] == pytest.approx(left - 18, abs=1)
    handle.send_keys(Keys.SHIFT + 40 * Keys.ARROW_LEFT + Keys.NULL)
    assert picture()[1] == 0
    handle.send_keys("0")
    assert picture()[:3] == (240, 0, 0)


def test_a_point_of_the_plot_is_read_by_mouse_and_by_keyboard(browser: Browser) -> None:
    browser.open()
    curve = next(curve for curve in browser.data["rd"]["curves"] if curve["name"] == "JPEG 4:2:0")
    points = sorted(curve["points"], key=lambda point: point["bpp"])
    marks = browser.driver.find_elements(By.CSS_SELECTOR, '[data-name="JPEG 4:2:0"] .mark')
    assert len(marks) == len(points)
    tip = browser.find(".tip")
    assert not tip.is_displayed()
    for at in (2, 5):
        ActionChains(browser.driver).move_to_element(marks[at]).perform()
        point = points[at]
        lines = ["JPEG 4:2:0", point["setting"], f"{point['bpp']:.4f} bpp", f"PSNR {point['psnr']:.2f} dB"]
        assert tip.text.splitlines()[:4] == lines
    browser.find(".plot").send_keys(Keys.ARROW_LEFT)
    assert points[4]["setting"] in tip.text.splitlines()
    browser.find(".plot").send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_curves_are_hidden_and_the_metric_switched(browser: Browser) -> None:
    browser.open()
    button = next(b for b in browser.driver.find_elements(By.CSS_SELECTOR, ".legend button") if b.text == "WebP")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not browser.driver.find_elements(By.CSS_SELECTOR, '[data-name="WebP"]')
    button.click()
    assert browser.driver.find_elements(By.CSS_SELECTOR, '[data-name="WebP"]')
    browser.find("input[value=ms_ssim_db]").click()
    assert "MS-SSIM, dB" in browser.find(".plot").text
    rows = browser.data["rd"]["bd"]["ms_ssim_db"]["rows"]
    last = browser.driver.find_elements(By.CSS_SELECTOR, ".rd > div:last-child tbody tr")[-1]
    assert last.text.split(" ", 2)[-1].replace("\n", " ").endswith(rows[-1]["cells"][-1])


def test_a_phone_has_no_horizontal_scroll_and_a_tap_moves_the_divider(browser: Browser) -> None:
    browser.open(390, 844, mobile=True)
    for details in browser.driver.find_elements(By.TAG_NAME, "details"):
        browser.script("arguments[0].open = true", details)
    assert browser.script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    boxes = browser.script("return [...document.querySelectorAll('.frame, .plot, .caption')].map((e) => e.getBoundingClientRect().right)")
    assert max(boxes) <= 390
    frame = browser.find(".frame", 0)
    browser.script("arguments[0].scrollIntoView({block: 'center'})", frame)
    left, top = browser.script("const box = arguments[0].getBoundingClientRect(); return [box.x, box.y]", frame)
    for kind, points in (("touchStart", [{"x": left + 180, "y": top + 40}]), ("touchEnd", [])):
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.until("return arguments[0].getAttribute('aria-valuenow') === '75'", browser.find(".handle", 0))


def test_dark_and_light(browser: Browser) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(scheme=scheme)
        ground, ink = browser.script("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        grounds.append([sum(map(int, colour.strip("rgb()").split(","))) for colour in (ground, ink)])
    assert grounds[0][0] > 700 > 150 > grounds[0][1]
    assert grounds[1][1] > 600 > 150 > grounds[1][0]
