"""What hangs or dies is noticed, told and replaced; what is told to stop stops without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from bench.load import Answers, Client, closed_loop
from bench.replicas import NGINX, ROOT, Replica, free_port, nginx, proxied, replicas
from bench.replicas import wait_for as wait_for_replicas
from service.headers import DEFAULTS
from service.server import EXIT_LOST, EXIT_UNFIT
from tests.service.conftest import StartFaulty, assert_problem, image_file, wait_for

HANG_SECONDS = 8
"""More than anything takes here that does not hang, however busy the machine is."""
SMALL = image_file(Image.new("RGB", (100, 90)))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "said"), [("hang", "no progress"), ("die", "has died")])
def test_a_device_that_no_longer_works(start_faulty: StartFaulty, fault: str, said: str) -> None:
    """All who wait are told, /livez fails, the process ends."""
    server, faults = start_faulty(hang_seconds=HANG_SECONDS)
    assert server.client.post("/v1/encode", content=SMALL).status_code == 200
    faults.cause(fault)
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(httpx.post, f"{server.url}/v1/encode", content=SMALL, timeout=90) for _ in range(3)]
        dead = wait_for(lambda: (r := server.client.get("/livez")).status_code == 503 and r)
        assert said in str(assert_problem(dead, 503, "worker-lost")["detail"])
        assert_problem(server.client.get("/v2/health/live"), 503, "worker-lost")
        assert_problem(server.client.get("/readyz"), 503, "not-ready")
        assert_problem(server.client.post("/v1/encode", content=SMALL), 503, "worker-lost")
        for answer in answers:
            assert_problem(answer.result(), 503, "worker-lost")
    assert server.process.wait(60) == EXIT_LOST
    assert any(e["level"] == "critical" for e in server.log())


@pytest.mark.slow
def test_a_model_that_loads_for_ever(start_faulty: StartFaulty) -> None:
    server, _ = start_faulty(["load"], hang_seconds=HANG_SECONDS, preload="tcm-tiny-mse-0.01", wait=False)
    dead = wait_for(lambda: (r := server.client.get("/livez")).status_code == 503 and r)
    assert "tcm-tiny-mse-0.01" in str(assert_problem(dead, 503, "worker-lost")["detail"])
    assert server.process.wait(60) == EXIT_LOST


@pytest.mark.parametrize("fault", ["bug", "wrong"])
def test_a_replica_whose_model_failed_its_trial_does_no_work_and_ends(start_faulty: StartFaulty, fault: str) -> None:
    """Who asks no readiness probe, as nginx, must not get its pictures, nor prefer it for its quick refusals."""
    server, _ = start_faulty([fault], preload="tcm-tiny-mse-0.01", wait=False)
    unready = wait_for(lambda: (r := server.client.get("/readyz")).status_code == 503 and "failed" in r.text and r)
    assert "failed its trial" in str(assert_problem(unready, 503, "not-ready")["detail"])
    assert_problem(server.client.post("/v1/encode", content=SMALL), 503, "not-ready")
    assert server.client.get("/livez").status_code == 200
    assert server.metric("tcm_requests_rejected_total", reason="not-ready") == 1  # probes ask for nothing
    assert server.process.wait(30) == EXIT_UNFIT


@pytest.mark.slow
def test_an_event_loop_that_stands_still(start_faulty: StartFaulty) -> None:
    """Nothing can answer any more; the process ends all the same."""
    server, faults = start_faulty(hang_seconds=HANG_SECONDS)
    assert server.client.post("/v1/encode", content=SMALL).status_code == 200
    faults.cause("freeze")
    with pytest.raises(httpx.HTTPError):
        server.client.post("/v1/encode", content=SMALL)
    assert server.process.wait(60) == 1


@pytest.mark.slow
def test_sigterm_loses_nothing(start_faulty: StartFaulty) -> None:
    server, faults = start_faulty(["hold"], drain_seconds=8)
    with ThreadPoolExecutor(2) as clients:
        begun = clients.submit(httpx.post, f"{server.url}/v1/encode", content=SMALL, timeout=60)
        wait_for(lambda: server.metric("tcm_requests_inside") == 1)
        server.process.send_signal(signal.SIGTERM)
        unready = wait_for(lambda: (r := server.client.get("/readyz")).status_code == 503 and r)
        assert_problem(unready, 503, "not-ready")
        assert server.client.get("/livez").status_code == 200
        late = clients.submit(httpx.post, f"{server.url}/v1/encode", content=SMALL, timeout=60)  # it is still taken
        wait_for(lambda: server.metric("tcm_requests_inside") == 2)
        with pytest.raises(httpx.ConnectError):
            wait_for(lambda: not httpx.get(f"{server.url}/livez"))  # until nobody is let in any more
        faults.end("hold")
        for answer in (begun.result(), late.result()):
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
    assert server.process.wait(60) == 0
    assert [e["event"] for e in server.log() if e["event"] in ("draining", "stopped")] == ["draining", "stopped"]


def test_an_orderly_end_without_a_descriptor_left(start_faulty: StartFaulty) -> None:
    """Found by trying: it ended with code 1, and whoever was inside had a 500 of uvicorn's."""
    server, faults = start_faulty(["hold"], drain_seconds=1)
    address = urlsplit(server.url)
    with ThreadPoolExecutor(1) as clients, contextlib.ExitStack() as idle:
        begun = clients.submit(httpx.post, server.url + "/v1/encode", content=SMALL, timeout=60)
        wait_for(lambda: server.metric("tcm_queue_wait_seconds_count") == 1)
        taken = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (taken + 5, taken + 5))
        for _ in range(20):
            idle.enter_context(socket.create_connection((address.hostname, address.port)))
        wait_for(lambda: len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) == taken + 5)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any(e["event"] == "draining" for e in server.log()))
        faults.end("hold")
        assert begun.result().status_code == 200
        assert server.process.wait(60) == 0


def test_a_terminal_that_closes_is_an_orderly_end(start_faulty: StartFaulty) -> None:
    server, _ = start_faulty(drain_seconds=0)
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(30) == 0
    assert server.log()[-1]["event"] == "stopped"


def test_a_second_sigterm_is_quick(start_faulty: StartFaulty) -> None:
    server, _ = start_faulty(["hold"], drain_seconds=60)
    with ThreadPoolExecutor(1) as clients:
        begun = clients.submit(httpx.post, f"{server.url}/v1/encode", content=SMALL, timeout=60)
        wait_for(lambda: server.metric("tcm_requests_inside") == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.client.get("/readyz").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert isinstance(begun.exception(), httpx.HTTPError)


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_rolling_restart_behind_nginx_loses_nothing(tmp_path: Path, tiny_file: Path) -> None:
    """Two replicas behind the nginx of docker compose, replaced one by one under constant load."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / tiny_file.name).write_bytes(tiny_file.read_bytes())
    settings = f"--device cpu --model-dir {tmp_path}/models --default-model tcm-tiny-mse-0.01 --preload none"
    answers = Answers()

    def replace(two: list[Replica]) -> list[int]:
        codes = []
        for replica in two:
            replica.stop()
            codes.append(replica.process.wait(120))
            replica.start()
            wait_for_replicas([replica])
        return codes

    async def under_load(two: list[Replica], url: str) -> list[int]:
        client = Client(url, SMALL)
        task = asyncio.create_task(asyncio.to_thread(replace, two))
        while not task.done():
            await closed_loop(client, 4, 1, answers, lambda: None)
        client.close()
        return await task

    with (
        replicas(2, [*settings.split(), "--drain-seconds", "1"]) as two,
        nginx([replica.port for replica in two], tmp_path) as url,
    ):
        assert asyncio.run(under_load(two, url)) == [0, 0]
    assert answers.kinds() == {"200": len(answers)}
    assert len({entry["replica"] for entry in proxied(tmp_path)}) >= 2  # both have worked


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_what_nginx_answers_itself_is_a_problem_with_the_services_headers(tmp_path: Path) -> None:
    def raw(url: str, head: bytes) -> tuple[int, httpx.Headers, dict[str, object]]:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 80), 20) as connection:
            connection.sendall(head + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
            said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        first, _, rest = said.partition(b"\r\n")
        fields, _, body = rest.partition(b"\r\n\r\n")
        headers = httpx.Headers([tuple(field.split(b": ", 1)) for field in fields.split(b"\r\n")])
        return int(first.split()[1]), headers, json.loads(body)

    with nginx([free_port()], tmp_path) as url:  # where no replica listens
        for head, status, code in (
            (b"POST /v1/encode HTTP/1.1", 502, "bad-gateway"),
            (b"POST /v1 HTTP/1.1", 502, "bad-gateway"),
            (b"GET /metrics HTTP/1.1", 404, "not-found"),
            (b"TRACE / HTTP/1.1", 405, "method-not-allowed"),
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1", 431, "headers-too-large"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, 431, "headers-too-large"),
            (b"GET / HTTP/9.0", 505, "http-version"),
            (b"no HTTP at all", 400, "malformed-request"),
        ):
            found, headers, problem = raw(url, head)
            assert (found, problem["status"], problem["code"]) == (status, status, code), head[:40]
            assert headers["content-type"] == "application/problem+json"
            assert headers["x-request-id"] == problem["request_id"]
            assert {name: headers.get(name) for name in DEFAULTS} == DEFAULTS
        httpx.post(f"{url}/v1/encode?key=secret", content=SMALL)
        httpx.post(f"{url}/v1/decode", content=bytes(40 << 20))

        def seen(*asked: object) -> bool:  # as it was asked for, not as nginx looks for its answer
            return asked in [(entry["method"], entry["path"], entry["status"]) for entry in proxied(tmp_path)]

        for asked in (("POST", "/v1/encode", 502), ("GET", "/metrics", 404), ("TRACE", "/", 405)):
            assert seen(*asked)
        wait_for(lambda: seen("POST", "/v1/decode", 413))
    assert "secret" not in (tmp_path / "access.log").read_text()
    assert {entry["client"] for entry in proxied(tmp_path)} == {"127.0.0.1"}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_replica_that_stands_still_holds_up_nothing_that_is_no_work(tmp_path: Path, tiny_file: Path) -> None:
    """Stopped, or on a machine that swaps: it kept whoever asked for a page as long as work may take."""
    settings = f"--device cpu --model-dir {tiny_file.parent} --default-model tcm-tiny-mse-0.01 --preload none"
    with replicas(2, settings.split()) as two, nginx([replica.port for replica in two], tmp_path) as url:
        two[0].process.send_signal(signal.SIGSTOP)
        try:
            for path in ("/v1/models", "/"):  # they are asked in turn
                assert httpx.get(url + path, timeout=20).status_code == 200
        finally:
            two[0].process.send_signal(signal.SIGCONT)
    assert any("," in str(entry["replica"]) for entry in proxied(tmp_path))  # one asked the other


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_one_address_cannot_take_all_of_nginx(tmp_path: Path) -> None:
    """Bodies that are sent slowly lie in its memory: 64 at a time of one address, and nobody else is kept out."""
    with nginx([free_port()], tmp_path) as url:
        parts = urlsplit(url)
        address = parts.hostname or "", parts.port or 80
        head = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)
        with contextlib.ExitStack() as slow:
            for _ in range(64):
                slow.enter_context(socket.create_connection(address, 20)).sendall(head)

            def refused() -> httpx.Response | None:
                answer = httpx.get(f"{url}/v1/models")
                return answer if answer.status_code == 503 else None

            answer = wait_for(refused)
            assert answer.json()["code"] == "saturated"
            assert answer.headers["retry-after"] == "1"
            assert {name: answer.headers.get(name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_an_ipv6_host_has_one_address(tmp_path: Path) -> None:
    """It owns its /64: with each of its addresses it took 64 places more. IPv4 addresses in IPv6 are hosts, though."""
    with nginx([free_port()], tmp_path, proxied=True) as url, contextlib.ExitStack() as slow:
        parts = urlsplit(url)

        def hold(addresses: str) -> None:
            for i in range(64):
                connection = slow.enter_context(socket.create_connection((parts.hostname or "", parts.port or 80), 20))
                head = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {addresses}{i}\r\n"
                connection.sendall(f"{head}Content-Length: 100000\r\n\r\n.".encode())

        def asked(address: str) -> int:
            return httpx.get(f"{url}/v1/models", headers={"X-Forwarded-For": address}).status_code

        hold("2001:db8:1:1::")
        wait_for(lambda: asked("2001:db8:1:1::ffff") == 503)
        assert asked("2001:db8:1:2::1") == asked("192.0.2.1") == 502  # no replica listens
        hold("::ffff:192.0.2.")
        assert asked("::ffff:192.0.2.100") == 502
        assert "REJECTED" in {entry["limit"] for entry in proxied(tmp_path)}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_load_balancer_without_room_for_bodies_says_so(tmp_path: Path) -> None:
    """A full disk was a 500 that no log explains."""
    with nginx([free_port()], tmp_path) as url:
        shutil.rmtree(tmp_path / "body")
        answer = httpx.post(f"{url}/v1/encode", content=bytes(1 << 20))
        assert (answer.status_code, answer.json()["code"]) == (503, "saturated")
        assert "no room" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_cannot_be_written_costs_no_request(tiny_file: Path) -> None:
    port = free_port()
    settings = f"--device cpu --model-dir {tiny_file.parent} --default-model tcm-tiny-mse-0.01 --preload none"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "service", "--port", str(port), *settings.split()]
        process = subprocess.Popen(command, stdout=full, stderr=full, cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def ready() -> bool:
                try:
                    return client.get("/readyz").is_success
                except httpx.TransportError:
                    return False

            wait_for(ready, 120)
            for _ in range(3):
                assert client.post("/v1/encode", content=SMALL).status_code == 200
            assert_problem(client.post("/v1/encode", content=b"no image"), 415, "unsupported-image")
            assert client.get("/livez").status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
