"""Where the time of one image goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Heartbeat = Callable[[], None]
"""Called between the steps of long work, each a tile or a slice: shows that it goes on; what it raises ends it."""


def unwatched() -> None:
    """The heartbeat of work that nobody watches."""


class Stages(dict[str, float]):
    """Seconds by stage, in the order of first use: `with stages("g_a"): …` adds to one.

    A stage inside another counts for itself alone, so the stages add up to the whole, or to more than it where
    a device and the processor worked side by side.

    Attributes:
        spans: first beginning and last end of each stage, of `time.perf_counter`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[str, tuple[float, float]] = {}
        self._inner = [0.0]  # seconds spent in stages inside the open ones, innermost last

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        self.setdefault(name, 0.0)
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            elapsed = end - start
            self[name] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed
            self.spans[name] = (self.spans.get(name, (start, end))[0], end)

    def took(self, name: str, seconds: float) -> None:
        """Add to a stage that was timed elsewhere and has ended about now."""
        end = time.perf_counter()
        self[name] = self.get(name, 0.0) + seconds
        self.spans[name] = (self.spans.get(name, (end - seconds, end))[0], end)
        self._inner[-1] += seconds

    def add(self, name: str, start: float, end: float) -> None:
        """Put in a stage that was timed elsewhere."""
        self[name] = end - start
        self.spans[name] = (start, end)

    def join(self, other: Stages) -> None:
        """Take over the stages of a part that ran elsewhere: on another thread, or for a whole batch."""
        self.update(other)
        self.spans |= other.spans
