"""The page as a person uses it, in the machine's own Chromium."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor

from .conftest import encoded

pytestmark = pytest.mark.browser
TOKEN = "0123456789abcdef-x"
DROP = """([name, text]) => {
    const held = new DataTransfer();
    held.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
    return held;
}"""


@pytest.fixture
def page(browser) -> Iterator:
    """A new window that must not see a script fail."""
    context = browser.new_context()
    page, errors = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def drop(page, name: str, content: bytes) -> None:
    held = page.evaluate_handle(DROP, [name, b64encode(content).decode()])
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})


def seen(page) -> bytes:
    """What the first image looks like."""
    return page.locator("canvas").first.screenshot()


def downloaded(page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.locator(button).first.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


@pytest.mark.parametrize("name", ["Müller, Hans.png", "scan 16 bit.tif"])
def test_a_dropped_image_gives_the_mask_that_predict_writes(folder, image, tmp_path, start, page, name):
    picture = image(70, 91)
    if name.endswith("tif"):  # a kind that browsers do not show
        Image.fromarray(picture[:, :, 0].astype(np.uint16) * 200).save(tmp_path / name)
    else:
        Image.fromarray(picture).save(tmp_path / name)
    predictor = open_predictor(folder)
    predict_files(predictor, [tmp_path / name], tmp_path / "out")
    client, asked = start(predictor), []
    page.on("request", lambda request: asked.append((request.url, request.post_data_buffer or b"")))
    page.goto(client.url)
    page.locator("#room").wait_for()
    drop(page, name, (tmp_path / name).read_bytes())
    page.locator("article.done").wait_for()
    stem = name.rpartition(".")[0]
    assert downloaded(page, ".mask") == (f"{stem}_mask.png", (tmp_path / "out" / f"{stem}.png").read_bytes())
    assert downloaded(page, "#save")[1] == (tmp_path / "out" / f"{stem}.png").read_bytes()
    uploads = [body for url, body in asked if url.endswith("/view")]
    assert len(uploads) == 1
    assert stem.encode() not in uploads[0]
    assert all(url.startswith((client.url, "data:", "blob:")) for url, _ in asked)


def test_opacity_and_class_change_what_is_seen(bright, image, start, page):
    client = start(bright)
    page.goto(client.url)
    page.locator("#room").wait_for()
    drop(page, "a.png", encoded(image(64, 96)))
    page.locator("article.done").wait_for()
    both = seen(page)
    page.fill("#opacity", "0")
    bare = seen(page)
    page.fill("#opacity", "100")
    full = seen(page)
    page.locator("#classes label", has_text="d").last.click()
    one = seen(page)
    assert len({both, bare, full, one}) == 4
    assert page.locator("#classes label").all_inner_texts() == ["all", *bright.card.classes[1:]]
    colours = set(map(tuple, np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).reshape(-1, 3)))
    assert bright.card.colours[3] in colours
    assert bright.card.colours[1] not in colours


def test_areas_are_shown_and_follow_the_pixel_size(bright, start, page):
    client = start(bright)
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:5, :10] = 255  # the brightest class: 50 of 200 pixels
    page.goto(client.url)
    page.locator("#room").wait_for()
    drop(page, "a.png", encoded(picture))
    page.locator("article.done").wait_for()
    last = page.locator("tbody tr").last
    assert last.locator("td").all_inner_texts() == ["d", "50", "25.00 %"]
    page.fill("#spacing", "0.5,2")
    assert last.locator("td").all_inner_texts() == ["d", "50", "25.00 %", "50"]
    page.fill("#spacing", "no number")
    assert page.locator("#spacing").get_attribute("aria-invalid") == "true"
    assert last.locator("td").count() == 3


def test_a_broken_file_says_so_and_the_others_are_done(bright, png, start, page):
    client = start(bright)
    page.goto(client.url)
    page.locator("#room").wait_for()
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": png[:80]}
    page.set_input_files("#files", [broken, {"name": "fine.png", "mimeType": "image/png", "buffer": png}])
    page.locator("article.done").wait_for()
    assert "cannot be read" in page.locator("article.failed .message").inner_text()
    assert page.locator("#status").inner_text() == "1 done · 1 failed"
    page.locator("article.failed .remove").click()
    assert page.locator("#status").inner_text() == "1 done"


def test_a_busy_server_is_asked_again(bright, png, start, page):
    client = start(bright, max_waiting=0)
    page.goto(client.url)
    page.locator("#room").wait_for()
    bright.wait()
    other = client.raw("POST /mask HTTP/1.1", "Content-Type: multipart/form-data; boundary=x", "Content-Length: 99")
    client.until("segdistill_queue_length", 1)
    drop(page, "a.png", png)
    page.locator("article .message", has_text="busy").wait_for()
    other.close()
    bright.go()
    page.locator("article.done").wait_for()


def test_a_page_with_a_token_asks_for_it(bright, png, start, page):
    client = start(bright, token=TOKEN)
    page.goto(client.url)
    page.locator("#door").wait_for()
    page.fill("#token", "guessed")
    page.locator("#door button").click()
    page.locator("#model", has_text="not the server's").wait_for()
    assert not page.locator("#room").is_visible()
    page.fill("#token", TOKEN)
    page.locator("#door button").click()
    page.locator("#room").wait_for()
    drop(page, "a.png", png)
    page.locator("article.done").wait_for()
    page.goto("about:blank")
    page.goto(f"{client.url}#token={TOKEN}")
    page.locator("#room").wait_for()
    assert TOKEN not in page.url


@pytest.mark.parametrize("width", [320, 390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(bright, png, start, page, width, scheme):
    client = start(bright)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(client.url)
    page.locator("#room").wait_for()
    drop(page, "a_very_long_name_of_a_file_without_a_single_space_in_it_that_must_be_broken_somewhere.png", png)
    page.locator("article.done").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(246, 247, 249)" if scheme == "light" else "rgb(20, 23, 27)"
    )
