"""Threads for calls that may never return: one that hangs holds up neither its waiter nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """A thread a call, at most `limit` at a time. Belongs to the event loop.

    An executor would not do: the interpreter waits for its threads when it ends.

    Args:
        limit: calls at a time.
        seconds: after which one that was given up counts as hanging.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._free = asyncio.Semaphore(limit)
        self._hanging = 0

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns. Cancelling gives the call up, not the thread, which goes on.

        Raises:
            TimeoutError: every thread hangs in a call that was given up.
            OSError: no thread can be started.
        """
        if self._hanging >= self._limit:
            raise TimeoutError(f"{self._hanging} calls have not returned")
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only given up
        begun, hanging = loop.time(), False

        def ended() -> None:
            self._free.release()
            self._hanging -= hanging

        def look() -> None:
            nonlocal hanging
            hanging = not future.done()
            self._hanging += hanging

        def call() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was called
                future.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended)

        try:
            threading.Thread(target=call, name="patient", daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise OSError(f"the machine gives no thread: {error}") from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            left = begun + self._seconds - loop.time()
            if left > 0.001:  # its client has left
                loop.call_later(left, look)
            else:
                look()
            raise
