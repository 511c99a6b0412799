"""The two gates for size, and the deadline."""

from __future__ import annotations

import dataclasses
import socket
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from model.container import read_container, write_container
from tests.service.conftest import Server, assert_problem, image_file

LIMIT = 300_000


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode"])
def test_a_declared_length_over_the_limit(tight: Server, path: str) -> None:
    problem = assert_problem(tight.client.post(path, content=b"x" * (LIMIT + 1)), 413, "body-too-large")
    assert str(LIMIT) in str(problem["detail"])
    assert tight.metric("tcm_http_requests_total", route=path, code="413") >= 1


def test_it_is_refused_before_it_is_sent(tight: Server) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        answer = b""
        while more := connection.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer  # or the next request might be taken for its body


def test_it_is_told_to_send_it(tight: Server, photo_file: bytes) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        length = b"Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
        connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\n" + length)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"12345")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 415")
    assert b"connection: close" not in answer


def test_a_stream_over_the_limit(tight: Server) -> None:
    sent = 0

    def stream() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(20):
            sent += 50_000
            yield b"\0" * 50_000

    for headers in ({"Content-Type": "image/png"}, {"Content-Type": "multipart/form-data; boundary=x"}):
        assert_problem(
            tight.client.post("/v1/encode", content=_framed(stream(), headers), headers=headers), 413, "body-too-large"
        )
    assert tight.metric("tcm_requests_rejected_total", reason="body-too-large") >= 2


def _framed(stream: Iterator[bytes], headers: dict[str, str]) -> Iterator[bytes]:
    if "multipart" in headers["Content-Type"]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    yield from stream


def test_a_body_at_the_limit_is_read(tight: Server) -> None:
    assert_problem(tight.client.post("/v1/encode", content=b"x" * LIMIT), 415, "unsupported-image")


def test_too_many_pixels_of_an_image(tight: Server) -> None:
    at, over = image_file(Image.new("RGB", (500, 400))), image_file(Image.new("RGB", (500, 401)))
    assert tight.client.post("/v1/encode", params={"model": "tcm-tiny-mse-0.01"}, content=at).status_code == 200
    problem = assert_problem(tight.client.post("/v1/encode", content=over), 422, "too-many-pixels")
    assert "200000" in str(problem["detail"])
    vast = bytearray(at)
    vast[16:24] = struct.pack(">II", 60_000, 60_000)  # the size in a PNG's first chunk, and its checksum
    vast[29:33] = struct.pack(">I", zlib.crc32(vast[12:29]))
    assert_problem(tight.client.post("/v1/encode", content=bytes(vast)), 422, "too-many-pixels")


def test_too_many_pixels_of_a_bitstream(tight: Server, bitstream: bytes) -> None:
    container = dataclasses.replace(read_container(bitstream), width=1 << 20, height=1 << 20)
    assert_problem(tight.client.post("/v1/decode", content=write_container(container)), 422, "too-many-pixels")


def test_the_deadline(server: Server, photo_file: bytes) -> None:
    before = server.metric("tcm_requests_rejected_total", reason="deadline-exceeded")
    response = server.client.post("/v1/encode", params={"timeout_ms": 1}, content=photo_file)
    problem = assert_problem(response, 504, "deadline-exceeded")
    assert "1 ms" in str(problem["detail"])
    assert server.metric("tcm_requests_rejected_total", reason="deadline-exceeded") == before + 1
    patient = server.client.post("/v1/encode", params={"timeout_ms": 10**12}, content=photo_file)
    assert patient.status_code == 200  # capped, not refused
