"""While the device works on one thing, everything else goes on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import bombs
from tests.service.conftest import Server, assert_problem, busy, wait_for


def test_the_event_loop_answers(server: Server, large: bytes, photo_file: bytes) -> None:
    with busy(server, large) as work:
        slowest, probes = 0.0, 0
        while not work.done() and probes < 40:
            start = time.perf_counter()
            assert server.client.get("/livez").status_code == 200
            slowest = max(slowest, time.perf_counter() - start)
            probes += 1
            time.sleep(0.02)
        assert probes > 10
        assert slowest < 1
        # what needs no device is read and answered while the device is busy
        assert_problem(server.client.post("/v1/encode", content=photo_file[:9000]), 422, "corrupt-image")
        assert not work.done()


def test_two_at_once_are_both_served(server: Server, large: bytes, photo_file: bytes) -> None:
    with busy(server, large) as work, ThreadPoolExecutor(1) as client:
        second = client.submit(server.client.post, "/v1/encode", content=photo_file)
        wait_for(lambda: server.metric("tcm_queue_depth") == 1)
        assert server.metric("tcm_queue_pixels") == 384 * 256
        assert not work.done()  # the second image was read while the device worked on the first
        assert second.result().status_code == 200
    assert server.metric("tcm_queue_depth") == 0


def test_a_deadline_ends_the_wait(server: Server, large: bytes, photo_file: bytes) -> None:
    with busy(server, large) as work:
        done = server.metric("tcm_stage_duration_seconds_count", op="encode", stage="g_a")
        response = server.client.post("/v1/encode", params={"timeout_ms": 300}, content=photo_file)
        assert_problem(response, 504, "deadline-exceeded")
        assert not work.done()
        assert server.metric("tcm_queue_depth") == 0
    assert server.metric("tcm_stage_duration_seconds_count", op="encode", stage="g_a") == done + 1


def test_images_that_nobody_waits_for_hold_nobody_up(server: Server, photo_file: bytes) -> None:
    """Such a file takes many seconds; its deadline ends its process, and leaves the threads to others."""
    bomb = bombs.jpeg_of_scans(1500, 60_000)

    def ask(_: int) -> httpx.Response:
        return server.client.post("/v1/encode", params={"timeout_ms": 200}, content=bomb)

    with ThreadPoolExecutor(8) as clients:
        for response in clients.map(ask, range(8)):  # more than there are threads
            assert_problem(response, 504, "deadline-exceeded")
    start = time.perf_counter()
    encoded = server.client.post("/v1/encode", content=photo_file)
    assert server.client.post("/v1/decode", content=encoded.content).status_code == 200
    assert time.perf_counter() - start < 15


def test_bitstreams_are_read_while_images_are(server: Server, photo_file: bytes) -> None:
    bitstream = server.client.post("/v1/encode", content=photo_file).content
    bomb = bombs.jpeg_of_scans(1500, 60_000)
    with ThreadPoolExecutor(8) as clients:
        waiting = [
            clients.submit(server.client.post, "/v1/encode", params={"timeout_ms": 6000}, content=bomb)
            for _ in range(8)
        ]
        time.sleep(0.5)
        assert server.client.post("/v1/decode", content=bitstream).status_code == 200
        assert not any(work.done() for work in waiting)


def test_no_descriptors_is_a_named_error(server: Server, photo_file: bytes) -> None:
    clients = [httpx.Client(base_url=server.url, timeout=60) for _ in range(4)]
    for client in clients:
        client.get("/livez")  # they are connected
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    bomb = bombs.jpeg_of_scans(1500, 60_000)
    for child in Path(f"/proc/{pid}/task/{pid}").parent.glob("*/children"):
        for reader in child.read_text().split():
            os.kill(int(reader), signal.SIGKILL)  # or nobody needed a new one
    with ThreadPoolExecutor(4) as threads:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, limits[1]))  # all taken, whatever those readers leave
        try:
            work = [
                threads.submit(client.post, "/v1/encode", params={"timeout_ms": 3000}, content=bomb)
                for client in clients
            ]
            codes = sorted(w.result().status_code for w in work)
            refused = next(w.result() for w in work if w.result().status_code == 503)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert set(codes) <= {503, 504}, codes
    assert_problem(refused, 503, "no-process")
    assert refused.headers["retry-after"] == "1"
    for client in clients:
        assert client.post("/v1/encode", content=photo_file).status_code == 200
        client.close()


@pytest.mark.parametrize(
    "behind", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["alone", "with another behind"]
)
def test_a_client_that_leaves_is_dropped(server: Server, large: bytes, photo_file: bytes, behind: bytes) -> None:
    gone = server.metric("tcm_requests_rejected_total", reason="client-gone")
    host, port = server.url.removeprefix("http://").split(":")
    name = f"left-{len(behind)}"
    head = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\nContent-Length: {len(photo_file)}\r\n\r\n"
    with busy(server, large) as work:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + photo_file + behind)
            wait_for(lambda: server.metric("tcm_queue_depth") == 1)
        wait_for(lambda: server.metric("tcm_requests_rejected_total", reason="client-gone") == gone + 1)
        assert server.metric("tcm_queue_depth") == 0
        assert not work.done()
    [line] = server.requests(name)
    assert (line["status"], line["problem"]) == (499, "client-gone")


def test_a_client_that_leaves_while_sending(server: Server) -> None:
    gone = server.metric("tcm_requests_rejected_total", reason="client-gone")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    wait_for(lambda: server.metric("tcm_requests_rejected_total", reason="client-gone") == gone + 1)
