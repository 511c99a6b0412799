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
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self._hanging = 0

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns. Cancelling gives the call up, not the thread, which goes on.

        Raises:
            TimeoutError: every thread hangs in a call that was given up.
        """
        if self._hanging >= self._limit:
            raise TimeoutError(f"{self._hanging} calls have not returned")
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only given up
        given_up = False

        def ended() -> None:
            self._free.release()
            self._hanging -= given_up

        def call() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was called
                future.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended)

        threading.Thread(target=call, name="store", daemon=True).start()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                given_up = True
                self._hanging += 1
            raise
