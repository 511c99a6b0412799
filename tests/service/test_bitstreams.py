"""/v1/bitstreams: what is kept comes back, byte for byte or as a picture, and caches are told the truth."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from model.container import MAX_METADATA, read_container, write_container
from tests.conftest import psnr
from tests.service.conftest import MODEL, Server, assert_problem, busy, image_file, open_image, wait_for

DECODES = {"op": "decode", "stage": "g_s"}


def stages(server: Server) -> float:
    return server.metric("tcm_stage_duration_seconds_count", **DECODES)


@pytest.fixture(scope="module")
def kept(server: Server, bitstream: bytes) -> str:
    """The address of a stored bitstream."""
    response = server.client.post("/v1/bitstreams", content=bitstream, headers={"Content-Type": "application/vnd.tcm"})
    assert response.status_code == 201, response.text
    return response.headers["location"]


def fresh(server: Server, bitstream: bytes, note: bytes) -> str:
    """The address of a bitstream of the same picture that nobody has asked for yet."""
    data = write_container(dataclasses.replace(read_container(bitstream), xmp=b"<x>" + note + b"</x>"))
    response = server.client.post("/v1/bitstreams", content=data)
    assert response.status_code == 201, response.text
    return response.headers["location"]


def test_an_image_is_encoded_and_kept(server: Server, photo_file: bytes) -> None:
    response = server.client.post("/v1/bitstreams", params={"model": MODEL}, content=photo_file)
    assert response.status_code == 201
    stored = response.json()
    assert response.headers["location"] == f"/v1/bitstreams/{stored['id']}"
    assert response.headers["tcm-model"] == stored["model"] == MODEL
    assert "store;dur=" in response.headers["server-timing"]
    data = server.client.get(response.headers["location"]).content
    assert hashlib.sha256(data).hexdigest() == stored["id"]
    assert (stored["bytes"], stored["width"], stored["height"]) == (len(data), 384, 256)
    assert stored["bpp"] == pytest.approx(8 * len(data) / (384 * 256), abs=1e-4)


def test_the_query_is_that_of_encode(server: Server, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a note"
    small = image_file(photo.resize((96, 64)), exif=exif)
    post = server.client.post
    kept, stripped = (
        post("/v1/bitstreams", params={"quality": 6, "metadata": how}, content=small).json()
        for how in ("keep", "strip")
    )
    assert kept["model"] == stripped["model"] == "tcm-xs-mse-0.05"
    assert kept["bytes"] > stripped["bytes"]
    assert_problem(post("/v1/bitstreams?model=tcm-none", content=small), 404, "unknown-model")
    assert_problem(post("/v1/bitstreams?model=a&quality=1", content=small), 400, "ambiguous-model")
    assert_problem(post("/v1/bitstreams"), 400, "empty-body")
    assert_problem(post("/v1/bitstreams", content=small[:99]), 422, "corrupt-image")
    form = post("/v1/bitstreams?metadata=strip&quality=6", files={"file": ("a.png", small, "image/png")})
    assert form.json() == stripped


def test_a_bitstream_is_checked_and_kept_as_it_is(server: Server, bitstream: bytes, kept: str) -> None:
    assert server.client.get(kept).content == bitstream
    again = server.client.post("/v1/bitstreams", files={"file": ("a.tcm", bitstream)})
    assert again.headers["location"] == kept
    typed = {"Content-Type": "application/vnd.tcm"}
    post = server.client.post
    damaged = bitstream[:-1] + bytes([bitstream[-1] ^ 1])
    assert_problem(post("/v1/bitstreams", content=damaged, headers=typed), 422, "corrupt-bitstream")
    assert_problem(post("/v1/bitstreams", content=b"no tcm", headers=typed), 415, "unsupported-bitstream")
    assert_problem(post("/v1/bitstreams?quality=1", content=bitstream), 422, "invalid-parameter")
    strange = write_container(dataclasses.replace(read_container(bitstream), fingerprint="0123456789ab"))
    assert_problem(post("/v1/bitstreams", content=strange), 409, "incompatible-model")


def test_metadata_of_a_ready_bitstream_can_be_left_out(server: Server, bitstream: bytes, kept: str) -> None:
    noted = write_container(dataclasses.replace(read_container(bitstream), xmp=b"<secret/>"))
    response = server.client.post("/v1/bitstreams?metadata=strip", content=noted)
    assert response.headers["location"] == kept
    with_profile = dataclasses.replace(read_container(bitstream), icc=b"what its colours are")
    noted = write_container(dataclasses.replace(with_profile, exif=b"Exif\0\0secret"))
    location = server.client.post("/v1/bitstreams?metadata=strip", content=noted).headers["location"]
    assert server.client.get(location).content == write_container(with_profile)


def test_headers_of_the_bytes(server: Server, bitstream: bytes, kept: str) -> None:
    digest = hashlib.sha256(bitstream)
    headers = server.client.get(kept).headers
    assert headers["etag"] == f'"{digest.hexdigest()}"'
    assert headers["content-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["content-type"] == "application/vnd.tcm"
    assert headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("suffix", ["", "/image"])
def test_head_has_the_headers_of_get(server: Server, kept: str, suffix: str) -> None:
    server.client.get(kept + suffix)  # from here on the picture comes from memory
    head, get = server.client.head(kept + suffix), server.client.get(kept + suffix)
    own = {"x-request-id", "date", "content-digest"}  # the last is of what is sent
    assert "content-digest" not in head.headers
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in get.headers.items() if k not in own
    }
    assert int(head.headers["content-length"]) == len(get.content) > 0
    assert head.content == b""


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=10-", 10, None),
        ("bytes=-7", -7, None),
        ("bytes=5-5", 5, 5),
        ("bytes=3-99999999", 3, None),
        ("bytes=-99999999", 0, None),
        ("Bytes = 1-2", 1, 2),
    ],
)
def test_ranges(server: Server, bitstream: bytes, kept: str, asked: str, first: int, last: int | None) -> None:
    part = bitstream[first : None if last is None else last + 1]
    response = server.client.get(kept, headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == part
    start = bitstream.index(part) if first < 0 else first
    assert response.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(bitstream)}"
    summed = base64.b64encode(hashlib.sha256(part).digest()).decode()
    assert response.headers["content-digest"] == f"sha-256=:{summed}:"
    whole = server.client.get(kept).headers
    assert (response.headers["etag"], response.headers["repr-digest"]) == (whole["etag"], whole["repr-digest"])


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=9-3", "bytes=-", "bytes=a-b", "0-1"])
def test_ranges_that_are_all_of_it(server: Server, bitstream: bytes, kept: str, asked: str) -> None:
    response = server.client.get(kept, headers={"Range": asked})
    assert (response.status_code, response.content) == (200, bitstream)


def test_ranges_behind_the_end(server: Server, bitstream: bytes, kept: str) -> None:
    for asked in (f"bytes={len(bitstream)}-", "bytes=99999999-", "bytes=-0"):
        response = server.client.get(kept, headers={"Range": asked})
        assert_problem(response, 416, "range-not-satisfiable")
        assert response.headers["content-range"] == f"bytes */{len(bitstream)}"


def test_a_range_of_another_representation_is_none(server: Server, bitstream: bytes, kept: str) -> None:
    etag = server.client.get(kept).headers["etag"]
    statuses = {
        tag: server.client.get(kept, headers={"Range": "bytes=0-3", "If-Range": tag}).status_code
        for tag in (etag, '"other"', f"W/{etag}", "Thu, 26 Nov 2026 00:00:00 GMT")
    }
    assert list(statuses.values()) == [206, 200, 200, 200]


@pytest.mark.parametrize("suffix", ["", "/image"])
def test_what_the_client_has_is_not_sent(server: Server, kept: str, suffix: str) -> None:
    whole = server.client.get(kept + suffix)
    etag = whole.headers["etag"]
    for tags in (etag, f'"x", W/{etag}', f'{etag},"y"', "*"):
        for method in ("GET", "HEAD"):
            response = server.client.request(
                method, kept + suffix, headers={"If-None-Match": tags, "Range": "bytes=0-"}
            )
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["cache-control"] == whole.headers["cache-control"]
            assert response.headers.get("vary") == whole.headers.get("vary")
            assert response.headers.get("etag") == etag
    for tags in ('"x"', "nonsense", etag.strip('"'), '"' + etag[5:]):
        assert server.client.get(kept + suffix, headers={"If-None-Match": tags}).status_code == 200


@pytest.mark.parametrize("suffix", ["", "/image"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_meant_must_be_there(server: Server, kept: str, suffix: str, method: str) -> None:
    """Found by trying: `If-Match` was honoured where something is deleted, and not where it is read."""
    etag = server.client.get(kept + suffix).headers["etag"]
    statuses = {
        tags: server.client.request(method, kept + suffix, headers={"If-Match": tags}).status_code
        for tags in (etag, f'"x", {etag}', "*", '"x"', f"W/{etag}")
    }
    assert list(statuses.values()) == [200, 200, 200, 412, 412]
    both = {"If-Match": '"x"', "If-None-Match": etag}
    assert server.client.request(method, kept + suffix, headers=both).status_code == 412  # RFC 9110, 13.2.2


def test_a_picture_decoded_elsewhere_is_as_good(server: Server, kept: str) -> None:
    """Replicas may differ in a picture's last bits, so in its tag; a client that has either needs no other."""
    mine = server.client.get(f"{kept}/image").headers["etag"]
    other = mine[:-33] + "0" * 32 + '"'
    response = server.client.get(f"{kept}/image", headers={"If-None-Match": other})
    assert (response.status_code, response.headers["etag"]) == (304, other)


def test_the_picture(server: Server, kept: str, photo: Image.Image) -> None:
    response = server.client.get(f"{kept}/image")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["vary"] == "Accept"
    assert response.headers["tcm-model"] == MODEL
    digest = hashlib.sha256(response.content)
    assert response.headers["content-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert digest.hexdigest()[:32] in response.headers["etag"]
    picture = open_image(response.content)
    assert picture.size == photo.size
    assert psnr(picture, photo) > 25


def test_pictures_are_negotiated_and_each_has_its_tag(server: Server, kept: str, bitstream: bytes) -> None:
    tags = set()
    for name in ("png", "webp", "jpeg", "avif", "tiff"):
        response = server.client.get(f"{kept}/image", headers={"Accept": f"image/{name}"})
        assert response.headers["content-type"] == f"image/{name}"
        decoded = server.client.post("/v1/decode", content=bitstream, headers={"Accept": f"image/{name}"})
        assert psnr(open_image(response.content).convert("RGB"), open_image(decoded.content).convert("RGB")) > 50
        tags.add(response.headers["etag"])
    assert len(tags) == 5
    png = server.client.get(f"{kept}/image").headers["etag"]
    other = server.client.get(f"{kept}/image", headers={"Accept": "image/webp", "If-None-Match": png})
    assert other.status_code == 200
    refused = server.client.get(f"{kept}/image", headers={"Accept": "text/html"})
    assert_problem(refused, 406, "not-acceptable")


def test_lists_may_come_in_several_lines(server: Server, kept: str, bitstream: bytes) -> None:
    """As they do behind proxies that add a line of their own."""
    accept = [("Accept", "image/webp"), ("Accept", "application/json")]
    assert server.client.get(f"{kept}/image", headers=accept).headers["content-type"] == "image/webp"
    assert server.client.post("/v1/decode", content=bitstream, headers=accept).headers["content-type"] == "image/webp"
    tags = [("If-None-Match", f'"{kept.rpartition("/")[2]}"'), ("If-None-Match", '"another"')]
    assert server.client.get(kept, headers=tags).status_code == 304
    tags = [("If-Match", '"another"'), ("If-Match", f'"{kept.rpartition("/")[2]}"')]
    assert server.client.get(kept, headers=tags).status_code == 200


@pytest.mark.parametrize("name", ["Range", "If-None-Match", "If-Match", "If-Range", "Accept"])
@pytest.mark.parametrize("text", ["bytes={}x", "x{}x", '"a"{}x', "bytes=1-{}x"])
def test_headers_of_blanks_cost_nothing(server: Server, kept: str, name: str, text: str) -> None:
    """Found by reading: one of 60,000 was looked at for a minute, by the event loop, and ended the process."""
    for suffix in ("", "/image"):
        answer = server.client.get(f"{kept}{suffix}", headers={name: text.format(" " * 60_000)}, timeout=20)
        assert answer.status_code in (200, 406, 412)


def test_tiny_pictures_count_for_what_keeping_them_takes(server: Server) -> None:
    """Their bytes are a seventh of it: the bound would have been passed several times over."""
    before = server.metric("tcm_reconstruction_cache_bytes")
    dot = image_file(Image.new("RGB", (1, 1), (11, 97, 181)))
    address = server.client.post("/v1/bitstreams", content=dot).headers["location"]
    assert server.client.get(f"{address}/image").status_code == 200
    assert server.metric("tcm_reconstruction_cache_bytes") - before > 2048  # of the bitstream and of its picture


def test_asking_again_decodes_nothing(server: Server, bitstream: bytes) -> None:
    address = fresh(server, bitstream, b"again")
    before, cached = stages(server), server.metric("tcm_reconstructions_total", source="cache")
    first, second = (server.client.get(f"{address}/image") for _ in range(2))
    assert first.content == second.content
    assert second.headers["server-timing"] == "cache"
    assert stages(server) == before + 1
    assert server.metric("tcm_reconstructions_total", source="cache") == cached + 1
    assert server.metric("tcm_reconstruction_cache_bytes") >= len(first.content)
    etag = first.headers["etag"]
    assert server.client.get(f"{address}/image", headers={"If-None-Match": etag}).status_code == 304


def test_many_at_once_are_one_decode(server: Server, large: bytes, bitstream: bytes) -> None:
    """While the device is busy, twelve ask for one picture; the first of them, whose work it is, leaves."""
    address = fresh(server, bitstream, b"many")
    before, shared = stages(server), server.metric("tcm_reconstructions_total", source="shared")
    gone = server.metric("tcm_requests_rejected_total", reason="client-gone")
    asked = server.metric("tcm_store_operation_duration_seconds_count", op="stat")
    host, port = server.url.removeprefix("http://").split(":")
    with busy(server, large) as work, ThreadPoolExecutor(11) as clients:
        with socket.create_connection((host, int(port))) as leader:
            leader.sendall(f"GET {address}/image HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            wait_for(lambda: server.metric("tcm_queue_depth") == 1)
            others = [clients.submit(server.client.get, f"{address}/image") for _ in range(11)]
            wait_for(lambda: server.metric("tcm_store_operation_duration_seconds_count", op="stat") == asked + 12)
        wait_for(lambda: server.metric("tcm_requests_rejected_total", reason="client-gone") == gone + 1)
        assert not work.done()
        assert server.metric("tcm_queue_depth") == 1
        answers = [other.result() for other in others]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert stages(server) == before + 1
    assert server.metric("tcm_reconstructions_total", source="shared") == shared + 11


def test_a_decode_that_nobody_waits_for_leaves_the_queue(server: Server, large: bytes, bitstream: bytes) -> None:
    address = fresh(server, bitstream, b"nobody")
    before = stages(server)
    with busy(server, large) as work:
        for _ in range(2):
            response = server.client.get(f"{address}/image", params={"timeout_ms": 300})
            assert_problem(response, 504, "deadline-exceeded")
            assert server.metric("tcm_queue_depth") == 0
        assert not work.done()
    assert stages(server) == before
    assert server.client.get(f"{address}/image").status_code == 200


def test_the_log_names_the_bitstream(server: Server, bitstream: bytes) -> None:
    digest = hashlib.sha256(bitstream).hexdigest()
    path = f"/v1/bitstreams/{digest}"
    for i, (method, where) in enumerate([("POST", "/v1/bitstreams"), ("GET", path), ("GET", f"{path}/image")]):
        content = bitstream if method == "POST" else None
        server.client.request(method, where, content=content, headers={"X-Request-ID": f"named-{i}"})
        [line] = server.requests(f"named-{i}")
        assert line["bitstream"] == digest


def test_a_body_where_none_is_expected_is_a_problem_of_its_own(server: Server, large: bytes, bitstream: bytes) -> None:
    """It went unread, and with it that the client leaves."""
    address = fresh(server, bitstream, b"a body")
    with busy(server, large):
        response = server.client.request("GET", f"{address}/image", content=iter([bytes(1 << 20)] * 40))
        assert_problem(response, 413, "body-too-large")


def test_deleting(server: Server, bitstream: bytes) -> None:
    address = fresh(server, bitstream, b"delete")
    assert server.client.get(f"{address}/image").status_code == 200
    response = server.client.delete(address)
    assert (response.status_code, response.content) == (204, b"")
    for gone in (address, f"{address}/image"):
        assert_problem(server.client.get(gone), 404, "bitstream-not-found")
        assert server.client.head(gone).status_code == 404
        assert_problem(server.client.get(gone, headers={"If-None-Match": "*"}), 404, "bitstream-not-found")
    assert_problem(server.client.delete(address), 404, "bitstream-not-found")
    assert fresh(server, bitstream, b"delete") == address
    assert server.client.get(address).status_code == 200


def test_deleting_what_is_meant(server: Server, bitstream: bytes) -> None:
    address = fresh(server, bitstream, b"if-match")
    etag = server.client.get(address).headers["etag"]
    for other in ('"other"', f"W/{etag}", ""):
        assert_problem(server.client.delete(address, headers={"If-Match": other}), 412, "precondition-failed")
    assert server.client.get(address).status_code == 200
    assert server.client.delete(address, headers={"If-Match": f'"other", {etag}'}).status_code == 204


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("format=webp", "Accept"),
        ("metadata=strip", "read as it is"),
        ("quality=3&model=x", "names its own"),
        ("timeout_ms=1&timeout_ms=5000", "more than once"),
    ],
)
def test_parameters_that_mean_something_elsewhere(server: Server, kept: str, query: str, named: str) -> None:
    """They were ignored: who asked for a WebP, or for a photograph without its place, got neither, and no word."""
    for method, path in (("GET", kept), ("GET", f"{kept}/image"), ("DELETE", kept)):
        problem = assert_problem(server.client.request(method, f"{path}?{query}"), 422, "invalid-parameter")
        assert named in str(problem["detail"])
    assert server.client.get(f"{kept}?utm_source=letter").status_code == 200  # as links gather it


def test_what_is_kept_counts_inflated(server: Server, bitstream: bytes) -> None:
    """Found by reading: kilobytes of zlib streams were megabytes in memory, and counted as kilobytes."""
    before, blocks = server.metric("tcm_reconstruction_cache_bytes"), 3
    for i in range(6):
        zeros = dict.fromkeys(("icc", "exif", "xmp"), bytes([i]) * MAX_METADATA)
        data = write_container(dataclasses.replace(read_container(bitstream), **zeros))
        assert len(data) < len(bitstream) + 20_000
        address = server.client.post("/v1/bitstreams", content=data).headers["location"]
        answer = server.client.get(f"{address}/image", headers={"Accept": "text/plain"})
        assert_problem(answer, 406, "not-acceptable")
        if i == 0:
            assert server.metric("tcm_reconstruction_cache_bytes") - before >= blocks * MAX_METADATA
    kept = (256 << 20) // 8  # of the default for both, what bitstreams may take
    assert server.metric("tcm_reconstruction_cache_bytes") <= before + kept


@pytest.mark.parametrize("name", ["x", "A" * 64, "0" * 63, "0" * 65, "..%2f" + "0" * 59, "0" * 62 + "%00"])
def test_ids_that_are_none(server: Server, name: str) -> None:
    for method in ("GET", "DELETE"):
        response = server.client.request(method, f"/v1/bitstreams/{name}")
        assert response.json()["code"] in ("invalid-parameter", "not-found"), response.text
    assert server.client.put(f"/v1/bitstreams/{'0' * 64}").status_code == 405


def test_store_calls_are_measured(server: Server, kept: str) -> None:
    server.client.get(kept)
    for op in ("write", "stat", "read"):
        assert server.metric("tcm_store_operation_duration_seconds_count", op=op) >= 1
