"""TensorBoard in a real browser: headless Chromium opens a run's folder, and its pages show our charts."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest
import small
from matplotlib import image

from vgjax import Hypers, run
from vgjax.training.tensorboard import FIRST_PAGE

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: pip install playwright")
BROWSERS = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
pytestmark = pytest.mark.skipif(not BROWSERS, reason="no Chromium here: apt-get install chromium")
playwright.expect.set_options(timeout=60_000)  # ms: other tests may keep the machine busy
SIZE = {"width": 1600, "height": 2600}  # all of a first page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """TensorBoard's own server, on the folder of a run one of whose two lanes explodes."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    config = dataclasses.replace(small.CONFIG, record=(*small.CONFIG.record, "activations", "weight_histogram"))
    run(config, [Hypers(0.1), Hypers(1e38)], 1, dataset=small.dataset(), folder=folder)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder / "tensorboard"]
    command += ["--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            lines = []
            for line in server.stdout:
                lines.append(line)
                if found := re.search(r"http://127\S+", line):
                    yield found[0]
                    break
            else:
                pytest.fail("TensorBoard did not start: " + "".join(lines))
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]  # lines are SVG then, which can be counted
        chromium = driver.chromium.launch(executable_path=BROWSERS[0], args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address, tmp_path, capfd):
    """An empty page; what it shows in the end is kept as a screenshot."""
    with browser.new_page(viewport=SIZE) as page:
        yield page
        file = tmp_path / "page.png"
        page.screenshot(path=file)
    with capfd.disabled():
        print(f"\nscreenshot: {file}", file=sys.stderr)
    pixels = image.imread(file)
    assert pixels.shape[:2] == (SIZE["height"], SIZE["width"])
    assert (pixels.min(axis=-1) < pixels.max(axis=-1)).mean() > 0.01  # coloured: bar, lines and areas


def test_the_first_page_shows_ten_charts(page, address):
    """Those of the first page, with a line a lane or a layer; the other groups are closed below; NaN is shown."""
    page.goto(address)
    charts = page.locator("card-view")
    playwright.expect(charts.locator("line-chart")).to_have_count(10)
    titles = [re.sub(r"\s", "", title) for title in charts.locator(".tag").all_inner_texts()]
    assert titles == sorted(f"{group}/{name}" for group, names in FIRST_PAGE.items() for name in names)
    for chart, title in zip(charts.all(), titles, strict=True):
        lines = 2 * 3 if title.startswith("across_layers") else 2
        playwright.expect(chart.locator(".series-view path").nth(lines - 1)).to_be_attached()
        if "loss" in title.partition("/")[2]:
            playwright.expect(chart).to_contain_text("NaN")
    groups = page.locator("metrics-card-groups .group-toolbar").all_inner_texts()
    assert [re.match("[a-z_]+", group)[0] for group in groups][:3] == [*FIRST_PAGE, "activation"]
    runs = page.locator("runs-data-table").inner_text()
    assert "lane_000_seed_0" in runs and "lane_001_seed_0/layer_3" in runs


def test_the_scalars_page(page, address):
    """The same ten charts, drawn."""
    page.goto(f"{address}#scalars")
    cards = page.locator("tf-scalar-card")
    playwright.expect(cards).to_have_count(10)
    for group, names in FIRST_PAGE.items():
        for name in names:
            playwright.expect(page.get_by_text(f"tag: {group}/{name}", exact=True)).to_be_visible()
    for card in cards.all():
        playwright.expect(card.locator("path.line").nth(1)).to_be_attached()


def test_the_histograms_page(page, address):
    """A card a histogram and layer of a lane, with the areas of its steps."""
    page.goto(f"{address}#histograms")
    cards = page.locator("vz-histogram-timeseries")
    playwright.expect(cards).to_have_count(2 * 2 * 3)  # histograms × lanes × layers
    for name in ("gradient_histogram", "weight_histogram"):
        playwright.expect(page.get_by_text(f"tag: {name}", exact=True)).to_have_count(2 * 3)
    playwright.expect(cards.first.locator("svg .histogram path").first).to_be_visible()
