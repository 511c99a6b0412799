"""What waits for the device, oldest first, and which of it goes together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

from model.stages import Stages
from service.metrics import Metrics


@dataclass(frozen=True)
class Kind:
    """What items must have in common to share a batch.

    Attributes:
        op: encode or decode.
        call: `analyse` or `synthesise` of one codec; a method equals itself only on the same codec.
        size: padded width and height.
    """

    op: str
    call: Callable[..., Sequence[Any]]
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """That one item costs the device, padding included."""
        return self.size[0] * self.size[1]


class Item:
    """One request's part of a batch.

    Attributes:
        kind: what it can share a batch with.
        subject: the picture or the container.
        stages: of its request.
        future: its result. Cancelling it works as long as the device has not begun.
    """

    def __init__(self, kind: Kind, subject: object, stages: Stages) -> None:
        self.kind, self.subject, self.stages = kind, subject, stages
        self.future: Future[Any] = Future()
        self.since = time.perf_counter()

    def finish(self, result: object) -> None:
        """What became of it; an error in place of a result is its own, not its neighbours'."""
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Queue:
    """Any thread may call it: the event loop puts and removes, the device takes.

    Args:
        metrics: where the queue is measured.
        max_items: in a batch.
        max_pixels: in a batch, padding included; an item that is larger goes alone.
    """

    def __init__(self, metrics: Metrics, max_items: int, max_pixels: int) -> None:
        self.max_items, self.max_pixels = max_items, max_pixels
        self._metrics = metrics
        self._waiting: dict[Item, None] = {}  # in the order of arrival
        self._lock = threading.Lock()

    def put(self, item: Item) -> None:
        """Wait, until taken or cancelled."""
        with self._lock:
            self._waiting[item] = None
            self._metrics.queue_depth.inc()
            self._metrics.queue_pixels.inc(item.kind.pixels)
        item.future.add_done_callback(lambda _: self._remove(item))  # if it is cancelled while it waits

    def take(self) -> list[Item]:
        """The oldest item and those behind it that can share its batch; nothing if nothing waits."""
        with self._lock:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return []
            room = max(1, min(self.max_items, self.max_pixels // oldest.kind.pixels))
            batch = list(islice((item for item in self._waiting if item.kind == oldest.kind), room))
            for item in batch:
                item.stages.add("queue", item.since, item.since + self._leave(item))
        return [item for item in batch if item.future.set_running_or_notify_cancel()]

    def clear(self) -> None:
        """Cancel all that waits."""
        with self._lock:
            waiting = list(self._waiting)
        for item in waiting:  # each removes itself, for which it needs the lock
            item.future.cancel()

    def _remove(self, item: Item) -> None:
        with self._lock:
            if item in self._waiting:
                self._leave(item)

    def _leave(self, item: Item) -> float:
        """Seconds waited."""
        del self._waiting[item]
        waited = time.perf_counter() - item.since
        self._metrics.queue_depth.dec()
        self._metrics.queue_pixels.dec(item.kind.pixels)
        self._metrics.queue_wait.observe(waited)
        return waited
