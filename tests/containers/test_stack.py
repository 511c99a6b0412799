"""The stack of docker-compose.yml in a real engine: two replicas behind nginx, one store, Prometheus.

In this order, since each test leaves the stack as it found it: what the image holds, what a client sees, a replica
that crashes under load, restarts one by one under load, what Prometheus knows.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket

import httpx
import pytest
from PIL import Image

from tests.conftest import DATA, psnr
from tests.containers.stack import NGINX_PORT, PROJECT, Stack, load, say, wait_for

REPLICAS = ("tcm-1", "tcm-2")
CLIENTS = 3


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """A few different pictures of 384x256 and around, as JPEG files."""
    source = Image.open(DATA / "photo.png").convert("RGB")
    files = []
    for k in range(24):
        out = io.BytesIO()
        source.rotate(15 * k, expand=False).crop((k, k, 320 + 2 * k, 200 + 2 * k)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def bare(request: bytes) -> bytes:
    """What nginx answers to these bytes."""
    with socket.create_connection(("127.0.0.1", NGINX_PORT), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_the_image_holds_no_cuda_and_is_labelled(stack: Stack, image: str) -> None:
    [inspected] = json.loads(stack.docker("image", "inspect", image).stdout)
    size = inspected["Size"] / 1e9
    say(f"{image}: {size:.2f} GB")
    assert size < 2.5
    assert inspected["Config"]["User"] == "10001:10001"
    assert inspected["Config"]["Labels"]["org.opencontainers.image.title"] == "tcm-service"
    assert inspected["Config"]["Healthcheck"]["Test"] == ["CMD", "tcm", "healthcheck"]
    found = stack.run("tcm-1", "sh", "-c", "ls /opt/tcm/lib/python3*/site-packages")
    assert "torch" in found.split()
    assert not [name for name in found.split() if name.startswith(("nvidia", "triton", "cuda", "pip"))]


def test_a_replica_may_do_nothing_but_serve(stack: Stack) -> None:
    script = """
        id -u
        grep -E '^(CapEff|NoNewPrivs)' /proc/1/status
        touch /opt/app/x /x /models/x 2>&1 | grep -c 'Read-only'
        touch /tmp/x /data/store/x && rm /tmp/x /data/store/x && echo writable
    """
    told = stack.run("tcm-1", "sh", "-c", script).split("\n")
    assert told[0] == "10001"
    assert [line.split()[1] for line in told[1:3]] == ["0" * 16, "1"]
    assert told[3:5] == ["3", "writable"]
    [network] = json.loads(stack.docker("network", "inspect", f"{PROJECT}_inside").stdout)
    assert network["Internal"], "the engine lets nothing out of it"
    joined = json.loads(stack.docker("inspect", f"{PROJECT}-tcm-1-1").stdout)[0]["NetworkSettings"]["Networks"]
    assert list(joined) == [f"{PROJECT}_inside"]


def test_memory_comes_from_jemalloc(stack: Stack) -> None:
    """A library that the loader does not find it leaves out with no more than a warning."""
    assert int(stack.run("tcm-1", "sh", "-c", "grep -c libjemalloc /proc/1/maps")) > 0


def test_what_one_replica_writes_the_other_reads(stack: Stack, photographs: list[bytes]) -> None:
    seen = set()
    for turn, photograph in enumerate(photographs[:6]):
        name = f"cross-{turn}"
        answer = stack.client.post("/v1/encode", content=photograph, headers={"X-Request-ID": name})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"] == name
        writer = stack.replica_of(name)
        seen.add(writer)
        [reader] = set(REPLICAS) - {writer}
        theirs = stack.ask(reader, "POST", "/v1/decode", answer.content, "image/png")
        original = opened(photograph)
        assert opened(theirs).size == original.size
        assert psnr(opened(theirs), original) > 24
        ours = stack.ask(writer, "POST", "/v1/decode", answer.content, "image/png")
        assert psnr(opened(theirs), opened(ours)) > 50, "the same picture, up to rounding"
    assert seen == set(REPLICAS), "both replicas get work"


def test_what_is_stored_is_everywhere(stack: Stack, photographs: list[bytes]) -> None:
    stored = stack.client.post("/v1/bitstreams", content=photographs[0])
    assert stored.status_code == 201, stored.text
    where = stored.headers["location"]
    files = [stack.ask(replica, "GET", where) for replica in REPLICAS]
    assert files[0] == files[1]
    pictures = [stack.ask(replica, "GET", f"{where}/image", accept="image/png") for replica in REPLICAS]
    for picture in pictures:
        assert psnr(opened(picture), opened(photographs[0])) > 24


def test_an_operator_makes_keys_and_checks_the_store(stack: Stack) -> None:
    made = stack.compose("run", "--rm", "-T", "tool", "keys", "new", "web-shop").stdout.decode()
    assert made.startswith("tcm_")
    listed = stack.run("tcm-2", "tcm", "keys", "ls", "--file", "/etc/tcm/keys.json")
    assert "web-shop" in listed
    stack.compose("run", "--rm", "-T", "tool", "store", "verify")  # and what is damaged would be an exit code


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_nginx_speaks_the_services_language(stack: Stack, photographs: list[bytes]) -> None:
    just_too_large, much_too_large = b"x" * ((32 << 20) + 1), b"x" * (34 << 20)
    problem(stack.client.post("/v1/encode", content=just_too_large), 413, "body-too-large")  # the service's
    problem(stack.client.post("/v1/encode", content=much_too_large), 413, "body-too-large")  # nginx's
    problem(stack.client.get("/metrics"), 404, "not-found")
    head = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    answer = bare(head + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"malformed-request"' in answer
    assert bare(b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")  # as simple probes ask
    long_name = ("é" * 1500 + ".jpg", photographs[0], "image/jpeg")
    assert stack.client.post("/v1/encode", files={"file": long_name}).status_code == 200
    assert stack.client.get("/readyz").status_code == 200
    sent = stack.client.get(f"/v1/bitstreams/{'0' * 64}?signature=s3cr3t", headers={"X-Request-ID": "quiet"})
    assert sent.status_code == 404
    stack.replica_of("quiet")  # it is in the log
    store, believed = stack.run("tcm-1", "printenv", "TCM_STORE", "FORWARDED_ALLOW_IPS").split()
    assert store == "file:///data/store"
    address = stack.state("nginx")["NetworkSettings"]["Networks"][f"{PROJECT}_inside"]["IPAddress"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network(believed), "quotas by address would be nginx' own"
    assert "s3cr3t" not in stack.logs("nginx")


def test_a_replica_crashes_under_load(stack: Stack, photographs: list[bytes]) -> None:
    restarts = stack.state("tcm-1")["RestartCount"]
    with load(stack, photographs, CLIENTS) as seen:
        seen.wait_for_answers(10)
        stack.crash("tcm-1")
        seen.wait_for_answers(20)
        wait_for(lambda: stack.state("tcm-1")["RestartCount"] > restarts, 30)
        stack.wait_healthy("tcm-1")
        seen.wait_for_answers(10)
    say(f"one replica killed: {dict(seen.answers)}, sent again: {seen.retried}")
    assert not seen.failed
    assert len(seen.retried) <= CLIENTS, "nothing but what was in flight there"
    lost = [one for one in seen.stored if stack.client.head(f"/v1/bitstreams/{one}").status_code != 200]
    assert not lost
    for one in sorted(seen.stored)[:3]:
        picture = stack.client.get(f"/v1/bitstreams/{one}/image")
        assert picture.status_code == 200
        assert opened(picture.content).width >= 320


def test_replicas_restart_one_by_one_under_load(stack: Stack, photographs: list[bytes]) -> None:
    with load(stack, photographs, CLIENTS) as seen:
        for replica in REPLICAS:
            seen.wait_for_answers(5)
            stack.compose("stop", replica)
            assert stack.state(replica)["State"]["ExitCode"] == 0
            seen.wait_for_answers(5)
            stack.compose("start", replica)
            stack.wait_healthy(replica)
    say(f"both replicas restarted: {dict(seen.answers)}")
    assert not seen.failed
    assert not seen.retried, "no client noticed"
    lost = [one for one in seen.stored if stack.client.head(f"/v1/bitstreams/{one}").status_code != 200]
    assert not lost


def test_prometheus_watches_both_replicas(stack: Stack) -> None:
    def asked(query: str) -> list[dict]:
        answer = stack.prometheus.get("/api/v1/query", params={"query": query})
        found: list[dict] = answer.raise_for_status().json()["data"]["result"]
        return found

    wait_for(lambda: len(asked('up{job="tcm"} == 1')) == len(REPLICAS), 60, every=1)
    assert wait_for(lambda: asked('sum(tcm_http_requests_total{code="201"}) > 0'), 30, every=1)
    groups = stack.prometheus.get("/api/v1/rules").raise_for_status().json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {"TcmDown", "TcmSaturated"} <= {rule["name"] for rule in rules}
    assert not [rule for rule in rules if rule["health"] == "err"]
    assert not asked('ALERTS{alertname="TcmDown",alertstate="firing"}')
