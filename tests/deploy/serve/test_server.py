"""A real server: what it answers, whom it refuses, and what hostile clients cannot do."""

from __future__ import annotations

import json
import socket
import struct
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.datastructures import URL

from segdistill.deploy.predict import predict_files
from segdistill.deploy.predictor import open_predictor
from segdistill.deploy.serve import guard

from .conftest import BOUNDARY, Client, encoded, form, reply_on

TOKEN = "a token of nobody".replace(" ", "-")
POSTS = ["/mask", "/overlay", "/areas", "/view"]
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises this many pixels, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- what it answers ------------------------------------------------------------------------------------------------


def test_a_posted_image_comes_back_as_predict_writes_it(folder, image, tmp_path, start):
    (tmp_path / "a.png").write_bytes(encoded(image(70, 91)))
    predictor = open_predictor(folder)
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    reply = start(predictor).post("/mask", (tmp_path / "a.png").read_bytes())
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/png"
    assert reply.body == (tmp_path / "out" / "a.png").read_bytes()


def test_each_answer_has_its_kind(bright, png, start):
    client = start(bright)
    kinds = [client.post(path, png).headers["content-type"] for path in POSTS]
    assert kinds == ["image/png", "image/png", "application/json", "application/json"]
    values = json.loads(client.post("/areas", png, fields={"spacing": "0.5"}).body)
    assert values["classes"][0]["mm2"] == pytest.approx(values["classes"][0]["pixels"] / 4)
    assert [one["name"] for one in values["classes"]] == list(bright.card.classes)
    assert client.post("/areas", png, fields={"spacing": "x"}).status == 422


def test_the_page_needs_nothing_from_elsewhere(bright, start):
    client = start(bright)
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        reply = client.get(path)
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        assert not any(word in reply.body for word in (b"http://", b"https://", b"@import", b"url("))
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    model = json.loads(client.get("/model").body)
    assert [one["name"] for one in model["classes"]] == list(bright.card.classes)
    assert model["limits"] == {"bytes": 20_000_000, "pixels": 25_000_000}
    described = json.loads(client.get("/openapi.json").body)
    assert set(described["paths"]) == {*POSTS, "/model", "/health", "/metrics"}


def test_nothing_is_kept_by_browsers_or_proxies(bright, png, start):
    client = start(bright)
    for reply in (client.post("/mask", png), client.get("/"), client.get("/none"), client.post("/mask", b"")):
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_health_and_figures(bright, png, start):
    client = start(bright, max_waiting=3)
    assert json.loads(client.get("/health").body) == {"status": "ok"}
    for _ in range(3):
        client.post("/mask", png)
    client.post("/mask", b"")
    client.get("/some/thing")
    client.get("/another")
    assert client.figure('segdistill_requests_total{path="/mask",status="200"}') == 3
    assert client.figure('segdistill_requests_total{path="/mask",status="422"}') == 1
    assert client.figure('segdistill_requests_total{path="other",status="404"}') == 2
    assert client.figure('segdistill_request_seconds_count{path="/mask"}') == 4
    assert client.figure('segdistill_request_seconds_bucket{le="+Inf",path="/mask"}') == 4
    assert client.figure("segdistill_queue_places") == 4
    assert client.figure("segdistill_queue_length") == 0


def test_monitors_may_ask_for_the_head_alone(bright, start):
    client = start(bright, token=TOKEN)
    for path in ("/health", "/"):
        reply = client.ask("HEAD", path)
        assert (reply.status, reply.body) == (200, b"")
    assert client.ask("HEAD", "/model").status == 401
    assert client.ask("HEAD", "/mask", Authorization=f"Bearer {TOKEN}").status == 405


# --- whom it refuses ------------------------------------------------------------------------------------------------


def test_with_a_token_only_the_bare_page_is_open(bright, png, start):
    client = start(bright, token=TOKEN)
    for path in ("/", "/page.css", "/page.js", "/health"):
        assert client.get(path).status == 200
    bad = ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN})
    more = ({"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": ""})
    for headers in (*bad, *more):
        for reply in (client.post("/mask", png, **headers), client.get("/model", **headers)):
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in reply.error
    assert client.get("/metrics").status == client.get("/none").status == 401
    assert bright.calls == 0
    right = {"Authorization": f"bearer {TOKEN}", "Host": "seg.example.org"}  # as behind a proxy
    assert client.post("/mask", png, **right).status == client.get("/metrics", **right).status == 200


def test_a_host_header_opens_nothing(bright, png, start, monkeypatch):
    """Starlette 0.38 makes a request's URL like this: the path of the host `x/health?` is that of an open page."""
    url = property(lambda request: URL(f"http://{request.headers['host']}{request.scope['path']}"))
    monkeypatch.setattr(guard.Request, "url", url)
    client = start(bright, token=TOKEN)
    for host in ("x/health?", "x/health#", "x/page.css?", "127.0.0.1"):
        assert client.get("/model", Host=host).status == client.post("/mask", png, Host=host).status == 401
    assert bright.calls == 0
    assert client.get("/health", Host="x/model?").status == 200


def test_tokens_are_compared_in_constant_time(bright, start, monkeypatch):
    seen = []
    compare = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    start(bright, token=TOKEN).get("/model", Authorization="Bearer guess")
    assert seen == [(b"guess", TOKEN.encode())]


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1.evil.org", "", "[", "10.0.0.1:8000", "localhost.org"])
def test_another_name_for_loopback_is_refused(bright, png, start, host):
    reply = start(bright).post("/mask", png, Host=host)
    assert reply.status == 403
    assert reply.error
    assert bright.calls == 0


def test_pages_of_other_sites_are_refused(bright, png, start):
    client = start(bright)
    for site in ("cross-site", "same-site"):
        assert client.post("/mask", png, Sec_Fetch_Site=site).status == 403
    assert bright.calls == 0
    assert client.post("/mask", png, Sec_Fetch_Site="same-origin", Host=f"localhost:{client.port}").status == 200


# --- hostile uploads ------------------------------------------------------------------------------------------------


def hostile(png: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"<script>alert(1)</script>",
        "gif": b"GIF89a" + bytes(100),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zip": b"PK\3\4" + bytes(100),
        "pickle": b"\x80\4cos\nsystem\n(S'true'\ntR.",
        "dicom": bytes(128) + b"DICM" + bytes(100),
        "signature alone": png[:8],
        "truncated": png[: len(png) // 2],
        "bomb": bomb(60_000, 60_000),
        "bomb below the readers' own limit": bomb(14_000, 14_000),
        "strip": bomb(2**31 - 1, 1),
    }


def test_hostile_uploads_are_one_clear_message(bright, png, start):
    client = start(bright)
    for kind, content in hostile(png).items():
        begin = time.monotonic()
        reply = client.post("/mask", content)
        assert reply.status == 422, kind
        assert reply.error.startswith("the image: "), kind
        assert time.monotonic() - begin < 3, kind
    assert bright.calls == 0
    assert client.post("/mask", png).status == 200


def test_more_pixels_than_allowed_are_not_decoded(bright, start, image, monkeypatch):
    from PIL import ImageFile

    client = start(bright, max_pixels=2439)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    reply = client.post("/mask", encoded(image(40, 61)))
    assert (reply.status, bright.calls) == (422, 0)
    assert "61x40 pixels; at most 2,439" in reply.error


@pytest.mark.parametrize(
    "name",
    [
        b"../../../etc/passwd",
        b"..\\..\\secret.png",
        b"C:\\Windows\\a.png",
        b"/absolute.png",
        b"a\0b.png",
        b"%2e%2e%2fa.png",
        b"a.nii.gz",
        b"a.dcm",
        b"a.png#7",
        b"",
        b".",
        b"\xff\xfe.png",
        b"x" * 1000,
        b"$(touch pwned).png",
    ],
)
def test_a_file_name_does_nothing(bright, png, start, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    client = start(bright)
    assert client.post("/mask", png, name).body == client.post("/mask", png).body
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("image/png", b"\x89PNG", 415),
        ("application/x-www-form-urlencoded", b"image=a", 415),
        ("multipart/form-data", b"x", 400),
        (KIND, b"", 400),
        (KIND, b"no form at all", 400),
        (KIND, form(b"a")[:-9], 400),
        (KIND, form(b"a")[: -len(f"--{BOUNDARY}--\r\n")] + form(b"b"), 400),
        (KIND, form(b"a", name=b"x" * 9000), 400),
        (KIND, form(b"a", field=b"other"), 400),
        (KIND, form(b"a", spacing="1" * 20_000), 400),
        (KIND, form(b"a", one="1", two="2"), 400),
        (KIND, form(b"a").replace(b'; filename="a.png"', b""), 400),
        (KIND, b"--" + BOUNDARY.encode() + b"\r\nA: b\r\n\r\n", 400),
    ],
)
def test_other_requests_are_refused(bright, start, kind, body, status):
    reply = start(bright).ask("POST", "/mask", body, Content_Type=kind)
    assert reply.status == status
    assert "curl -F image=@FILE" in reply.error
    assert bright.calls == 0


def test_wrong_paths_and_methods(bright, start):
    client = start(bright)
    for method, path, status in (("GET", "/mask", 405), ("DELETE", "/", 405), ("GET", "/%2e%2e/etc/passwd", 404)):
        reply = client.ask(method, path)
        assert reply.status == status
        assert "POST an image" in reply.error


def test_a_file_too_large_is_refused_however_it_is_sent(bright, png, start):
    client = start(bright, max_bytes=len(png) - 1)
    whole = client.post("/mask", png)
    body = form(bytes(300_000))
    chunks = client.ask("POST", "/mask", iter([body[:200_000], body[200_000:]]), Content_Type=KIND)
    connection = client.raw("POST /mask HTTP/1.1", f"Content-Type: {KIND}", f"Content-Length: {10**15}")
    begin = time.monotonic()
    promised = reply_on(connection)  # nothing more is sent, so it must not be waited for
    assert time.monotonic() - begin < 3
    for reply in (whole, chunks, promised):
        assert reply.status == 413
        assert f"{len(png) - 1:,} bytes" in reply.error
    assert bright.calls == 0
    assert start(bright, max_bytes=len(png)).post("/mask", png).status == 200


def test_a_broken_head_is_refused(bright, start):
    client = start(bright)
    for length in ("-5", "12x", "1, 2"):
        with client.raw("POST /mask HTTP/1.1", f"Content-Type: {KIND}", f"Content-Length: {length}") as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert client.get("/health").status == 200


def test_an_upload_is_never_written_to_disk(bright, start, monkeypatch):
    noise = encoded(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8))
    assert len(noise) > 2 * 2**20
    client = start(bright)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("on disk"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **k: pytest.fail("on disk"))
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("on disk"))
    assert client.post("/mask", noise).status == 200


# --- load -----------------------------------------------------------------------------------------------------------


def posted(pool: ThreadPoolExecutor, client: Client, png: bytes, count: int):
    """Uploads of which the first is computed and the others wait."""
    futures = []
    for number in range(1, count + 1):
        futures.append(pool.submit(client.post, "/mask", png))
        client.until("segdistill_queue_length", number)
    return futures


def test_a_full_queue_sheds_load(bright, png, start, monkeypatch):
    monkeypatch.setattr("segdistill.deploy.serve.app.PATIENCE", 0.2)
    client = start(bright, max_waiting=1)
    bright.wait()
    with ThreadPoolExecutor(2) as pool:
        inside = posted(pool, client, png, 2)
        shed = client.post("/mask", png)
        unread = reply_on(client.raw("POST /view HTTP/1.1", f"Content-Type: {KIND}", "Content-Length: 5000"))
        large = client.post(
            "/mask", png + bytes(8_000_000)
        )  # more than lies in buffers: it must be taken to be answered
        for reply in (shed, large, unread):  # the last one sent no byte of its body
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert f"try again in {reply.headers['retry-after']} s" in reply.error
        assert client.get("/health").status == 200
        assert bright.calls == 1
        bright.go()
        assert [future.result().status for future in inside] == [200, 200]
    assert client.post("/mask", png).status == 200
    assert client.figure('segdistill_requests_total{path="/mask",status="503"}') == 2
    assert client.figure("segdistill_queue_length") == 0


def test_who_waits_too_long_is_told_and_costs_nothing_more(bright, png, start):
    client = start(bright, max_seconds=0.4)
    bright.wait()
    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(client.post, "/mask", png) for _ in range(2)]
        for reply in replies:
            assert reply.result().status == 504
            assert "not done in time" in reply.result().error
    assert client.figure("segdistill_queue_length") == 0
    bright.go()
    assert client.post("/mask", png).status == 200
    assert bright.calls == 2  # the one that waited was dropped


def test_an_upload_that_never_comes_gives_its_place_back(bright, png, start):
    client = start(bright, max_seconds=0.4, max_waiting=0)
    reply = reply_on(client.raw("POST /mask HTTP/1.1", f"Content-Type: {KIND}", "Content-Length: 5000"))
    assert reply.status == 408
    assert "took too long" in reply.error
    assert client.post("/mask", png).status == 200


def test_who_sends_no_whole_head_is_cut_off(bright, png, start):
    """At the first request of a connection, and at a later one."""
    client = start(bright, max_seconds=1)
    silent, half = (socket.create_connection(("127.0.0.1", client.port), timeout=10) for _ in range(2))
    later = client.raw("GET /health HTTP/1.1")
    with silent, half, later:
        half.sendall(b"GET /health HTTP/1.1\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += later.recv(1000)
        later.sendall(b"GET /health HTTP/1.1\r\n")
        for connection in (silent, half, later):
            assert connection.recv(1000) == b""  # its end
    assert client.post("/mask", png).status == 200


def test_who_leaves_is_not_computed(bright, png, start):
    client = start(bright)
    bright.wait()
    with ThreadPoolExecutor(1) as pool:
        (first,) = posted(pool, client, png, 1)
        body = form(png)
        leaving = client.raw("POST /mask HTTP/1.1", f"Content-Type: {KIND}", f"Content-Length: {len(body)}")
        leaving.sendall(body)
        client.until("segdistill_queue_length", 2)
        leaving.close()
        client.until("segdistill_queue_length", 1)
        half = client.raw("POST /mask HTTP/1.1", f"Content-Type: {KIND}", f"Content-Length: {len(body)}")
        half.sendall(body[:100])
        client.until("segdistill_queue_length", 2)
        half.close()
        client.until("segdistill_queue_length", 1)
        bright.go()
        assert first.result().status == 200
    assert bright.calls == 1
    client.until('segdistill_requests_total{path="/mask",status="499"}', 2)


def test_many_clients_get_their_own_masks(card, bright, start, image):
    client = start(bright, max_waiting=40)
    pictures = [encoded(image(20 + seed, 30, seed)) for seed in range(6)]
    alone = [client.post("/mask", one).body for one in pictures]
    assert len(set(alone)) == 6
    with ThreadPoolExecutor(12) as pool:
        together = [reply.body for reply in pool.map(lambda one: client.post("/mask", one), pictures * 5)]
    assert together == alone * 5


# --- what must not be seen ------------------------------------------------------------------------------------------


def test_nothing_of_a_request_is_logged(bright, png, start, capfd, caplog):
    client = start(bright)
    name = b"Mueller_Hans_1961.png"
    for content in (png, b"secret content", png[:60]):
        client.post("/mask?patient=Mueller", content, name)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_an_unforeseen_error_shows_its_place_and_no_word_more(bright, png, start, caplog, capfd):
    client = start(bright)

    def fails(image, modality=None):
        raise ValueError("of patient Mueller")

    bright.predict = fails
    reply = client.post("/mask", png, b"Mueller.png")
    assert reply.status == 500
    assert reply.error == "the server failed on this image; its terminal says where"
    assert "ValueError at fails:" in caplog.text
    assert "Mueller" not in caplog.text
    assert capfd.readouterr() == ("", "")
    del bright.predict
    assert client.post("/mask", png).status == 200


# --- the end --------------------------------------------------------------------------------------------------------


def test_what_has_begun_is_answered_before_the_end(bright, png, start):
    from segdistill.deploy.serve.app import build_app
    from segdistill.deploy.serve.limits import Limits
    from segdistill.deploy.serve.run import listen, make_server

    listening = listen("127.0.0.1", 0)
    server = make_server(build_app(bright, Limits()), 30)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    client = Client(listening.getsockname()[1])
    bright.wait()
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.post, "/mask", png)
        assert bright.entered.wait(10)
        server.should_exit = True
        bright.go()
        assert reply.result().status == 200
    thread.join(10)
    listening.close()
    assert not thread.is_alive()
