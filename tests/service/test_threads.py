"""Threads for calls that may never return: what hangs is told from what nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from unittest import mock

import pytest

from service.errors import StoreUnavailable
from service.metrics import Metrics
from service.store.store import MOST_WRITES, Store
from service.threads import Threads


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


def test_a_machine_without_threads_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by reading: after as many failures as calls are allowed at a time, every call failed for ever."""

    async def test() -> None:
        threads = Threads(2, seconds=10)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", mock.Mock(side_effect=RuntimeError("can't start new thread")))
            for _ in range(5):
                with pytest.raises(OSError, match="no thread"):
                    await threads.run(lambda: None)
        assert await threads.run(lambda: "answered") == "answered"

    asyncio.run(asyncio.wait_for(test(), 20))


def test_no_more_bitstreams_wait_than_memory_is_meant_for() -> None:
    async def test() -> None:
        go = threading.Event()
        medium = SimpleNamespace(write=lambda *_: go.wait(30), url="mem:")
        store = Store(medium, Metrics(), seconds=30, ttl=None)  # type: ignore[arg-type]
        writing = [asyncio.create_task(store.put(b"x")) for _ in range(MOST_WRITES)]
        await asyncio.sleep(0.1)
        with pytest.raises(StoreUnavailable, match=f"has {MOST_WRITES} bitstreams to write"):
            await store.put(b"x")
        with pytest.raises(StoreUnavailable):  # before anything is encoded
            store.require_room()
        go.set()
        assert len(set(await asyncio.gather(*writing))) == 1
        assert await store.put(b"x")

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
