"""Values that are made once for all who ask at the same time, and kept as long as there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.lifetime import detached

V = TypeVar("V")


@dataclass
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiters: int = 0


class SharedCache(Generic[V]):
    """Single flight before a least-recently-used cache. Belongs to the event loop.

    Args:
        max_bytes: of the values that are kept; larger ones are made and not kept.
        size: bytes that a value takes.

    Attributes:
        memory: of all that are kept, in bytes.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self.memory = 0
        self._max_bytes, self._size = max_bytes, size
        self._kept: OrderedDict[Any, V] = OrderedDict()  # the least recently used first
        self._flights: dict[Any, _Flight[V]] = {}

    async def get(self, key: Any, make: Callable[[], Awaitable[V]]) -> tuple[V, str]:
        """The value, and where it is from: "cache", "shared" with whoever asked first, or "made" now.

        The work is nobody's own: whoever gives up leaves it to the others, and it ends with the last of them. An error
        goes to all who wait, and is not kept.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key], "cache"
        source = "shared"
        if key not in self._flights:
            source = "made"
            self._flights[key] = _Flight(asyncio.create_task(self._make(key, make), context=detached()))
        flight = self._flights[key]
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), source
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._land(key, flight.task)
                flight.task.cancel()

    def drop(self, belongs: Callable[[Any], bool]) -> None:
        """Forget the values of these keys, and those that are being made of them."""
        for key in [key for key in self._kept if belongs(key)]:
            self._forget(key)
        for key in [key for key in self._flights if belongs(key)]:
            del self._flights[key]  # its waiters get their value; it is not kept

    async def _make(self, key: Any, make: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await make()
            if self._flies(key, asyncio.current_task()):
                self._keep(key, value)
            return value
        finally:
            self._land(key, asyncio.current_task())

    def _flies(self, key: Any, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the task of that key: it is not once it was dropped, or given up by all."""
        return key in self._flights and self._flights[key].task is task

    def _land(self, key: Any, task: asyncio.Task[Any] | None) -> None:
        if self._flies(key, task):
            del self._flights[key]

    def _keep(self, key: Any, value: V) -> None:
        if self._size(value) > self._max_bytes:
            return
        self._kept[key] = value
        self.memory += self._size(value)
        while self.memory > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Any) -> None:
        self.memory -= self._size(self._kept.pop(key))
