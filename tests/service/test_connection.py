"""Clients that read or send slowly, or send what is neither head nor body: on real sockets, with no codec."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.answers import answer
from service.errors import Saturated
from service.file_answer import FileAnswer
from service.identity import Record
from service.metrics import Metrics
from service.protocol import Protocol
from tests.service.conftest import wait_for

LARGE = 16 << 20


class Impatient(Protocol):
    read_seconds = 0.4
    read_rate = 64 << 10
    linger_seconds = 0.4


class LessSo(Impatient):
    read_seconds = 2.0


async def _large(_: Request) -> Response:
    return Response(bytes(LARGE))


async def _file(request: Request) -> Response:
    return FileAnswer(bytes(int(request.query_params.get("times", 1)) * LARGE))


async def _early(_: Request) -> Response:
    return Response("no need of your body", status_code=400)


async def _answer(request: Request, error: Exception) -> Response:
    request.scope["state"] = {"record": Record("id")}
    return answer(request.scope, error)


async def _length(request: Request) -> Response:
    return Response(str(len(await request.body())))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Impatient) as port:
        yield port


@contextmanager
def serving(protocol: type[Protocol]) -> Iterator[int]:
    routes = [
        Route("/large", _large),
        Route("/file", _file),
        Route("/early", _early, methods=["POST"]),
        Route("/", _length, methods=["POST"]),
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=routes, exception_handlers={Saturated: _answer})
        settings = SimpleNamespace(max_unread_bytes=2 * LARGE)
        app.state.context = SimpleNamespace(settings=settings, metrics=Metrics())
        config = uvicorn.Config(app, http=protocol, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def connect(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    return connection


def read_all(connection: socket.socket) -> bytes:
    answer = bytearray()
    try:
        while more := connection.recv(1 << 20):
            answer += more
    except ConnectionResetError:
        pass
    return bytes(answer)


def test_who_does_not_read_is_cut_off(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3)
        assert len(read_all(connection)) < LARGE


def test_who_reads_a_byte_now_and_then_is_cut_off(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(30):
            connection.recv(1)
            time.sleep(0.1)
        assert len(read_all(connection)) < LARGE


def test_who_reads_slowly_but_fast_enough_is_not_cut_off() -> None:
    """Found by trying: the kernel takes nothing until a third of its megabytes is free; nothing seemed to be read."""
    with serving(LessSo) as port, connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        read, start = 0, time.monotonic()
        while (passed := time.monotonic() - start) < 7:  # three times the rate that is asked for
            read += len(connection.recv(max(0, int(passed * (192 << 10)) - read)))
            time.sleep(0.02)
        assert read + len(read_all(connection)) > LARGE


def test_answers_that_nobody_reads_are_bounded(port: int) -> None:
    """Found by reading: each of any number of readers, just fast enough, held a copy of the largest file."""
    request = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(port) as first, connect(port) as second:
        for slow in (first, second):
            slow.sendall(request)
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        with connect(port) as third:
            third.sendall(request)
            assert third.recv(1000).startswith(b"HTTP/1.1 503")
    eventually_served(port)


def test_whoever_is_alone_gets_a_file_of_any_size(port: int) -> None:
    eventually_served(port)
    with connect(port) as alone:
        alone.sendall(b"GET /file?times=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert len(read_all(alone).partition(b"\r\n\r\n")[2]) == 3 * LARGE  # 2 are the limit


def test_answers_behind_one_that_nobody_reads_are_bounded_too(port: int) -> None:
    """They wait in their handlers, where no connection counts them."""
    request = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(port) as slow:
        slow.sendall(request)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(request)
        time.sleep(0.3)
        with connect(port) as other:
            other.sendall(request)
            assert other.recv(1000).startswith(b"HTTP/1.1 503")
    eventually_served(port)
    wait_for(lambda: FileAnswer.waiting == 0)


def eventually_served(port: int) -> None:
    request = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(100):
        with connect(port) as alone:
            alone.sendall(request)
            if alone.recv(1000).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.1)
    pytest.fail("what readers that are gone have left unread still counts")


def test_who_reads_steadily_gets_all(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert len(read_all(connection).partition(b"\r\n\r\n")[2]) == LARGE


def test_a_body_that_nobody_waits_for_any_more(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")
        gone = False
        for _ in range(100):  # a byte now and then would keep it open
            try:
                connection.sendall(b"x")
            except (BrokenPipeError, ConnectionResetError):
                gone = True
                break
            time.sleep(0.1)
        assert gone


def test_a_body_that_comes_after_its_answer_is_no_harm(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")
        connection.sendall(b"12345POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
        assert read_all(connection).endswith(b"3")


@pytest.mark.parametrize("piece", [b"1;" + b"x" * 4000, b"0\r\n" + b"X-Trailer: y\r\n" * 300])
def test_framing_without_end(port: int, piece: bytes) -> None:
    """Chunk extensions and trailers are no body, and nothing else counts them."""
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + piece)
        rest = piece[2:] if piece.startswith(b"1") else piece[3:]
        sent = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent < 64 << 20:
                connection.sendall(rest)
                sent += len(rest)
        assert sent < 32 << 20


def test_small_chunks_are_a_body(port: int) -> None:
    chunks = b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n"
    with connect(port) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunks)
        assert read_all(connection).endswith(b"300000")


@pytest.mark.parametrize("chunk", [b"fffffffffffffffff\r\n", b"-1\r\nx\r\n", b"1\r\nxy\r\n", b"zz\r\n", b"\0"])
def test_chunks_that_lie(port: int, chunk: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        time.sleep(0.2)  # its handler waits for the body
        connection.sendall(chunk)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("coding", [b"xchunked", b"gzip, chunked", b"chunked, identity", b"identity"])
def test_codings_that_a_proxy_may_read_differently(port: int, coding: bytes) -> None:
    with connect(port) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + coding
        connection.sendall(head + b"\r\n\r\n0\r\n\r\nPOST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
