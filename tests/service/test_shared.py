"""One maker for all who ask at once, and bounded memory: what the pictures of the store rest on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from operator import attrgetter

import pytest

from service import lifetime
from service.shared import SharedCache


@dataclass
class Value:
    name: str
    memory: int = 1


SIZE = attrgetter("memory")


@dataclass
class Maker:
    """Makes values when it is told to, and counts."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    cancelled: int = 0
    deadline: float = 0.0

    def of(self, name: str, memory: int = 1, error: Exception | None = None) -> Callable[[], Awaitable[Value]]:
        async def make() -> Value:
            self.begun += 1
            self.deadline = lifetime.deadline()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if error:
                raise error
            return Value(name, memory)

        return make


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_first_may_leave() -> None:
    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        asked = [asyncio.create_task(cache.get("a", maker.of("a"))) for _ in range(3)]
        await turns()
        asked[0].cancel()
        await turns()
        maker.go.set()
        assert [(await task)[1] for task in asked[1:]] == ["shared", "shared"]
        assert (maker.begun, maker.cancelled) == (1, 0)
        assert (await cache.get("a", maker.of("a")))[1] == "cache"

    run(test)


def test_it_ends_with_the_last() -> None:
    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        asked = [asyncio.create_task(cache.get("a", maker.of("a"))) for _ in range(2)]
        await turns()
        for task in asked:
            task.cancel()
        again = asyncio.create_task(cache.get("a", maker.of("a")))  # while the first is being ended
        await turns()
        maker.go.set()
        assert (await again)[1] == "made"
        assert (maker.begun, maker.cancelled) == (2, 1)

    run(test)


def test_the_end_of_the_first_is_nobody_else_s() -> None:
    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        maker.go.set()
        lifetime._deadline.set(1.0)  # as of a request that ended long ago
        await cache.get("a", maker.of("a"))
        assert maker.deadline == math.inf
        assert lifetime.deadline() == 1.0

    run(test)


def test_an_error_goes_to_all_and_is_not_kept() -> None:
    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        asked = [asyncio.create_task(cache.get("a", maker.of("a", error=ValueError("no")))) for _ in range(2)]
        await turns()
        maker.go.set()
        for task in asked:
            with pytest.raises(ValueError, match="no"):
                await task
        assert (await cache.get("a", maker.of("a")))[1] == "made"

    run(test)


def test_memory_is_bounded() -> None:
    async def test() -> None:
        kept: list[int] = []
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        maker.go.set()
        for name, memory in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("huge", 11)):
            await cache.get(name, maker.of(name, memory))
            kept.append(cache.memory)
        assert kept == [4, 8, 8, 8, 8]
        for name, source in (("a", "cache"), ("c", "cache"), ("huge", "made"), ("b", "made")):
            assert (await cache.get(name, maker.of(name, 4)))[1] == source
        nothing = SharedCache[Value](0, SIZE)
        for _ in range(2):
            assert (await nothing.get("a", maker.of("a")))[1] == "made"

    run(test)


def test_what_is_dropped_while_it_is_made_is_not_kept() -> None:
    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        early = asyncio.create_task(cache.get("a", maker.of("early")))
        await turns()
        cache.drop(lambda key: key == "a")
        late = asyncio.create_task(cache.get("a", maker.of("late")))
        await turns()
        maker.go.set()
        assert ((await early)[0].name, (await late)[0].name) == ("early", "late")
        assert (await cache.get("a", maker.of("new")))[0].name == "late"
        cache.drop(lambda key: key == "a")
        assert (await cache.get("a", maker.of("new")))[0].name == "new"

    run(test)


def test_what_nobody_asks_for_again_is_not_kept_either() -> None:
    """Found by breaking the code: a picture deleted during its decode must not stay."""

    async def test() -> None:
        cache, maker = SharedCache[Value](10, SIZE), Maker()
        early = asyncio.create_task(cache.get("a", maker.of("early")))
        await turns()
        cache.drop(lambda key: key == "a")
        maker.go.set()
        await early
        assert cache.memory == 0
        assert (await cache.get("a", maker.of("new")))[1] == "made"

    run(test)
