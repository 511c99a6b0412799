"""Connections that never become requests: on a real socket, with a server of our protocol and no codec."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.metrics import Metrics
from service.protocol import Protocol

METRICS = Metrics()


class Impatient(Protocol):
    max_head = 10_000
    head_seconds = 0.5


async def _length(request: Request) -> Response:
    return Response(str(len(await request.body())))


async def _slow(_: Request) -> Response:
    await asyncio.sleep(1)  # longer than a head may take
    return Response("slow answer")


async def _early(_: Request) -> Response:
    return Response("no need of your body", status_code=400)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    routes = [
        Route("/", _length, methods=["GET", "POST"]),
        Route("/early", _early, methods=["POST"]),
        Route("/slow", _slow),
    ]
    app = Starlette(routes=routes)
    app.state.context = SimpleNamespace(metrics=METRICS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=Impatient, log_config=None, lifespan="off"))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def talk(port: int, *parts: bytes, pause: float = 0) -> bytes:
    """All that is answered to these parts, until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while more := connection.recv(65536):
                answer += more
        except ConnectionResetError:
            pass
        return answer


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in head
    assert b"X-Content-Type-Options: nosniff" in head
    told: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % told["status"])
    return told


def test_no_http(port: int) -> None:
    assert problem(talk(port, b"hello\r\n\r\n"))["code"] == "malformed-request"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"GET / HTTP/1.1", "no Host header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x", "several Host headers"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked", "other than chunked"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2", "Content-Length"),
        (b"get / HTTP/1.1\r\nHost: x", "method"),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x", "url"),
    ],
)
def test_the_problem_says_why(port: int, head: bytes, reason: str) -> None:
    assert reason in problem(talk(port, head + b"\r\n\r\n"))["detail"]


@pytest.mark.parametrize("behind", [b"\0garbage\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 20_000])
@pytest.mark.parametrize("first", [b"GET /slow", b"POST /"])
def test_what_comes_before_nonsense_is_answered(port: int, first: bytes, behind: bytes) -> None:
    """Found by trying: a Content-Length that is too small lost a picture without a word."""
    head = first + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    for parts, answers in (([head + behind], 1), ([head, behind], 1), ([head + head + behind, b"more"], 2)):
        answer = talk(port, *parts)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1 200") == answers  # the nonsense may have come later, and have a 400 of its own
        assert b"connection: close" in answer.lower()
    # the second one's own body is what is wrong
    chunked = first + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"
    assert talk(port, head + chunked).count(b"HTTP/1.1 200") == 1


def test_an_early_answer_is_the_only_one(port: int) -> None:
    """A proxy would take a second one for that to the next request."""
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    answer = talk(port, head, b"no number\r\n", pause=0.3)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"no need of your body" in answer


def test_http_1_0_is_not_told_to_go_on(port: int) -> None:
    head = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert talk(port, head, b"abc", pause=0.2).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: a\r\nHost: a\r\n"])
def test_one_host(port: int, hosts: bytes) -> None:
    """RFC 9112, 3.2: what a proxy takes for one host's request must not be another's here."""
    told = problem(talk(port, b"GET / HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n"))
    assert (told["status"], told["code"]) == (400, "malformed-request")
    assert talk(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_what_stands_behind_a_value_is_not_part_of_it(port: int) -> None:
    """RFC 9112, 5.1. Found by trying: a good key with a blank behind it was none."""
    head = b"POST / HTTP/1.1\r\nHost: x \r\nContent-Length: 3 \t\r\nConnection: close\t\r\n\r\n"
    answer = talk(port, head + b"abc")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize("repeated", [b"x" * 4096, b"a: b\r\n" * 700])
def test_endless_headers_are_cut_off(port: int, repeated: bytes) -> None:
    start = b"GET / HTTP/1.1\r\nHost: x\r\nx: "
    assert problem(talk(port, start, *[repeated] * 4, pause=0.02))["code"] == "headers-too-large"
    assert problem(talk(port, b"GET /", *[b"y" * 4096] * 4, pause=0.02))["code"] == "headers-too-large"


@pytest.mark.parametrize("pieces", [1, 3, 12])
def test_the_size_of_a_head_is_the_same_however_it_is_cut(port: int, pieces: int) -> None:
    for size, code in ((9_000, b"200"), (10_500, b"431"), (12_000, b"431"), (60_000, b"431")):
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx: ".ljust(size - 4, b"x") + b"\r\n\r\n"
        step = -(-len(head) // pieces)
        answer = talk(port, *(head[at : at + step] for at in range(0, len(head), step)), pause=0.01)
        assert answer.startswith(b"HTTP/1.1 " + code), (size, answer[:100])


def test_lists_of_very_many_lines_hold_nobody_up(port: int) -> None:
    """A head is joined in one pass: work that grows with the square of its lines is everybody's time."""
    joined = Protocol.__new__(Protocol)
    joined.headers = [(b"accept", b"image/webp"), (b"host", b"x"), *[(b"accept", b"a/b")] * 200_000]
    joined._join_lists()  # takes minutes otherwise
    assert [name for name, _ in joined.headers] == [b"host", b"accept"]
    assert joined.headers[1][1].startswith(b"image/webp, a/b, a/b")


def test_what_is_refused_before_it_is_a_request_is_counted(port: int) -> None:
    def counted(code: str) -> float:
        labels = {"route": "unmatched", "method": "other", "code": code}
        return METRICS.registry.get_sample_value("tcm_http_requests_total", labels) or 0

    before = counted("400"), counted("431")
    talk(port, b"hello\r\n\r\n")
    talk(port, b"GET /" + b"y" * 20_000)
    assert (counted("400"), counted("431")) == (before[0] + 1, before[1] + 1)


def test_a_head_that_trickles_is_cut_off(port: int) -> None:
    assert problem(talk(port, b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 8, pause=0.1))["code"] == "request-timeout"


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    assert talk(port) == b""


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nuPGRADE: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_request_that_offers_an_upgrade_keeps_its_body(port: int, size: int, framing: str) -> None:
    """Found by reading: it was lost, or taken for the next request; Java's client offers h2c with its first request."""
    body = b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n"
    if framing == "length":
        told, sent = b"Content-Length: %d\r\n" % len(body), body
    else:
        told, sent = b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    request = b"POST / HTTP/1.1\r\nHost: x\r\n" + told + UPGRADE + b"\r\n" + sent
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    whole = request + last
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    answer = talk(port, *parts, pause=0.0005 if size < 10 else 0)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\n%d" % len(body) in answer


def test_empty_lines_cost_no_answer_and_no_time(port: int) -> None:
    """Found by reading: while an answer is being made, and by the hundred thousand."""
    slow = b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b"slow answer" in talk(port, slow, b"\r\n", pause=0.1)
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert talk(port, b"\n" * 5000, last).startswith(b"HTTP/1.1 200")


def test_a_connection_opened_beforehand_has_all_the_time_for_its_head(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        time.sleep(0.3)  # of 0.5
        connection.sendall(b"GET / HTTP/1.1\r\nHo")
        time.sleep(0.3)
        connection.sendall(b"st: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_an_upgrade_behind_a_body_is_refused(port: int) -> None:
    """In one read with it; nothing of it is taken for another request."""
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    second = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n" + UPGRADE + b"\r\n"
    answer = talk(port, first + second, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", pause=0.1)
    assert answer.count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize("stray", [b"\r\n", b"\r\n\r\n"])
def test_a_connection_that_says_nothing_more_is_closed(port: int, stray: bytes) -> None:
    """Found by reading: uvicorn's timer ended with any byte, and none began."""
    answer = talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", stray, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_connection_whose_body_came_after_its_answer_is_closed(port: int) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
    assert talk(port, head, b"12345", pause=0.2).startswith(b"HTTP/1.1 400")


def test_bodies_are_no_heads(port: int) -> None:
    """Long and slow ones are read; so are many requests of one connection."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = talk(port, head, *[b"z" * 10_000] * 6, head + b"z" * 60_000, last, pause=0.15)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"60000") == 2
