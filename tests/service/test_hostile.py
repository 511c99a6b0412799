"""What no well-meaning client sends, on real sockets: a problem or the right answer, and the server lives on."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from random import Random

import httpx
import numpy as np
import pytest
from PIL import Image

from model.codec import Codec
from model.container import MEDIA_TYPE
from tests import bombs
from tests.fuzz import oracle, seeds
from tests.fuzz.mutate import damaged_image, hostile
from tests.service.conftest import Server, assert_problem, image_file, open_image

TINY = {"model": "tcm-tiny-mse-0.01"}
ANSWERS = {200, 400, 406, 409, 413, 415, 422}
"""To whatever file a client may send."""
SMALL = image_file(Image.new("RGB", (9, 9), "red"))


@pytest.fixture(autouse=True, scope="module")
def has_its_model(tight: Server) -> None:
    """Loading it on a busy machine takes longer than these clients wait."""
    assert tight.client.post("/v1/encode", params=TINY, content=SMALL).status_code == 200


@pytest.fixture(autouse=True)
def lives_on(tight: Server) -> Iterator[None]:
    """After each of these, the server encodes as before, and nothing was a 500."""
    yield
    assert tight.client.get("/livez").status_code == 200
    assert tight.client.post("/v1/encode", params=TINY, content=SMALL).status_code == 200
    assert tight.metric("tcm_http_requests_total", code="500") == 0


def talk(server: Server, *parts: bytes) -> bytes:
    """All that is answered to these bytes, until the server closes or is silent for some seconds."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=8) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while more := connection.recv(65536):
                answer += more
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
    return answer


def request(*headers: bytes, path: bytes = b"/v1/encode?model=tcm-tiny-mse-0.01", version: bytes = b"1.1") -> bytes:
    lines = [b"POST " + path + b" HTTP/" + version, b"Host: x", *headers]
    return b"\r\n".join([*lines, b"", b""])


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ---- bodies


def test_http_1_0(tight: Server) -> None:
    length = b"Content-Length: %d" % len(SMALL)
    assert status(talk(tight, request(length, version=b"1.0"), SMALL)) == 200
    answer = talk(tight, request(version=b"1.0"))  # no length, so no body
    assert status(answer) == 400
    assert b'"empty-body"' in answer


def test_a_body_without_a_length(tight: Server) -> None:
    answer = talk(tight, request(b"Connection: close"), SMALL)
    assert status(answer) == 400
    assert b'"empty-body"' in answer


@pytest.mark.parametrize("kind", [b"image/png", b"multipart/form-data; boundary=x"])
def test_chunks_beyond_the_limit(tight: Server, kind: bytes) -> None:
    """From the first chunk that passes it, whatever is announced behind it."""
    head = request(b"Transfer-Encoding: chunked", b"Content-Type: " + kind)
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    first = b"%x\r\n" % len(part) + part + b"\r\n" if b"multipart" in kind else b""
    answer = talk(tight, head + first, *[b"10000\r\n" + bytes(1 << 16) + b"\r\n"] * 8)
    assert status(answer) == 413
    assert b'"body-too-large"' in answer


@pytest.mark.parametrize("chunk", [b"fffffffffffffffff\r\n", b"-1\r\nx\r\n", b"1\r\nxy\r\n", b"zz\r\n", b"\0"])
def test_chunks_that_lie(tight: Server, chunk: bytes) -> None:
    assert status(talk(tight, request(b"Transfer-Encoding: chunked") + chunk + b"0\r\n\r\n")) == 400


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: xchunked",),
        (b"Content-Length: -1",),
        (b"Content-Length: +5",),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: 99999999999999999999999",),
        (b"Content-Length : 5",),
        (b"Broken",),
        (b": empty",),
        (b"X: a\0b",),
        (b"X\0: a",),
    ],
)
def test_heads_that_two_readers_would_read_differently(tight: Server, headers: tuple[bytes, ...]) -> None:
    """What smuggles a request past a proxy."""
    answer = talk(tight, request(*headers) + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(answer) in (400, 413)
    assert answer.count(b"HTTP/1.1") == 1


# ---- addresses and heads


@pytest.mark.parametrize(
    "path",
    [
        b"/%", b"/%zz", b"/%00", b"/%ff%fe", b"/static/%00", b"/static/%2e%2e/app.py", b"/static/..%2f..%2fetc/passwd",
        b"/static/" + b"a" * 5000, b"/static/" + b"%2e%2e/" * 100, b"/problems/%00", b"/problems/%ff", b"//",
        b"/?%00=%ff",
        b"/v1/bitstreams/%00", b"/v1/bitstreams/..%2f..", b"/v1/bitstreams/%ff/image", b"/v1/models?%ff", b"/\xff",
        b"/v1/encode?model=%00", b"/v1/encode?model=%ff", b"/v1/encode?quality=%E0%A4%A", b"*", b"http://other/livez",
        b"/v1/encode?timeout_ms=1e9", b"/v1/encode?" + b"model=a&" * 5000, b"/livez;x=y", b"/livez#x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_addresses(tight: Server, path: bytes, method: bytes) -> None:
    answer = talk(tight, method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert 200 <= status(answer) < 500
    assert b"root:" not in answer


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"PRI", b"get", b"X" * 100, b"OPTIONS", b"PROPFIND"])
def test_methods(tight: Server, method: bytes) -> None:
    target = b"x:80" if method == b"CONNECT" else b"/v1/encode"
    answer = talk(tight, method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer == b"" or 400 <= status(answer) < 500


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.0", b"x" * 1000])
def test_upgrades_are_not_taken(tight: Server, upgrade: bytes) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: " + upgrade + b"\r\n\r\n"
    answer = talk(tight, head)
    assert answer == b"" or status(answer) in (200, 400)


def test_a_gigantic_header(tight: Server) -> None:
    answer = talk(tight, b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (4 << 20) + b"\r\n\r\n")
    assert answer == b"" or status(answer) == 431


def test_garbage_behind_a_request(tight: Server) -> None:
    """The first is answered; what follows is no HTTP, and ends the connection."""
    answer = talk(tight, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)) * 50)
    assert answer == b"" or status(answer) in (200, 400)


def test_many_requests_in_one_piece(tight: Server) -> None:
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(tight, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 200 + last)
    assert answer.count(b"HTTP/1.1 200") == 201


def test_requests_without_end_on_one_connection(tight: Server) -> None:
    """Each read of the socket holds thousands: they would keep the event loop, and memory, from everybody else."""
    answer = talk(tight, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
    assert 256 <= answer.count(b"HTTP/1.1 200") <= 300


# ---- forms and names


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a\0b.png", "a\r\nSet-Cookie: x=1.png", '"; x="', "\u202egnp.exe", "a" * 60_000, ".", "…"],
)
def test_names_of_files(tight: Server, name: str) -> None:
    response = tight.client.post("/v1/encode", params=TINY, files={"file": (name, SMALL)})
    assert response.status_code in (200, 400), response.text
    assert "set-cookie" not in response.headers
    if response.status_code == 200:
        shown = response.headers["content-disposition"]
        assert "/" not in shown.partition("filename")[2].replace("UTF-8''", "")
        assert len(shown.encode()) < 1 << 16


def test_forms_that_are_mostly_headers(tight: Server) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    bodies = [
        b"--x\r\n" + b"A: b\r\n" * 30_000 + b"\r\n1\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 200_000 + b"\r\n\r\n1\r\n--x--\r\n",
        b"--x\r\n\r\n\r\n" * 20_000,
        b"\r\n" * 100_000,
        b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename*=UTF-8''%ff%00\r\n\r\n"
        + SMALL
        + b"\r\n--x--\r\n",
    ]
    for body in bodies:
        response = tight.client.post("/v1/encode", params=TINY, content=body, headers=form)
        assert response.status_code in (200, 400), response.text
    for boundary in ("", "x" * 5000, '"', "\u00e9"):
        kind = f"multipart/form-data; boundary={boundary}".encode("latin-1")
        assert_problem(tight.client.post("/v1/encode", content=b"--x", headers={"Content-Type": kind}), 400, "bad-form")


# ---- files


@pytest.mark.slow
def test_mutated_bitstreams(tight: Server, tiny_codec: Codec) -> None:
    """Never a 500, and never a 200 with other pixels."""
    files = seeds.bitstreams(tiny_codec)
    whole = oracle.WholeCodec(tiny_codec, files)
    rng = Random(5)
    decoded = 0
    for _ in range(150):
        data = hostile(rng, files)
        response = _decode(tight, data)
        if not data:
            continue
        assert response.status_code in ANSWERS, response.text
        if response.status_code == 200:
            decoded += 1
            assert whole.judge(data) == "decoded"
            sent, here = open_image(response.content), tiny_codec.decode(data)
            np.testing.assert_array_equal(np.asarray(sent), np.asarray(here))
        else:
            assert response.json()["status"] == response.status_code
    assert decoded > 3


def _decode(server: Server, data: bytes) -> httpx.Response:
    headers = {"Content-Type": MEDIA_TYPE, "Accept": "image/png"}
    return server.client.post("/v1/decode", content=data, headers=headers)


@pytest.mark.slow
def test_mutated_images(tight: Server) -> None:
    files = seeds.images()
    rng = Random(6)
    for _ in range(100):
        data = damaged_image(rng, files)
        response = tight.client.post("/v1/encode", params=TINY, content=data)
        assert response.status_code in ANSWERS, response.text


def test_bombs(tight: Server) -> None:
    """Small files that ask for much, within this server's limits of 300 kB and 200,000 pixels."""
    for bomb in (
        bombs.gif_of_canvas(65_535, 65_535), bombs.webp_of_canvas(1 << 24, 255), bombs.avif_of_lies(64, 16_384),
        bombs.tiff_of_tiles(64, 30_000), bombs.png_of_comments(70), bombs.png_of_profiles(100),
        bombs.tiff_of_overlaps(500, 100_000), image_file(Image.new("1", (30_000, 30_000))),
        image_file(Image.new("L", (1, 150_000))),
    ):  # fmt: skip
        response = tight.client.post("/v1/encode", params=TINY, content=bomb)
        assert response.status_code in (200, 413, 415, 422), response.text


def test_a_polyglot_is_the_image_that_it_begins_with(tight: Server) -> None:
    tail = io.BytesIO(b"<script>alert(1)</script>").getvalue()
    sound = tight.client.post("/v1/encode", params=TINY, content=SMALL)
    assert tight.client.post("/v1/encode", params=TINY, content=SMALL + tail).content == sound.content
