"""Who is let in and who is refused, and that nothing is done for those who no longer wait. Against real servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from service.admission import Admission, Rate
from service.arrival import PATIENCE
from service.errors import Draining, QuotaExceeded, Saturated
from service.identity import Record
from service.keys import Scope as KeyScope
from service.keys import new_key
from service.metrics import Metrics
from service.quota import Quota
from tests.service.conftest import Faults, Server, StartFaulty, assert_problem, image_file, wait_for

MAX_PIXELS = 200_000
SMALL = image_file(Image.new("RGB", (100, 90)))


@pytest.fixture(scope="module")
def few(start_faulty: StartFaulty) -> tuple[Server, Faults]:
    """Places for three requests and few pixels; one batch at a time."""
    return start_faulty(max_queue_items=3, max_queue_pixels=MAX_PIXELS, max_batch_items=2)


@pytest.fixture
def server(few: tuple[Server, Faults]) -> Iterator[Server]:
    yield few[0]
    wait_for(lambda: few[0].metric("tcm_requests_inside") == 0)  # whatever happened, every place is free again


@pytest.fixture
def faults(few: tuple[Server, Faults]) -> Faults:
    return few[1]


def encode(server: Server, body: bytes = SMALL, **parameters: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/encode", content=body, params=parameters, timeout=60)  # type: ignore[arg-type]


@contextmanager
def held(server: Server, faults: Faults) -> Iterator[tuple[ThreadPoolExecutor, Future[httpx.Response]]]:
    """The device works on one small picture, until the end of the block."""
    before = server.metric("tcm_queue_wait_seconds_count")
    with ThreadPoolExecutor(8) as clients, faults.during("hold"):
        first = clients.submit(encode, server)
        wait_for(lambda: server.metric("tcm_queue_wait_seconds_count") > before)
        yield clients, first


@contextmanager
def head_only(server: Server, path: str = "/v1/encode", sent: bytes = b"") -> Iterator[socket.socket]:
    """A request whose body does not come."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode() + sent)
        yield connection


def test_no_place_is_said_before_the_body_is_read(server: Server, faults: Faults) -> None:
    refused = server.metric("tcm_requests_rejected_total", reason="saturated")
    with held(server, faults) as (clients, first):
        others = [clients.submit(encode, server) for _ in range(2)]
        wait_for(lambda: server.metric("tcm_requests_inside") == 3)
        for path in ("/v1/encode", "/v1/decode", "/v1/bitstreams"):
            with head_only(server, path) as connection:
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(65536).lower()
            assert answer.startswith(b"http/1.1 503")
            assert b'"saturated"' in answer
            assert b"retry-after: " in answer
        problem = encode(server)
        assert_problem(problem, 503, "saturated")
        assert int(problem.headers["retry-after"]) >= 1
        assert server.client.get("/livez").status_code == 200
        assert server.client.get("/v1/models").status_code == 200  # what costs the device nothing is answered
        assert server.metric("tcm_http_requests_total", route="/v1/encode", code="503") >= 2
    assert [answer.result().status_code for answer in (first, *others)] == [200] * 3
    assert server.metric("tcm_requests_rejected_total", reason="saturated") == refused + 4


def test_pixels_are_bounded_too(server: Server, faults: Faults) -> None:
    large = image_file(Image.new("RGB", (500, 500)))
    assert MAX_PIXELS < 500 * 500
    assert encode(server, large).status_code == 200  # alone, it has room
    with held(server, faults) as (clients, _):
        problem = assert_problem(encode(server, large), 503, "saturated")
        assert "1 requests" not in str(problem["detail"])
        fits = clients.submit(encode, server)
        wait_for(lambda: server.metric("tcm_requests_inside") == 2)
    assert fits.result().status_code == 200


def test_who_sends_slowly_has_a_place_until_it_leaves(server: Server) -> None:
    with head_only(server, sent=b"half") as _, head_only(server) as _:
        wait_for(lambda: server.metric("tcm_requests_inside") == 2)
    wait_for(lambda: server.metric("tcm_requests_inside") == 0)


def test_who_sends_too_slowly_loses_its_place_to_others(server: Server) -> None:
    with head_only(server) as first, head_only(server) as second, head_only(server) as third:
        wait_for(lambda: server.metric("tcm_requests_inside") == 3)
        assert_problem(encode(server), 503, "saturated")  # they may just have begun
        time.sleep(PATIENCE)
        third.sendall(bytes(500_000))
        wait_for(lambda: server.metric("tcm_requests_inside") == 3)
        assert encode(server).status_code == 200
        answer = first.recv(65536).lower()
        assert answer.startswith(b"http/1.1 408")
        assert b'"request-timeout"' in answer
        assert b"connection: close" in answer
        assert server.metric("tcm_requests_inside") == 2  # one was enough
        for connection in (second, third):
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_deadline_ends_work_on_the_device(server: Server, faults: Faults) -> None:
    abandoned = server.metric("tcm_batches_abandoned_total")
    with faults.during("hold"):
        assert_problem(encode(server, timeout_ms=300), 504, "deadline-exceeded")
        wait_for(lambda: server.metric("tcm_batches_abandoned_total") == abandoned + 1)
        assert server.metric("tcm_requests_inside") == 0
    assert encode(server).status_code == 200


def test_a_client_that_leaves_ends_work_on_the_device(server: Server, faults: Faults) -> None:
    abandoned = server.metric("tcm_batches_abandoned_total")
    with faults.during("hold"):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/encode", content=SMALL, timeout=0.5)
        wait_for(lambda: server.metric("tcm_batches_abandoned_total") == abandoned + 1)


def test_out_of_memory_costs_nobody_an_answer(server: Server, faults: Faults) -> None:
    with faults.during("memory"):
        with held(server, faults) as (clients, first):
            others = [clients.submit(encode, server) for _ in range(2)]
            wait_for(lambda: server.metric("tcm_queue_depth") == 2)
        assert [answer.result().status_code for answer in (first, *others)] == [200] * 3
    assert server.metric("tcm_batch_pixels_limit") == 128 * 128


def test_retry_after_is_what_the_backlog_takes() -> None:
    admission = Admission(Metrics(), max_items=3, max_pixels=10**6)
    places = [admission.enter() for _ in range(3)]
    with pytest.raises(Saturated) as unmeasured:
        admission.enter()
    assert unmeasured.value.headers["Retry-After"] == "1"
    admission.rate.add(items=2, pixels=20_000, seconds=4)  # 5000 pixels a second, 10,000 an item
    places[0].claim(25_000)
    with pytest.raises(Saturated) as measured:
        admission.enter()
    assert measured.value.headers["Retry-After"] == "9"  # 25,000 known pixels and two items of 10,000
    places[0].leave()
    places[0].leave()
    admission.enter().claim(10**6 - 1)
    with pytest.raises(Saturated):
        places[1].claim(2)
    admission.closed = True
    with pytest.raises(Draining):
        admission.enter()


def test_no_place_where_the_pixels_are_taken() -> None:
    """Said before the body is read, not when its header is known."""
    admission = Admission(Metrics(), max_items=9, max_pixels=100)
    place = admission.enter()
    place.claim(100)
    with pytest.raises(Saturated):
        admission.enter()
    place.leave()
    admission.enter()


def test_a_place_that_was_left_is_none() -> None:
    """Whatever context a request begins in: with that of another, before it on the same connection, once."""
    admission = Admission(Metrics(), max_items=1, max_pixels=10**6)
    with admission.exempt():
        with admission.place():
            admission.enter().leave()
        with admission.place() as place:
            place.left = True
        with admission.place(), pytest.raises(Saturated):
            admission.enter()


@dataclass
class Trickle:
    """A body that is long behind."""

    behind: float = 10.0
    cut: bool = False

    def end(self) -> None:
        self.cut = True


def test_who_is_shown_out_makes_room_for_one() -> None:
    admission = Admission(Metrics(), max_items=2, max_pixels=100)
    slow, slower = Trickle(), Trickle(20.0)
    for arrival in (slow, slower):
        admission.enter(arrival)  # type: ignore[arg-type]
    place = admission.enter()
    assert (slow.cut, slower.cut, len(admission)) == (False, True, 2)
    place.claim(100)
    with pytest.raises(Saturated):  # there would be no room for its pixels: nobody is shown out for nothing
        admission.enter()
    assert not slow.cut
    place.leave()
    assert len(admission) == 1


def test_an_estimate_that_turns_work_away_loses_weight() -> None:
    rate = Rate()
    rate.add(1, 1000, 10)
    before = rate.seconds(1000)
    for _ in range(50):
        rate.doubt()
    assert rate.seconds(1000) < before / 10


def test_formats_that_take_long_keep_no_other_waiting(start_faulty: StartFaulty) -> None:
    """Found by reading: a few large AVIFs, whoever had asked for them gone, and nobody got any file."""
    server, faults = start_faulty(workers=2)
    bitstream = encode(server).content
    with faults.during("avif"):
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                decode(server, bitstream, "image/avif", timeout=0.5)
        assert decode(server, bitstream, "image/png").status_code == 200
        assert encode(server).status_code == 200
    assert decode(server, bitstream, "image/avif").status_code == 200


def decode(server: Server, bitstream: bytes, accept: str, timeout: float = 60) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/decode", content=bitstream, headers={"Accept": accept}, timeout=timeout)


def test_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("service.quota.time", SimpleNamespace(monotonic=lambda: now[0]))

    def scope(address: str, path: str = "/v1/encode") -> dict[str, object]:
        return {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": (address, 1),
            "state": {"record": Record("x")},
        }

    quota = Quota(per_minute=60, burst=3)
    for host in ("2001:db8::1", "2001:db8::2", "2001:db8::ffff"):  # one network, one caller
        quota.spend(scope(host))
    with pytest.raises(QuotaExceeded) as exceeded:
        quota.spend(scope("2001:db8::3"))
    assert exceeded.value.headers["Retry-After"] == "1"
    quota.spend(scope("2001:db8:1::1"))
    quota.spend(scope("192.0.2.1"))
    for host in ("::ffff:192.0.2.2", "::ffff:192.0.2.3", "192.0.2.2", "::ffff:192.0.2.2"):  # one of two families
        quota.spend(scope(host))
    with pytest.raises(QuotaExceeded):
        quota.spend(scope("::ffff:192.0.2.2"))
    quota.spend(scope("2001:db8::1", "/v1/models"))  # no work, no cost
    now[0] += 1.01
    quota.spend(scope("2001:db8::3"))
    now[0] += 3600  # who has asked for nothing has saved up no more than a burst
    for _ in range(3):
        quota.spend(scope("2001:db8::3"))
    with pytest.raises(QuotaExceeded):
        quota.spend(scope("2001:db8::3"))


def test_callers_beyond_number_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.quota._MOST_CALLERS", 2)
    quota = Quota(per_minute=1, burst=1)

    def spend(host: str) -> None:
        state = {"record": Record("x")}
        quota.spend({"type": "http", "method": "POST", "path": "/v1/encode", "client": (host, 1), "state": state})

    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1"):  # the first was forgotten
        spend(host)
    with pytest.raises(QuotaExceeded):
        spend("192.0.2.3")


def test_keys_that_replace_one_another_share_a_quota() -> None:
    def scope(name: str) -> dict[str, object]:
        record = Record("x")
        record.key = new_key(name, frozenset({KeyScope.ENCODE}), None)[1]
        return {
            "type": "http",
            "method": "POST",
            "path": "/v1/encode",
            "client": ("192.0.2.1", 1),
            "state": {"record": record},
        }

    quota = Quota(per_minute=1, burst=2)
    quota.spend(scope("gallery"))
    quota.spend(scope("gallery"))
    with pytest.raises(QuotaExceeded):
        quota.spend(scope("gallery"))
    quota.spend(scope("archive"))


def test_quota_over_http(start_faulty: StartFaulty) -> None:
    server, _ = start_faulty(quota_per_minute=1, quota_burst=2)
    assert [encode(server).status_code for _ in range(2)] == [200, 200]
    answer = httpx.post(f"{server.url}/v1/encode", content=SMALL, headers={"X-Forwarded-For": "192.0.2.1"})
    assert_problem(answer, 429, "quota-exceeded")  # nobody has said that this machine's word is to be believed
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert server.metric("tcm_requests_rejected_total", reason="quota-exceeded") == 1
    assert server.client.get("/v1/models").status_code == 200
