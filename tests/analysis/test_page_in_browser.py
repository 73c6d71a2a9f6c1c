"""The page works in a browser: nothing is loaded or logged, tables sort, filters filter.

These tests need Chromium and its chromedriver (in Debian: chromium, chromium-driver); they skip
where one of them, or selenium, is not installed.
"""

import base64
import json
import shutil

import pytest
from analysis_examples import HOSTILE, empty_analysis, example_analysis

from retinanet_jax.analysis.page import render

pytestmark = pytest.mark.slow

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
DESKTOP, PHONE = (1280, 900), (360, 740)  # CSS pixels
PAGES = {
    "example": example_analysis,
    "hostile": lambda: example_analysis(HOSTILE),
    "empty": empty_analysis,
    "thousand": lambda: example_analysis([f"category {i}" for i in range(1000)]),
}


@pytest.fixture(scope="module")
def chromium():
    """Return a headless Chromium that records its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, programs)), None)
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("Chromium or its chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
        yield started


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Return a function that returns the file of one of PAGES, which it writes first."""
    folder = tmp_path_factory.mktemp("pages")

    def file_of(name):
        file = folder / f"{name}.html"
        if not file.exists():
            file.write_bytes(render(PAGES[name]()))
        return file

    return file_of


def set_screen(chromium, size=DESKTOP, scheme="light", media=""):
    """Set the size of the window in CSS pixels, the color scheme and the medium."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


@pytest.fixture
def opened(chromium, file_of):
    """Return a function that opens a page, as for the first time, and returns the browser."""
    from selenium.webdriver.support.wait import WebDriverWait

    def is_open(url):
        script = "return document.readyState == 'complete' && location.href == arguments[0]"
        return lambda browser: browser.execute_script(script, url)

    def open_page(name, **screen):
        chromium.get("about:blank")  # a page that is open already might not be opened again
        for log in ("browser", "performance"):
            chromium.get_log(log)
        set_screen(chromium, **screen)
        url = file_of(name).as_uri()
        chromium.get(url)
        # On a busy machine `get` has returned while the page before was still shown.
        WebDriverWait(chromium, 60).until(is_open(url))
        return chromium

    return open_page


def requests(browser):
    """Return the URLs that were requested since the page was opened, without those of data."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]


def column(browser, index, table="category-table"):
    """Return the texts of a column of a table from the top."""
    return browser.execute_script(
        "return Array.from(document.getElementById(arguments[0]).tBodies[0].rows,"
        " (row) => row.cells[arguments[1]].textContent.trim())",
        table,
        index,
    )


def header(browser, index):
    """Return the button that sorts the table of categories by a column."""
    return browser.find_elements("css selector", "#category-table thead button")[index]


def choose(browser, name, text):
    """Choose an option of a filter, and return the names of the images that remain."""
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"filter-{name}")).select_by_visible_text(text)
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('article.image'))"
        ".filter((image) => image.offsetParent !== null)"
        ".map((image) => image.querySelector('h3').textContent)"
    )


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_a_message_or_a_request(opened, file_of, name, scheme):
    browser = opened(name, scheme=scheme)
    assert browser.get_log("browser") == []
    assert requests(browser) == [file_of(name).as_uri()]
    assert browser.title.startswith("Analysis: ")  # no script of a name has changed it
    sizes = browser.execute_script(
        "return Array.from(document.images, (image) => [image.complete, image.naturalWidth])"
    )
    assert all(complete and width > 0 for complete, width in sizes)
    assert len(sizes) == (0 if name == "empty" else 46)  # two of each readable image
    plots = browser.find_elements("css selector", "figure.plot svg")
    assert len(plots) == (0 if name == "empty" else 9)
    assert all(plot.size["width"] > 200 and plot.size["height"] > 100 for plot in plots)


def test_a_table_sorts_numbers_as_numbers_and_undefined_ones_last(opened):
    browser = opened("thousand")
    header(browser, 4).click()
    assert browser.get_log("browser") == []
    counts = list(map(int, column(browser, 4)))
    assert counts == sorted(counts)
    assert counts[0] < 10 < 100 < counts[-1]
    for descending in (False, True):
        header(browser, 1).click()
        *numbers, undefined = column(browser, 1)
        assert undefined == "-"
        assert list(map(float, numbers)) == sorted(map(float, numbers), reverse=descending)
    header(browser, 0).click()
    assert column(browser, 0) == [f"category {i}" for i in range(1000)]


def test_a_table_sorts_by_keyboard_and_reports_the_direction(opened):
    browser = opened("example")
    body = browser.find_element("tag name", "body")
    assert header(browser, 4).get_attribute("type") == "button"
    browser.execute_script("arguments[0].focus()", header(browser, 4))
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    directions = browser.execute_script(
        "return Array.from(document.querySelectorAll('#category-table thead th'),"
        " (cell) => cell.getAttribute('aria-sort'))"
    )
    assert directions == [None] * 4 + ["ascending"] + [None] * 8
    assert column(browser, 4) == ["0", "1", "75"]
    assert body.is_displayed()


def test_images_are_filtered_by_category_and_by_error(opened):
    browser = opened("example")
    categories = ("circle", "square", "triangle")
    types = ("class", "localization", "both", "duplicate", "background", "missed")

    def expected(category, error):
        """Return the names of the images: image i has an error of type i in category i."""
        return [
            f"{categories[i % 3]} {i}.jpg"
            for i in range(24)
            if category in ("all", categories[i % 3]) and error in ("all", types[i % 6])
        ]

    for category, error in (
        *(("all", "all"), ("square", "all"), ("square", "background"), ("square", "class")),
        *(("all", "class"), ("all", "missed"), ("triangle", "missed"), ("all", "all")),
    ):
        choose(browser, "category", category)
        names = choose(browser, "error", error)
        assert names == expected(category, error), (category, error)
        count = browser.find_element("id", "filter-count").text
        assert count == f"{len(names)} of 24 images"
    assert browser.get_log("browser") == []


def test_names_may_be_any_text(opened):
    browser = opened("hostile")
    name = "<script>document.title='injected'</script>"
    assert column(browser, 0)[0] == name
    images = choose(browser, "category", name)
    assert images == [f"{name[:40]} {i}.jpg" for i in (0, 14)]
    assert browser.title.startswith("Analysis: ")


COLORS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (color) => {
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return Array.from(canvas.getImageData(0, 0, 1, 1).data.slice(0, 3));
};
const style = (element) => getComputedStyle(element);
return {
  paper: rgb(style(document.body).backgroundColor),
  text: rgb(style(document.body).color),
  note: rgb(style(document.querySelector(".note")).color),
  link: rgb(style(document.querySelector("nav a")).color),
  plot: rgb(style(document.querySelector("figure.plot text")).fill),
  badge: rgb(style(document.querySelector(".advice.warning .badge")).color),
};
"""


def luminance(color):
    """Return the relative luminance of WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_texts_are_readable_in_both_color_schemes(opened, scheme, is_dark):
    """With a contrast of 4.5, which WCAG 2.1 requires (https://www.w3.org/TR/WCAG21)."""
    colors = opened("example", scheme=scheme).execute_script(COLORS)
    lights = {name: luminance([c / 255 for c in color]) for name, color in colors.items()}
    paper = lights.pop("paper")
    assert (paper < 0.2) == is_dark
    for name, light in lights.items():
        contrast = (max(light, paper) + 0.05) / (min(light, paper) + 0.05)
        assert contrast >= 4.5, (name, colors)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_on_a_phone(opened, name):
    browser = opened(name, size=PHONE)
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = browser.execute_script(widths)
    assert scroll <= client == PHONE[0]


def test_everything_is_printed_in_dark_letters_without_controls(opened):
    browser = opened("example", scheme="dark")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    details = browser.find_elements("tag name", "details")
    assert details
    assert all(detail.get_attribute("open") for detail in details)
    set_screen(browser, scheme="dark", media="print")
    assert browser.execute_script(COLORS)["text"] == [0, 0, 0]
    for hidden in ("nav", "form"):
        assert not browser.find_element("css selector", hidden).is_displayed()


def test_everything_is_on_the_page_without_javascript(opened, chromium):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = opened("example")
        images = browser.find_elements("css selector", "article.image")
        assert all(image.is_displayed() for image in images)
        assert not browser.find_elements("css selector", "thead button")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
