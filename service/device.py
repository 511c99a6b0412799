"""The thread that the device belongs to: one batch after another, each of what waits when it begins.

Batches form while the device is busy, and only then: an item that finds it idle never waits for company, and no timer
is needed.
"""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor

import structlog

from model.errors import OutOfMemory
from model.stages import Stages
from service.metrics import Metrics
from service.queue import Item, Queue

log = structlog.get_logger()


class Device:
    """Works on batches.

    Args:
        metrics: where batches are measured.
        max_batch_items: see `Queue`.
        max_batch_pixels: see `Queue`; lowered for good when the device has run out of memory.
    """

    def __init__(self, metrics: Metrics, *, max_batch_items: int, max_batch_pixels: int) -> None:
        self._metrics = metrics
        self._queue = Queue(metrics, max_batch_items, max_batch_pixels)
        self._thread = ThreadPoolExecutor(1, "device")
        metrics.batch_pixels_limit.set(max_batch_pixels)

    def put(self, item: Item) -> None:
        """Queue an item; its future says what became of it."""
        self._queue.put(item)
        self._thread.submit(self._turn)

    def _turn(self) -> None:
        """One for each item put; those whose item went with an older one find less to do, or nothing."""
        batch = self._queue.take()
        if batch:
            self._work(batch)

    def _work(self, batch: list[Item]) -> None:
        """Give every item its result; a batch that fails as a whole is halved, down to the item that is to blame."""
        error = self._attempt(batch)
        if error is None:
            return
        if isinstance(error, OutOfMemory):
            self._lower_limit(batch)
        if len(batch) == 1:
            batch[0].finish(error)
            return
        log.warning("batch failed, its halves are tried", items=len(batch), error=repr(error))
        middle = len(batch) // 2
        self._work(batch[:middle])
        self._work(batch[middle:])

    def _attempt(self, batch: list[Item]) -> Exception | None:
        kind, stages = batch[0].kind, Stages()
        try:
            results = kind.call([item.subject for item in batch], stages=stages)
            finished = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, the requests are told
            _drop_tensors(error)
            return error
        self._metrics.batch(kind.op, len(batch), len(batch) * kind.pixels, stages)
        for item, result in finished:
            item.stages.join(stages)
            item.finish(result)
        return None

    def _lower_limit(self, batch: list[Item]) -> None:
        """To half of what did not fit."""
        pixels = len(batch) * batch[0].kind.pixels
        self._queue.max_pixels = min(self._queue.max_pixels, pixels // 2)
        self._metrics.batch_pixels_limit.set(self._queue.max_pixels)
        log.warning("out of memory", items=len(batch), pixels=pixels, max_batch_pixels=self._queue.max_pixels)

    def close(self) -> None:
        """Finish what has begun, drop what waits."""
        self._queue.clear()
        self._thread.shutdown(cancel_futures=True)


def _drop_tensors(error: BaseException | None) -> None:
    """Empty the frames of a failure, so that the next attempt has the memory that their tensors take."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
