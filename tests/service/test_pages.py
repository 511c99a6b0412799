"""The pages in a real browser: they work, complain of nothing, and ask no other server for anything."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.headers import DEFAULTS
from tests.service.browser import visit
from tests.service.conftest import MODEL, Server, assert_problem, image_file, start

OURS, OTHER = "https://app.example.org", "https://evil.example"


def test_a_photograph_is_dropped_on_the_page(server: Server, photo_file: bytes) -> None:
    with visit(server.url + "/") as seen:
        page = seen.page
        page.wait_for_selector("#model option", state="attached")
        assert page.input_value("#model") == MODEL
        drop(page, "#drop", "photo.png", photo_file)
        page.locator("#psnr", has_text="dB").wait_for(timeout=60_000)
        assert page.text_content("#pixels") == "384 × 256"
        assert float(page.text_content("#psnr").removesuffix(" dB")) > 24
        assert 0 < float(page.text_content("#bpp")) < 4
        assert page.get_attribute("#download", "download") == "photo.tcm"
        assert page.is_hidden("#error")
        assert page.is_hidden("#locked")
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("#error:not([hidden])")
        assert "image" in page.text_content("#error")
        refused = "Failed to load resource: the server responded with a status of 415"
        assert [e for e in seen.errors if not e.startswith(refused)] == []
        assert seen.elsewhere(server.url) == []


def drop(page, place: str, name: str, data: bytes) -> None:
    """Drop a file there."""
    dropped = page.evaluate_handle(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event(place, "drop", {"dataTransfer": dropped})


def test_a_bitstream_is_opened(server: Server, photo_file: bytes) -> None:
    """What the page gives out, it takes back; anywhere on it, however long the file's name."""
    bitstream = server.client.post("/v1/encode", content=photo_file).content
    with visit(server.url + "/") as seen:
        page = seen.page
        page.set_viewport_size({"width": 360, "height": 640})
        drop(page, "header", f"{'9f86d081' * 8}.tcm", bitstream)
        page.locator("#status", has_text="Done").wait_for(timeout=60_000)
        assert page.text_content("#pixels") == "384 × 256"
        assert page.is_hidden("#original")
        assert page.is_hidden("#psnr")
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == f"{'9f86d081' * 8}.png"
        assert Image.open(download.value.path()).size == (384, 256)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert seen.errors == []


def test_a_bitstream_of_any_name_is_opened(server: Server, photo_file: bytes) -> None:
    bitstream = server.client.post("/v1/encode", content=photo_file).content
    with visit(server.url + "/") as seen:
        page = seen.page
        drop(page, "#drop", "encode (1)", bitstream)
        page.locator("#status", has_text="Done").wait_for(timeout=60_000)
        assert page.text_content("#download") == "Download the picture"
        page.select_option("#model", index=0)  # is nothing to a bitstream
        assert page.is_visible("#result")
        assert seen.errors == []


def test_what_the_page_compares(server: Server, photo: Image.Image) -> None:
    """Found by trying: pictures wider than a canvas, and invisible ones, were all called lossless."""
    wide = Image.new("RGB", (65_600, 2))
    for left in range(0, wide.width, photo.width):
        wide.paste(photo, (left, -100))
    clear, half = (photo.convert("RGBA") for _ in range(2))
    clear.putalpha(0)
    half.putalpha(0)
    half.paste(photo, (0, 100))
    with visit(server.url + "/") as seen:
        page = seen.page

        def compared(picture: Image.Image) -> str:
            drop(page, "#drop", "x.png", image_file(picture))
            page.locator("#status", has_text="Encoding").wait_for(timeout=60_000)
            page.locator("#status", has_text="Done").wait_for(timeout=120_000)
            return page.text_content("#psnr")

        assert 20 < float(compared(half).removesuffix(" dB")) < 40
        assert compared(clear) == "unknown: all of it is transparent"
        assert 20 < float(compared(wide).removesuffix(" dB")) < 40
        page.evaluate("document.getElementById('locked').hidden = false")
        page.fill("#key", "tcm_ключ")
        page.press("#key", "Tab")
        page.locator("#error", has_text="copy it again").wait_for()
        assert seen.errors == []


def test_a_photograph_is_chosen_before_the_models_are_known(server: Server, photo_file: bytes) -> None:
    """Found by trying: they were listed twice, and the page said Encoding for ever."""
    with visit(server.url + "/docs") as seen:
        page = seen.page

        def late(route) -> None:
            page.wait_for_timeout(1000)
            route.continue_()

        page.route("**/v1/models", late)
        page.goto(server.url + "/")
        for name in ("a.png", "b.png"):
            page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": photo_file})
        page.locator("#status", has_text="Done").wait_for(timeout=60_000)
        assert page.get_attribute("#download", "download") == "b.tcm"
        assert page.locator("#model option").count() == len(server.client.get("/v1/models").json()["models"])


def test_what_the_page_says_when_it_fails(server: Server, photo_file: bytes, tmp_path: Path) -> None:
    """Found by trying: three failures were "Failed to fetch", and a proxy's page nothing but a colon."""
    with visit(server.url + "/") as seen:
        page = seen.page

        def choose(file, said: str) -> None:
            page.set_input_files("#file", file)
            page.locator("#error", has_text=said).wait_for(timeout=20_000)
            assert page.text_content("#status") == ""
            assert page.is_hidden("#locked")

        page.wait_for_selector("#model option", state="attached")
        photo = {"name": "photo.png", "mimeType": "image/png", "buffer": photo_file}
        page.route("**/v1/encode*", lambda route: route.abort())
        choose(photo, "The server cannot be reached")
        page.unroute("**/v1/encode*")
        page.route("**/v1/encode*", lambda route: route.fulfill(status=502, body="<html>Bad Gateway"))
        choose(photo, "The server answered 502: try again later")
        page.unroute("**/v1/encode*")
        refused = json.dumps({"title": "No", "detail": "not from there", "code": "cross-origin-refused"})
        page.route("**/v1/encode*", lambda route: route.fulfill(status=403, body=refused))
        choose(photo, "No: not from there")
        page.unroute("**/v1/encode*")
        changing = tmp_path / "changing.png"
        changing.write_bytes(photo_file)
        page.set_input_files("#file", changing)
        page.locator("#psnr", has_text="dB").wait_for(timeout=60_000)
        changing.unlink()
        page.select_option("#model", index=0)
        page.dispatch_event("#model", "change")
        page.locator("#error", has_text="changing.png cannot be read").wait_for(timeout=20_000)


def test_the_api_page_needs_no_other_server(server: Server) -> None:
    operations = sum(len(item) for item in server.client.get("/openapi.json").json()["paths"].values())
    with visit(server.url + "/docs") as seen:
        page = seen.page
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() == operations
        listing = page.locator("#operations-models-models_v1_models_get")
        listing.locator(".opblock-summary-control").click()
        listing.get_by_text("Try it out").click()
        listing.get_by_text("Execute", exact=True).click()
        page.wait_for_selector(".live-responses-table")
        assert MODEL in page.text_content(".live-responses-table")
        assert seen.errors == []
        assert seen.elsewhere(server.url) == []


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/livez", "/metrics", "/nowhere", "/v1/models"])
def test_every_answer_has_the_headers(server: Server, path: str) -> None:
    for headers in (server.client.get(path).headers, server.client.request("BREW", path).headers):
        assert headers.keys() >= {name.lower() for name in DEFAULTS}
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/v1/models", "/problems", "/metrics"])
def test_what_can_be_read_can_be_asked_for_its_head(server: Server, path: str) -> None:
    head = server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == server.client.get(path).headers["content-type"]


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js"])
@pytest.mark.parametrize("asked", ["items=0-1", "bytes=99999999-", "bytes=0-1"])
def test_pages_are_sent_whole(server: Server, path: str, asked: str) -> None:
    answer = server.client.get(path, headers={"Range": asked})
    assert answer.status_code == 200
    assert "accept-ranges" not in answer.headers
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.content == server.client.get(path).content


def test_other_origins_are_told_nothing_by_default(server: Server) -> None:
    answer = server.client.get("/v1/models", headers={"Origin": OTHER})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
    assert_problem(server.client.options("/v1/encode", headers=asked), 405, "method-not-allowed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that pages of one other origin may call."""
    folder = tmp_path_factory.mktemp("shared")
    running = start(folder, model_dir=folder, preload="none", cors_origins=OURS)
    yield running
    assert running.stop() == 0


def test_an_origin_that_is_allowed(shared: Server) -> None:
    asked = {
        "Origin": OURS,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-request-id",
    }
    before = shared.client.options("/v1/encode", headers=asked)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == OURS
    assert "access-control-allow-credentials" not in before.headers
    for path, status in (("/v1/models", 200), ("/nowhere", 404)):
        answer = shared.client.get(path, headers={"Origin": OURS})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == OURS
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Origin": OTHER, "Access-Control-Request-Method": "POST"}, "origin"),
        ({"Origin": OURS, "Access-Control-Request-Method": "PATCH"}, "method"),
        (
            {"Origin": OURS, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-other"},
            "headers",
        ),
    ],
)
def test_what_is_not_allowed(shared: Server, headers: dict[str, str], named: str) -> None:
    problem = assert_problem(shared.client.options("/v1/encode", headers=headers), 403, "cross-origin-refused")
    assert named in str(problem["detail"])


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_pages_of_other_origins_change_nothing(server: Server, shared: Server, method: str) -> None:
    """Browsers send forms to any address without asking first."""
    path = "/v1/bitstreams" + ("" if method == "POST" else f"/{'0' * 64}")
    for site in ("cross-site", "same-site"):  # the latter: another port of this host
        headers = {"Origin": OTHER, "Sec-Fetch-Site": site}
        for running in (server, shared):
            answer = running.client.request(method, path, content=b"x", headers=headers)
            assert_problem(answer, 403, "cross-origin-refused")
            assert server.client.get("/v1/models", headers=headers).status_code == 200
    for headers in ({"Origin": OURS, "Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert shared.client.request(method, path, content=b"x", headers=headers).status_code != 403


def test_the_answer_to_another_origin_cannot_be_read(shared: Server) -> None:
    answer = httpx.get(f"{shared.url}/v1/models", headers={"Origin": OTHER})
    assert "access-control-allow-origin" not in answer.headers
