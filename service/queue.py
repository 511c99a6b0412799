"""What waits for the device, oldest first, and which of it goes together."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
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
        deadline: by `time.monotonic`, after which nobody waits for it.
        abandoned: nobody waits for it any more, whatever the device is doing with it.
        future: its result. Cancelling it works as long as the device has not begun.
    """

    def __init__(self, kind: Kind, subject: object, stages: Stages, deadline: float = math.inf) -> None:
        self.kind, self.subject, self.stages, self.deadline = kind, subject, stages, deadline
        self.abandoned = False
        self.future: Future[Any] = Future()
        self.since = time.perf_counter()

    def finish(self, result: object) -> None:
        """What became of it; an error in place of a result is its own, not its neighbours'. The first word counts."""
        with contextlib.suppress(InvalidStateError):
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
        self._closed = False
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def put(self, item: Item) -> None:
        """Wait, until taken or cancelled."""
        with self._lock:
            self._waiting[item] = None
            self._metrics.queue_depth.inc()
            self._metrics.queue_pixels.inc(item.kind.pixels)
            self._changed.notify()
        reference = weakref.ref(item)  # a future keeps its callbacks: item and result would wait for the collector
        item.future.add_done_callback(lambda _: self._remove(reference()))  # if it is cancelled while it waits
        if self._closed:
            self._refuse(item)

    def take(self) -> list[Item] | None:
        """Wait for an item; the oldest and those behind it that can share its batch. None once the queue is closed.

        Empty where nobody waits for any of them any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            oldest = next(iter(self._waiting))
            room = max(1, min(self.max_items, self.max_pixels // oldest.kind.pixels))
            batch = list(islice((item for item in self._waiting if item.kind == oldest.kind), room))
            for item in batch:
                item.stages.add("queue", item.since, item.since + self._leave(item))
        return [item for item in batch if item.future.set_running_or_notify_cancel()]

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def close(self, error: Exception | None = None) -> None:
        """Cancel all that waits, or fail it with this error; whatever comes later, too."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()
            waiting = list(self._waiting)
        for item in waiting:
            self._refuse(item)

    def _refuse(self, item: Item) -> None:
        """It removes itself when it is done, for which it needs the lock."""
        if self._error is None:
            item.future.cancel()
        else:
            item.finish(self._error)

    def _remove(self, item: Item | None) -> None:
        with self._lock:
            if item is not None and item in self._waiting:
                self._leave(item)

    def _leave(self, item: Item) -> float:
        """Seconds waited."""
        del self._waiting[item]
        waited = time.perf_counter() - item.since
        self._metrics.queue_depth.dec()
        self._metrics.queue_pixels.dec(item.kind.pixels)
        self._metrics.queue_wait.observe(waited)
        return waited
