"""The device's thread on its own: order, bounds, and what a failing batch does. With a real codec of tiny widths."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import numpy as np
import pytest
from prometheus_client import generate_latest

from model.codec import Codec
from model.errors import DeviceLost, OutOfMemory
from model.latent_coder import Analysis
from model.pixels import Picture
from model.stages import Heartbeat, Stages
from service.admission import Rate
from service.device import Abandoned, Device
from service.errors import WorkerLost
from service.metrics import Metrics
from service.queue import Item, Kind
from service.watchdog import Watchdog
from tests.service.conftest import wait_for

SIZE = (128, 128)
PIXELS = 128 * 128


class Stage:
    """A device that can be held busy, and what it was asked to do."""

    def __init__(self, codec: Codec, *, max_batch_items: int = 8, max_batch_pixels: int = 8 * PIXELS) -> None:
        self.codec, self.metrics = codec, Metrics()
        self.rate, self.watchdog = Rate(), Watchdog(60)
        self.device = Device(
            self.metrics,
            self.rate,
            self.watchdog,
            slowest_rate=20_000,
            max_batch_items=max_batch_items,
            max_batch_pixels=max_batch_pixels,
        )
        self.attempts: list[list[Picture]] = []
        self.refuses: Callable[[Sequence[Picture]], Exception | None] = lambda _: None

    def analyse(self, pictures: Sequence[Picture], *, stages: Stages, heartbeat: Heartbeat) -> list[Analysis]:
        self.attempts.append(list(pictures))
        if error := self.refuses(pictures):
            raise error
        return self.codec.analyse(pictures, stages=stages, heartbeat=heartbeat)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """What is put meanwhile waits."""
        begun, go_on = threading.Event(), threading.Event()

        def hold(_: Sequence[None], *, stages: Stages, heartbeat: Heartbeat) -> list[None]:
            begun.set()
            assert go_on.wait(60)
            return [None]

        self.device.put(Item(Kind("hold", hold, SIZE), None, Stages()))
        assert begun.wait(60)
        yield
        go_on.set()

    def put(self, picture: Picture, kind: Kind | None = None) -> Item:
        item = Item(kind or Kind("encode", self.analyse, SIZE), picture, Stages())
        self.device.put(item)
        return item

    @property
    def sizes(self) -> list[int]:
        """Of the batches that were tried."""
        return [len(pictures) for pictures in self.attempts]

    def metric(self, sample: str) -> float:
        lines = generate_latest(self.metrics.registry).decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{sample} ")).split()[1])

    def wait_for_limit(self, pixels: int) -> None:
        """It is set when the last part of a batch is done, and whoever waited for that knows a little earlier."""
        wait_for(lambda: self.metric("tcm_batch_pixels_limit") == pixels)

    def packed(self, item: Item) -> bytes:
        assert isinstance(item.subject, Picture)
        return self.codec.pack(item.subject, item.future.result(60))


@pytest.fixture
def stage(tiny_codec: Codec) -> Iterator[Stage]:
    stage = Stage(tiny_codec)
    yield stage
    stage.device.close()


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [Picture(np.random.default_rng(i).integers(0, 256, (100, 120, 3), np.uint8)) for i in range(8)]


def test_an_idle_device_keeps_no_picture(stage: Stage) -> None:
    """Found by reading: the last batch stayed until the next one."""
    picture = Picture(np.zeros((100, 120, 3), np.uint8))
    item = stage.put(picture)
    item.future.result(60)
    stage.attempts.clear()
    gone = ref(picture.rgb)
    del picture, item
    wait_for(lambda: gone() is None)


def test_out_of_memory_halves_the_batch_and_the_limit(stage: Stage, pictures: list[Picture]) -> None:
    stage.refuses = lambda some: OutOfMemory("full") if len(some) > 2 else None
    with stage.busy():
        items = [stage.put(picture) for picture in pictures]
    for item, picture in zip(items, pictures, strict=True):
        decoded = stage.codec.decode(stage.packed(item))
        assert np.asarray(decoded).shape == picture.rgb.shape
    assert stage.sizes == [8, 4, 2, 2, 4, 2, 2]
    stage.wait_for_limit(2 * PIXELS)
    assert stage.metric("tcm_batch_items_count") == 1 + 4  # those that came through
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:5]]
    for item in items:
        item.future.result(60)
    assert stage.sizes[7:] == [2, 2, 1]  # it has learnt


def test_the_limit_comes_back(stage: Stage, pictures: list[Picture]) -> None:
    """What took the memory may be gone: after many batches that went well, a quarter more is tried."""
    stage.refuses = lambda some: OutOfMemory("full") if len(some) > 1 else None
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:2]]
    for item in items:
        item.future.result(60)
    stage.wait_for_limit(PIXELS)
    quick = Kind("encode", lambda some, **_: [None] * len(some), SIZE)
    for _ in range(50):
        assert stage.metric("tcm_batch_pixels_limit") == PIXELS
        stage.put(pictures[0], quick).future.result(60)
    assert stage.metric("tcm_batch_pixels_limit") == PIXELS * 5 // 4 + 1


def test_who_needs_too_much_alone_costs_the_batches_of_others_nothing(stage: Stage, pictures: list[Picture]) -> None:
    """One file, which anybody could send again, ended batches for a thousand that went well."""
    stage.refuses = lambda some: OutOfMemory("full") if any(p is pictures[5] for p in some) else None
    with pytest.raises(OutOfMemory):
        stage.put(pictures[5]).future.result(60)
    assert stage.metric("tcm_batch_pixels_limit") == 8 * PIXELS
    with stage.busy():
        items = [stage.put(picture) for picture in pictures]
    assert [item.future.exception(60) is None for item in items] == [k != 5 for k in range(8)]
    assert stage.sizes == [1, 8, 4, 4, 2, 1, 1, 2]
    stage.wait_for_limit(4 * PIXELS)  # which went through


def test_the_limit_never_stops_a_single_item(stage: Stage, pictures: list[Picture]) -> None:
    failures = iter([OutOfMemory("full")] * 3)
    stage.refuses = lambda _: next(failures, None)
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:2]]
    assert [type(item.future.exception(60)) for item in items] == [OutOfMemory] * 2
    stage.wait_for_limit(PIXELS)
    stage.refuses = lambda some: OutOfMemory("full") if len(some) > 1 else None
    large = Picture(np.zeros((300, 400, 3), np.uint8))  # beyond the limit
    assert stage.packed(stage.put(large, Kind("encode", stage.analyse, (512, 512))))


def test_an_item_that_breaks_its_batch_fails_alone(stage: Stage, pictures: list[Picture]) -> None:
    stage.refuses = lambda some: ValueError("bad") if any(p is pictures[2] for p in some) else None
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:4]]
    with pytest.raises(ValueError, match="bad"):
        items[2].future.result(60)
    assert all(stage.packed(items[i]) for i in (0, 1, 3))
    assert stage.sizes == [4, 2, 2, 1, 1]
    assert stage.metric("tcm_batch_pixels_limit") == 8 * PIXELS  # memory was not the reason


def test_a_failure_holds_no_tensors(stage: Stage, pictures: list[Picture]) -> None:
    def call(_: Sequence[Picture], *, stages: Stages, heartbeat: Heartbeat) -> list[Any]:
        tensor = np.zeros(1000)
        raise OutOfMemory(f"full with {tensor.nbytes} bytes")

    item = stage.put(pictures[0], Kind("encode", call, SIZE))
    error = item.future.exception(60)
    assert error is not None
    trace = error.__traceback__
    while trace is not None:
        assert "tensor" not in trace.tb_frame.f_locals
        trace = trace.tb_next


def test_the_oldest_goes_first_whatever_its_kind(tiny_codec: Codec, pictures: list[Picture]) -> None:
    stage = Stage(tiny_codec, max_batch_items=3)
    order: list[str] = []

    def kind(name: str) -> Kind:
        def call(some: Sequence[Picture], *, stages: Stages, heartbeat: Heartbeat) -> list[None]:
            order.append(name * len(some))
            return [None] * len(some)

        return Kind(name, call, SIZE)

    a, b, c = (kind(name) for name in "abc")
    with stage.busy():
        items = [stage.put(pictures[0], k) for k in (a, b, a, a, a, c, b)]
    for item in items:
        item.future.result(60)
    assert order == ["aaa", "bb", "a", "c"]
    stage.device.close()


@pytest.mark.parametrize(("items", "pixels", "sizes"), [(2, 8, [2, 2, 1]), (8, 3, [3, 2]), (8, 0.5, [1] * 5)])
def test_bounds(tiny_codec: Codec, pictures: list[Picture], items: int, pixels: float, sizes: list[int]) -> None:
    stage = Stage(tiny_codec, max_batch_items=items, max_batch_pixels=int(pixels * PIXELS))
    with stage.busy():
        waiting = [stage.put(picture) for picture in pictures[:5]]
    for item in waiting:
        item.future.result(60)
    assert stage.sizes == sizes
    stage.device.close()


def test_what_is_cancelled_costs_the_device_nothing(stage: Stage, pictures: list[Picture]) -> None:
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:4]]
        assert items[0].future.cancel()
        assert items[3].future.cancel()
        assert stage.metric("tcm_queue_depth") == 2
    assert all(stage.packed(item) for item in items[1:3])
    assert [[id(p) for p in attempt] for attempt in stage.attempts] == [[id(pictures[1]), id(pictures[2])]]
    assert stage.metric("tcm_queue_depth") == 0
    assert stage.metric("tcm_queue_pixels") == 0


def test_a_batch_is_given_up_when_nobody_waits_for_it(stage: Stage, pictures: list[Picture]) -> None:
    begun, beats = threading.Event(), []

    def call(some: Sequence[Picture], *, stages: Stages, heartbeat: Heartbeat) -> list[None]:
        begun.set()
        while len(beats) < 3000:
            heartbeat()
            beats.append(None)
            time.sleep(0.01)
        return [None] * len(some)

    with stage.busy():
        items = [stage.put(picture, Kind("encode", call, SIZE)) for picture in pictures[:2]]
    assert begun.wait(60)
    items[0].abandoned = True
    so_far = len(beats)
    while len(beats) < so_far + 3:
        time.sleep(0.01)  # it goes on for the other
    items[1].abandoned = True
    assert isinstance(items[1].future.exception(60), Abandoned)
    assert len(beats) < 3000
    assert stage.metric("tcm_batches_abandoned_total") == 1
    assert stage.packed(stage.put(pictures[0]))


def test_what_would_come_too_late_is_not_begun_while_others_wait(stage: Stage, pictures: list[Picture]) -> None:
    stage.rate.add(1, PIXELS, 100)  # a minute and a half each
    with stage.busy():
        alone = stage.put(pictures[0])
        alone.deadline = time.monotonic() + 3
        behind = stage.put(pictures[1], Kind("decode", lambda some, **_: [None], SIZE))
    assert isinstance(alone.future.exception(60), Abandoned)
    assert behind.future.result(60) is None
    late = stage.put(pictures[2])
    late.deadline = time.monotonic() + 3
    assert stage.packed(late)  # it keeps nobody waiting: it may try


def test_a_lost_device_tells_who_waits(stage: Stage, pictures: list[Picture]) -> None:
    with stage.busy():
        waiting = stage.put(pictures[0])
        stage.device.give_up("it is gone")
        for item in (waiting, stage.put(pictures[1])):
            with pytest.raises(WorkerLost, match="it is gone"):
                item.future.result(60)


def test_a_device_that_fails_for_good_is_reported(stage: Stage, pictures: list[Picture]) -> None:
    stage.refuses = lambda _: DeviceLost("cuda:0 does nothing any more")
    with stage.busy():
        items = [stage.put(picture) for picture in pictures[:4]]
    for item in items:
        with pytest.raises(DeviceLost):
            item.future.result(60)
    assert stage.sizes == [4]  # no halves are tried
    assert stage.watchdog.lost() == "cuda:0 does nothing any more"


def test_what_waits_at_the_end_is_dropped(stage: Stage, pictures: list[Picture]) -> None:
    with stage.busy():
        item = stage.put(pictures[0])
        closing = threading.Thread(target=stage.device.close)
        closing.start()
        while not item.future.cancelled():
            closing.join(0.01)
    closing.join(60)
    assert stage.attempts == []
    assert stage.metric("tcm_queue_depth") == 0
