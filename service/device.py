"""The thread that the device belongs to: one batch after another, each of what waits when it begins.

Batches form while the device is busy, and only then: an item that finds it idle never waits for company, and no timer
is needed.
"""

from __future__ import annotations

import threading
import time
import traceback

import structlog

from model.errors import DeviceLost, OutOfMemory
from model.stages import Stages
from service.admission import Rate
from service.errors import WorkerLost
from service.metrics import Metrics
from service.priority import give_way
from service.queue import Item, Queue
from service.watchdog import Watchdog

log = structlog.get_logger()

SLOWEST_RATE = {"cpu": 20_000, "cuda": 1_000_000}
"""Pixels a second of one step (a tile, a slice) that is no hang: a large model on a slow CPU does ten times more."""

_BATCHES_UNTIL_RAISED = 50
"""That must have gone well before the limit of their pixels, lowered when memory ran out, is raised by a quarter."""


_LAST_SECONDS = 10
"""That the end of the process waits for a step that nobody else waits for."""


class Abandoned(Exception):
    """Nobody waits for the batch any more."""


class Device:
    """Works on batches.

    Args:
        metrics: where batches are measured.
        rate: of the device, told of every batch.
        watchdog: notices a batch that hangs, and the end of the thread.
        slowest_rate: pixels a second of a step that is no hang.
        max_batch_items: see `Queue`.
        max_batch_pixels: see `Queue`; lowered when the device has run out of memory, raised again step by step.
    """

    def __init__(
        self,
        metrics: Metrics,
        rate: Rate,
        watchdog: Watchdog,
        *,
        slowest_rate: float,
        max_batch_items: int,
        max_batch_pixels: int,
    ) -> None:
        self._slowest_rate = slowest_rate
        self._metrics, self._rate, self._watchdog = metrics, rate, watchdog
        self._max_batch_pixels = max_batch_pixels
        self._went_well = 0  # batches since the limit was last changed
        self._queue = Queue(metrics, max_batch_items, max_batch_pixels)
        self._running: list[Item] = []
        metrics.batch_pixels_limit.set(max_batch_pixels)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item; its future says what became of it."""
        self._queue.put(item)

    def _run(self) -> None:
        give_way()
        try:
            while (batch := self._queue.take()) is not None:
                self._running = batch = [item for item in batch if self._in_time(item)]
                if batch:
                    self._work(batch)
                self._running = batch = []  # whose pictures may be large, and the next one may be long in coming
        except BaseException as error:
            log.exception("the device's thread has died")
            self._watchdog.lose(f"the device's thread has died: {error!r}")

    def _in_time(self, item: Item) -> bool:
        """Whether it may be done before its deadline: under overload, work that comes too late would be all there is.

        The rate is but an estimate: what keeps nobody waiting is tried, and what may need but half of it, too.
        """
        if not len(self._queue) or time.monotonic() + 0.5 * self._rate.seconds(item.kind.pixels) <= item.deadline:
            return True
        self._rate.doubt()
        item.finish(Abandoned())
        return False

    def _work(self, batch: list[Item]) -> int:
        """Give every item its result; a batch that fails as a whole is halved, down to the item that is to blame.

        Returns the pixels of the largest part that went through together.
        """
        error, limit = self._attempt(batch), self._queue.max_pixels
        if error is None:
            return len(batch) * batch[0].kind.pixels
        if isinstance(error, Abandoned | DeviceLost):
            if isinstance(error, DeviceLost):
                self._watchdog.lose(str(error))
            else:
                self._metrics.abandoned.inc()
            for item in batch:
                item.finish(error.with_traceback(None))  # whose frames know the batch
            return 0
        if len(batch) == 1:
            batch[0].finish(error)
            return 0
        log.warning("batch failed, its halves are tried", items=len(batch), error=repr(error))
        middle = len(batch) // 2
        fitted = max(self._work(batch[:middle]), self._work(batch[middle:]))
        if isinstance(error, OutOfMemory):
            self._lower_limit(batch, min(limit, fitted) if fitted else self._queue.max_pixels)
        return fitted

    def _attempt(self, batch: list[Item]) -> Exception | None:
        kind, stages = batch[0].kind, Stages()
        pixels = len(batch) * kind.pixels
        start = time.perf_counter()
        with self._watchdog.watch(f"the device, {kind.op} of {pixels} pixels,", pixels / self._slowest_rate) as watch:

            def heartbeat() -> None:
                watch.beat()
                if all(item.abandoned for item in batch):
                    raise Abandoned

            try:
                results = kind.call([item.subject for item in batch], stages=stages, heartbeat=heartbeat)
                finished = list(zip(batch, results, strict=True))
            except Exception as error:  # noqa: BLE001 - whatever it is, the requests are told
                _drop_tensors(error)
                return error
        self._rate.add(len(batch), pixels, time.perf_counter() - start)
        self._metrics.batch(kind.op, len(batch), pixels, stages)
        self._raise_limit()
        for item, result in finished:
            item.stages.join(stages)
            item.finish(result)
        return None

    def _lower_limit(self, batch: list[Item], limit: int) -> None:
        """To what fitted of what did not; to less than half of it only where nothing did."""
        pixels = len(batch) * batch[0].kind.pixels
        self._set_limit(min(limit, pixels // 2))
        log.warning("out of memory", items=len(batch), pixels=pixels, max_batch_pixels=self._queue.max_pixels)

    def _raise_limit(self) -> None:
        """By a quarter, when it has long gone well: what took the memory may be gone."""
        self._went_well += 1
        if self._went_well >= _BATCHES_UNTIL_RAISED and self._queue.max_pixels < self._max_batch_pixels:
            self._set_limit(min(self._max_batch_pixels, self._queue.max_pixels * 5 // 4 + 1))

    def _set_limit(self, pixels: int) -> None:
        self._queue.max_pixels, self._went_well = pixels, 0
        self._metrics.batch_pixels_limit.set(pixels)

    def give_up(self, reason: str) -> None:
        """Tell all who wait for the device that it is lost, those whose batch hangs on it included."""
        error = WorkerLost(reason)
        self._queue.close(error)
        for item in self._running:
            item.finish(error)

    def close(self) -> bool:
        """Drop what waits, and finish what has begun if anybody waits for it. False if it is still at a long step."""
        self._queue.close()
        self._thread.join(_LAST_SECONDS)
        return not self._thread.is_alive()


def _drop_tensors(error: BaseException | None) -> None:
    """Empty the frames of a failure, so that the next attempt has the memory that their tensors take."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
