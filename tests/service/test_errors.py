"""Every problem, as a client meets it."""

from __future__ import annotations

import dataclasses
import errno
import socket
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from model import Codec, Zoo
from model.container import read_container, write_container
from model.errors import DeviceLost, NoProcess, OutOfMemory
from service.answers import as_problem
from service.errors import PROBLEMS
from tests.service.conftest import Server, assert_problem, image_file


def encode(server: Server, content: bytes = b"", query: str = "", **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/v1/encode{query}", content=content, headers=names)


def decode(server: Server, content: bytes, query: str = "", **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/v1/decode{query}", content=content, headers=names)


def test_the_framework_s_own(server: Server) -> None:
    problem = assert_problem(server.client.get("/nowhere"), 404, "not-found")
    assert problem["detail"] == "there is nothing at '/nowhere'; /docs lists every address"
    assert_problem(server.client.get("/v1/models/"), 404, "not-found")
    assert_problem(server.client.get("/static/../app.py"), 404, "not-found")
    assert_problem(server.client.get("/static/nothing.js"), 404, "not-found")
    for path, methods in (
        (f"/v1/bitstreams/{'0' * 64}", "GET, HEAD, DELETE"),
        ("/v1/bitstreams", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/static/app.js", "GET, HEAD"),
    ):
        response = server.client.patch(path)
        assert_problem(response, 405, "method-not-allowed")
        assert response.headers["allow"] == methods, path
    response = server.client.get("/v1/encode")
    problem = assert_problem(response, 405, "method-not-allowed")
    assert problem["detail"] == "GET is not taken here; what is: POST"
    assert response.headers["allow"] == "POST"
    assert server.client.head("/nowhere").status_code == 404


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("?quality=0", "quality"),
        ("?quality=7", "quality"),
        ("?quality=high", "quality"),
        ("?quality=" + "9" * 5000, "quality"),
        ("?metadata=lose", "metadata"),
        ("?timeout_ms=0", "timeout_ms"),
        ("?timeout_ms=soon", "timeout_ms"),
    ],
)
def test_parameters_out_of_range(server: Server, photo_file: bytes, query: str, parameter: str) -> None:
    problem = assert_problem(encode(server, photo_file, query), 422, "invalid-parameter")
    assert [e["parameter"] for e in problem["errors"]] == [parameter]


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        ("/v1/encode", "?metdata=strip", "metdata"),
        ("/v1/encode", "?Metadata=strip", "Metadata"),
        ("/v1/encode", "?metadata=strip&metadata=keep", "metadata"),
        ("/v1/bitstreams", "?qualty=6", "qualty"),
        ("/v1/decode", "?format=jpeg", "format"),
    ],
)
def test_parameters_that_are_none(server: Server, photo_file: bytes, path: str, query: str, named: str) -> None:
    """Found by reading: a slip of the pen left in the file what was to be stripped."""
    problem = assert_problem(server.client.post(path + query, content=photo_file), 422, "invalid-parameter")
    assert [e["parameter"] for e in problem["errors"]] == [named]


def test_choosing_a_model(server: Server, photo_file: bytes) -> None:
    problem = assert_problem(encode(server, photo_file, "?model=tcm-xxl"), 404, "unknown-model")
    assert "tcm-xs-mse-0.05" in str(problem["detail"])
    both = "?model=tcm-xs-mse-0.013&quality=4"
    assert_problem(encode(server, photo_file, both), 400, "ambiguous-model")


def test_long_names_are_not_repeated(server: Server, photo_file: bytes, bitstream: bytes) -> None:
    """In an answer, and in a line of the log: sixty thousand characters of anybody's."""
    long = "x" * 60_000
    for answer in (
        server.client.post("/v1/encode", params={"model": long}, content=photo_file),
        server.client.get(f"/problems/{long}"),
        server.client.get(f"/{long}"),
        server.client.post("/v1/encode", headers={"Content-Type": long}, content=photo_file),
        server.client.post("/v1/encode", headers={"Content-Encoding": long}, content=photo_file),
        server.client.post("/v1/decode", headers={"Accept": long}, content=bitstream),
        server.client.post("/v1/decode", files={"x" * 2000: bitstream}),
    ):
        assert answer.status_code in (400, 404, 406, 415)
        assert len(answer.content) < 1000


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode"])
def test_no_body(server: Server, path: str) -> None:
    assert_problem(server.client.post(path), 400, "empty-body")
    assert_problem(server.client.post(path, content=iter([b""])), 400, "empty-body")
    assert_problem(server.client.post(path, files={"file": ("empty.png", b"")}), 400, "empty-body")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_problem(server.client.post(path, content=b"--x--\r\n", headers=form), 400, "empty-body")


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode"])
def test_forms_that_are_not_one_file(server: Server, path: str, photo_file: bytes) -> None:
    part = ("a.png", photo_file, "image/png")
    post = server.client.post
    assert_problem(post(path, files={"image": part}), 400, "bad-form")
    assert_problem(post(path, files=[("file", part), ("file", part)]), 400, "bad-form")
    assert_problem(post(path, files=[("file", part)] * 9), 400, "bad-form")
    assert_problem(post(path, files={"file": part}, data={"model": "x"}), 400, "bad-form")
    assert_problem(post(path, files={"file": (None, b"text")}), 400, "bad-form")
    for content in (b"not a form", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"):
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
            response = post(path, content=content, headers={"Content-Type": kind})
            assert response.json()["code"] in ("bad-form", "empty-body"), response.text


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode"])
def test_a_form_that_was_cut(server: Server, path: str, photo_file: bytes) -> None:
    """Found by trying: it was said to have no fields."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    whole = head + photo_file + b"\r\n--x--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for length in (len(head) - 5, len(head) + 1, len(whole) - 12, len(whole) - 7, len(whole) - 4):
        problem = assert_problem(server.client.post(path, content=whole[:length], headers=form), 400, "bad-form")
        assert "cut" in str(problem["detail"])


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "utf-7", "utf-16", "zlib", "none"])
def test_forms_in_strange_charsets(server: Server, charset: str, bitstream: bytes) -> None:
    for name in (b"file", b"\xff..\xfe"):
        for filename in (b"a.tcm", b"+2AA-.tcm", b"\xff"):
            head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n' % (name, filename)
            kind = f"multipart/form-data; boundary=x; charset={charset}"
            response = decode(server, head + bitstream + b"\r\n--x--\r\n", Content_Type=kind)
            assert response.is_success or response.json()["code"] == "bad-form", response.text


def test_media_types(server: Server, photo_file: bytes, bitstream: bytes) -> None:
    for content_type in ("text/plain", "application/json", "application/vnd.tcm", "nonsense"):
        assert_problem(encode(server, photo_file, Content_Type=content_type), 415, "unsupported-media-type")
    for content_type in ("text/plain", "image/png"):
        assert_problem(decode(server, bitstream, Content_Type=content_type), 415, "unsupported-media-type")
    assert_problem(encode(server, photo_file, Content_Encoding="gzip"), 415, "unsupported-media-type")


def test_images_that_cannot_be_coded(server: Server, photo: Image.Image, photo_file: bytes) -> None:
    assert_problem(encode(server, b"GIF89 no image at all"), 415, "unsupported-image")
    assert_problem(encode(server, b"%!PS-Adobe-3.0 EPSF-3.0\n"), 415, "unsupported-image")
    floats = Image.fromarray(np.zeros((8, 8), np.float32))
    assert_problem(encode(server, image_file(floats, "TIFF")), 415, "unsupported-image")
    assert_problem(encode(server, photo_file[:5000]), 422, "corrupt-image")
    jpeg = image_file(photo, "JPEG")
    assert_problem(encode(server, jpeg[: len(jpeg) // 2]), 422, "corrupt-image")


def test_bitstreams_that_cannot_be_read(server: Server, bitstream: bytes, photo_file: bytes) -> None:
    assert_problem(decode(server, photo_file), 415, "unsupported-bitstream")
    later = bytearray(bitstream)
    later[3] = 200
    assert_problem(decode(server, bytes(later)), 415, "unsupported-bitstream")
    assert_problem(decode(server, bitstream[:-9]), 422, "corrupt-bitstream")
    damaged = bytearray(bitstream)
    damaged[len(damaged) // 2] ^= 1
    assert_problem(decode(server, bytes(damaged)), 422, "corrupt-bitstream")


def test_line_ends_that_curl_took(server: Server, bitstream: bytes, photo_file: bytes) -> None:
    """Found by trying: who sends a photograph with `curl -d` looked for the damage in it."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path, file in (("encode", photo_file), ("decode", bitstream)):
        cut = file.translate(None, b"\r\n\0")
        for headers, told in ((form, True), ({"Content-Type": "application/octet-stream"}, False)):
            problem = server.client.post(f"/v1/{path}", content=cut, headers=headers).json()
            assert ("use --data-binary" in problem["detail"]) == told
        assert server.client.post(f"/v1/{path}", content=file, headers=form).status_code == 200


def test_weights_that_are_not_here(server: Server, bitstream: bytes) -> None:
    container = dataclasses.replace(read_container(bitstream), fingerprint="0123456789ab", model="tcm-l-mse-0.05")
    problem = assert_problem(decode(server, write_container(container)), 409, "incompatible-model")
    assert "0123456789ab" in str(problem["detail"])
    assert "tcm-l-mse-0.05" in str(problem["detail"])


def test_symbols_that_cannot_be_reproduced(server: Server, photo: Image.Image) -> None:
    """A sound file whose writer computed something else: tried again in float64, then named; never a wrong picture."""
    ours = Zoo().get("tcm-xs-mse-0.013").info.fingerprint
    written = read_container(Codec.load("tcm-xs-mse-0.0035", "cpu").encode(photo.crop((0, 0, 64, 64))))
    forged = dataclasses.replace(written, fingerprint=ours, model="tcm-elsewhere")
    before = server.metric("tcm_stage_duration_seconds_count", op="decode", stage="retry")
    problem = assert_problem(decode(server, write_container(forged)), 409, "incompatible-model")
    assert f"'tcm-elsewhere' with weights {ours} wrote it" in str(problem["detail"])
    assert f"'tcm-xs-mse-0.013' with weights {ours} read it" in str(problem["detail"])
    assert server.metric("tcm_stage_duration_seconds_count", op="decode", stage="retry") == before + 1


def test_nothing_acceptable(server: Server, bitstream: bytes) -> None:
    for accept in ("text/html", "image/gif, image/*;q=0"):
        response = decode(server, bitstream, Accept=accept)
        problem = assert_problem(response, 406, "not-acceptable")
        assert problem["available"] == ["image/png", "image/webp", "image/jpeg", "image/avif", "image/tiff"]
        assert response.headers["vary"] == "Accept"


def test_a_panorama_outgrows_a_format(server: Server, bitstream: bytes) -> None:
    wide = write_container(dataclasses.replace(read_container(bitstream), width=16_400))
    problem = assert_problem(decode(server, wide, Accept="image/webp"), 406, "not-acceptable")
    assert problem["available"] == ["image/png", "image/jpeg", "image/avif", "image/tiff"]


def test_sound_checksums_around_nonsense(server: Server, bitstream: bytes) -> None:
    """Whoever can compute a CRC can send any payload, size and section: named, never a 500, and quickly."""
    container = read_container(bitstream)
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, 400, np.uint8).tobytes()
    forged = [
        dataclasses.replace(container, payload=b""),
        dataclasses.replace(container, payload=noise),
        dataclasses.replace(container, payload=container.payload[:-40]),
        dataclasses.replace(container, payload=container.payload + noise),
        dataclasses.replace(container, width=container.width * 4),
        dataclasses.replace(container, width=7000, height=7000),
        dataclasses.replace(container, width=1, height=1),
        dataclasses.replace(container, alpha=noise),
        dataclasses.replace(container, icc=noise, exif=noise, xmp=noise),
        dataclasses.replace(container, model="x"),
    ]
    for kind in forged:
        response = decode(server, write_container(kind), Accept="image/tiff")
        assert response.status_code in (200, 409, 422), response.text
        if not response.is_success:
            assert_problem(response, response.status_code, response.json()["code"])


def test_bytes_that_are_no_http(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for request in (b"NONSENSE\r\n\r\n", b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request)
            answer = connection.makefile("rb").read().decode()
        head, _, body = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 400")
        assert "application/problem+json" in head
        assert '"malformed-request"' in body


@pytest.mark.parametrize("error", [DeviceLost("gone"), OutOfMemory("full"), NoProcess("none")])
def test_who_may_try_again_is_told_when(error: Exception) -> None:
    """Of a lost device, those in its batch were not, and those behind them were."""
    assert as_problem(error).headers["Retry-After"] == "1"


def test_every_problem_is_documented(server: Server) -> None:
    listed = server.client.get("/problems").json()
    assert {p["code"] for p in listed} == PROBLEMS.keys()
    for problem in listed:
        assert server.client.get(f"/problems/{problem['code']}").json() == problem
        assert problem["title"]
        assert problem["description"]
    assert_problem(server.client.get("/problems/none"), 404, "not-found")


def test_what_the_machine_has_no_more_of_is_no_mistake() -> None:
    """A limit of threads or descriptors is not a 500: the operator raises it."""
    before = threading.stack_size(1 << 62)
    try:
        with pytest.raises(RuntimeError) as no_thread:
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    for error in (no_thread.value, OSError(errno.EMFILE, "Too many open files"), OSError(errno.EAGAIN, "try again")):
        assert as_problem(error).code == "no-process"
    assert as_problem(OSError(errno.ENOMEM, "Cannot allocate memory")).code == "out-of-memory"
    for error in (OSError(errno.EIO, "disk"), RuntimeError("another")):
        assert as_problem(error).code == "internal-error"
