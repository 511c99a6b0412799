"""Threads for calls that may never return: what hangs is told from what nobody waits for any more."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.store.threads import Threads


async def given_up(threads: Threads, *seconds: float) -> None:
    """Calls that take so long, of clients that leave at once."""
    calls = [asyncio.create_task(threads.run(lambda s=s: time.sleep(s))) for s in seconds]  # type: ignore[misc]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def test_clients_that_leave_do_not_make_a_store_look_dead() -> None:
    async def test() -> None:
        threads = Threads(2, seconds=10)
        await given_up(threads, 0.3, 0.3)
        assert await threads.run(lambda: "answered") == "answered"

    asyncio.run(test())


def test_calls_that_outlast_their_time_hang() -> None:
    async def test() -> None:
        threads = Threads(2, seconds=0.2)
        await given_up(threads, 1.0, 1.0)
        await asyncio.sleep(0.3)
        with pytest.raises(TimeoutError, match="2 calls have not returned"):
            await threads.run(lambda: None)
        await asyncio.sleep(0.8)
        assert await threads.run(lambda: "answered") == "answered"

    asyncio.run(test())
