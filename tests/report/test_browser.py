"""The report as a person sees it, in the machine's own Chromium: on a phone, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.report.html import write_report
from segdistill.report.links import link_to

from .reports import full_report

pytestmark = pytest.mark.browser
LONG = "a_very_long_name_of_a_file_without_a_single_space_in_it_that_must_be_broken_somewhere.png"
STICKING_OUT = """(width) => [...document.querySelectorAll("body *")]
    .filter((e) => !e.closest(".scroll, svg") && e.getBoundingClientRect().right > width + 0.5)
    .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture
def page(browser) -> Iterator:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(15_000)
    yield page
    context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with everything that can be in one, beside its data."""
    place = tmp_path_factory.mktemp("größe 1")
    image = place / "my data" / "Müller, Hans 50% #1.png"
    image.parent.mkdir()
    Image.fromarray(np.full((70, 90, 3), 99, np.uint8)).save(image)
    (place / "run").mkdir()
    write_report(place / "run" / "report.html", full_report(LONG, link_to(image, place / "run")))
    return place / "run" / "report.html"


@pytest.mark.parametrize("width", [320, 360, 768, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(report, page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT, width) == []
    first = "[...document.querySelectorAll('tr > :first-child')].map((e) => e.getBoundingClientRect().width)"
    assert max(page.evaluate(first)) <= max(0.6 * width, 260)  # it stays in place while the others scroll
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(246, 247, 249)" if scheme == "light" else "rgb(20, 23, 27)"
    )


def test_on_paper_all_is_light_and_nothing_is_cut(report, page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1046})  # A4 with Chromium's margins
    page.goto(report.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for picture in page.locator("figure").all():
        assert picture.evaluate("(e) => getComputedStyle(e).breakInside") == "avoid"
        assert picture.bounding_box()["height"] < 900  # else it could not stay on one sheet
    assert page.evaluate(STICKING_OUT, 718) == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > 718).length") == 0
    assert page.locator("details pre").is_visible()
    assert len(page.pdf(format="A4")) > 10_000


def test_a_name_opens_its_image(report, page):
    page.goto(report.as_uri())
    page.locator("#examples a", has_text=LONG).first.click()
    page.wait_for_url("**/*.png")
    assert page.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]") == [90, 70]


def test_nothing_is_asked_of_a_network(report, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert [url for url in asked if not url.startswith(("data:", report.parent.as_uri()))] == []
