"""What waits while the device is busy goes through it together, and comes out as if each had come alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from model.container import read_container, write_container
from tests.conftest import psnr
from tests.service.conftest import Server, assert_problem, busy, image_file, open_image, wait_for

PIXELS = 384 * 256


@pytest.fixture(scope="module")
def photos(photo: Image.Image) -> list[Image.Image]:
    """Eight pictures of one size."""
    four = [photo, ImageOps.mirror(photo), ImageOps.flip(photo), ImageOps.invert(photo)]
    return four + [ImageOps.solarize(image) for image in four]


@pytest.fixture(scope="module")
def bitstreams(server: Server, photos: list[Image.Image]) -> list[bytes]:
    """Those pictures, each encoded alone."""
    return [encode(server, image).content for image in photos]


@dataclasses.dataclass
class Batches:
    """What went through the device."""

    count: float = 0
    items: float = 0
    pixels: float = 0
    g_a: float = 0
    g_s: float = 0


def counted(server: Server) -> Batches:
    def stage(op: str, name: str) -> float:
        return server.metric("tcm_stage_duration_seconds_count", op=op, stage=name)

    return Batches(
        server.metric("tcm_batch_items_count"),
        server.metric("tcm_batch_items_sum"),
        server.metric("tcm_batch_pixels_sum"),
        stage("encode", "g_a"),
        stage("decode", "g_s"),
    )


@contextmanager
def batches(server: Server) -> Iterator[Batches]:
    """Those of the block, known at its end."""
    result, before = Batches(), counted(server)
    yield result
    after = counted(server)
    for name, value in dataclasses.asdict(after).items():
        setattr(result, name, value - getattr(before, name))


def encode(server: Server, image: Image.Image, **parameters: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/encode", content=image_file(image), params=parameters, timeout=120)  # type: ignore[arg-type]


def decode(server: Server, bitstream: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/decode", content=bitstream, timeout=120)


def while_busy(server: Server, large: bytes, calls: list[Callable[[], httpx.Response]]) -> list[httpx.Response]:
    """The answers to requests that all waited while the device worked on a large image, queued in this order."""
    with ThreadPoolExecutor(len(calls)) as clients:
        with busy(server, large) as work:
            waiting = []
            for n, call in enumerate(calls, 1):
                waiting.append(clients.submit(call))
                wait_for(lambda n=n: server.metric("tcm_queue_depth") == n)  # type: ignore[misc]
            assert not work.done()
        return [response.result() for response in waiting]


def stages_of(response: httpx.Response) -> dict[str, float]:
    parts = (part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    return {name: float(milliseconds) for name, milliseconds in parts}


def assert_same_picture(a: httpx.Response, b: httpx.Response) -> None:
    """Within a level. Kernels in bfloat16 round by the size of the batch: a few samples in 100,000 may be two off."""
    assert a.status_code == b.status_code == 200
    one, other = (np.asarray(open_image(response.content)).astype(int) for response in (a, b))
    differences = np.abs(one - other)
    assert differences.max() <= 2
    assert (differences > 1).mean() < 1e-4


def test_a_lone_request_is_a_batch_of_one(server: Server, photo: Image.Image) -> None:
    with batches(server) as seen:
        encoded = encode(server, photo)
        assert decode(server, encoded.content).status_code == 200
    assert seen == Batches(count=2, items=2, pixels=2 * PIXELS, g_a=1, g_s=1)


def test_images_that_wait_are_encoded_together(
    server: Server, large: bytes, photos: list[Image.Image], bitstreams: list[bytes]
) -> None:
    with batches(server) as seen:
        answers = while_busy(server, large, [lambda image=image: encode(server, image) for image in photos])  # type: ignore[misc]
    assert seen == Batches(count=2, items=9, pixels=2304 * 1536 + 8 * PIXELS, g_a=2, g_s=0)
    for answer, image, alone in zip(answers, photos, bitstreams, strict=True):
        stages = stages_of(answer)
        assert list(stages) == [
            "read_wait", "read_image", "model", "queue", "g_a", "hyper", "slices", "write_wait", "guard", "entropy",
            "container",
        ]  # fmt: skip
        assert stages["g_a"] == stages_of(answers[0])["g_a"]  # the batch's, told to each of its items
        assert stages["queue"] > 0
        # its own picture, and as good as when it comes alone
        together, single = (open_image(decode(server, data).content) for data in (answer.content, alone))
        assert psnr(together, single) > 45
        assert abs(psnr(together, image) - psnr(single, image)) < 0.02
        assert len(answer.content) == pytest.approx(len(alone), rel=0.005)


def test_bitstreams_that_wait_are_decoded_together(server: Server, large: bytes, bitstreams: list[bytes]) -> None:
    alone = [decode(server, data) for data in bitstreams]
    with batches(server) as seen:
        answers = while_busy(server, large, [lambda data=data: decode(server, data) for data in bitstreams])  # type: ignore[misc]
    assert seen == Batches(count=2, items=9, pixels=2304 * 1536 + 8 * PIXELS, g_a=1, g_s=1)
    for answer, single in zip(answers, alone, strict=True):
        assert list(stages_of(answer)) == [
            "read_wait", "read_bitstream", "model", "queue", "entropy", "slices", "g_s", "write_wait", "write_image"
        ]  # fmt: skip
        assert_same_picture(answer, single)


def test_answers_leave_while_the_device_works_on(server: Server, large: bytes, photo: Image.Image) -> None:
    """Reading, the device and writing are three things at once."""
    with busy(server, large), ThreadPoolExecutor(2) as clients:
        first = clients.submit(encode, server, photo)
        wait_for(lambda: server.metric("tcm_queue_depth") == 1)
        second = clients.submit(httpx.post, f"{server.url}/v1/encode", content=large, timeout=120)
        wait_for(lambda: server.metric("tcm_queue_depth") == 2)
        assert first.result().status_code == 200
        assert not second.done()
        assert second.result().status_code == 200


def test_only_what_fits_together_goes_together(
    server: Server, large: bytes, photo: Image.Image, bitstreams: list[bytes]
) -> None:
    sizes = [(384, 256), (256, 384), (383, 200), (100, 90), (256, 384), (384, 129)]
    calls: list[Callable[[], httpx.Response]] = [
        lambda size=size: encode(server, photo.resize(size))  # type: ignore[misc]
        for size in sizes
    ]
    calls.append(lambda: decode(server, bitstreams[0]))
    calls.append(lambda: encode(server, photo, quality=1))
    with batches(server) as seen:
        *encoded, decoded, other = while_busy(server, large, calls)
    # three of 384x256, two of 256x384, one of 128x128; another operation; another model
    assert (seen.count, seen.items) == (1 + 5, 1 + 8)
    assert [(c.width, c.height) for c in (read_container(answer.content) for answer in encoded)] == sizes
    assert decoded.status_code == 200
    assert other.headers["tcm-model"] == "tcm-xs-mse-0.0035"


def test_a_bad_bitstream_fails_alone(server: Server, large: bytes, bitstreams: list[bytes]) -> None:
    container = read_container(bitstreams[1])
    payload = bytearray(container.payload)
    payload[len(payload) // 2] ^= 0x55
    bad = write_container(dataclasses.replace(container, payload=bytes(payload)))
    alone = [decode(server, data) for data in (bitstreams[0], bitstreams[2])]
    sent = [bitstreams[0], bad, bitstreams[2]]
    with batches(server) as seen:
        first, second, third = while_busy(server, large, [lambda data=data: decode(server, data) for data in sent])  # type: ignore[misc]
    assert (seen.count, seen.items) == (2, 4)
    assert_problem(second, 409, "incompatible-model")
    assert_same_picture(first, alone[0])
    assert_same_picture(third, alone[1])


def test_who_gives_up_leaves_the_batch(server: Server, large: bytes, photos: list[Image.Image]) -> None:
    with batches(server) as seen, busy(server, large) as work, ThreadPoolExecutor(3) as clients:
        patient = [clients.submit(encode, server, image) for image in photos[:2]]
        hasty = clients.submit(encode, server, photos[2], timeout_ms=1500)
        wait_for(lambda: server.metric("tcm_queue_depth") == 3)
        assert_problem(hasty.result(), 504, "deadline-exceeded")
        assert server.metric("tcm_queue_depth") == 2
        assert not work.done()
        assert [answer.result().status_code for answer in patient] == [200, 200]
    assert (seen.count, seen.items) == (2, 3)


def test_a_batch_keeps_its_bounds(tight: Server, photo: Image.Image) -> None:
    def small(_: int) -> httpx.Response:
        return encode(tight, photo, model="tcm-xs-mse-0.013")

    assert small(0).status_code == 200
    with batches(tight) as seen, ThreadPoolExecutor(9) as clients:
        assert [answer.status_code for answer in clients.map(small, range(9))] == [200] * 9
    assert seen.items == 9
    assert 5 <= seen.count < 9
    assert tight.metric("tcm_batch_items_bucket", le="2.0") == tight.metric("tcm_batch_items_count")
