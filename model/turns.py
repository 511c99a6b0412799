"""Parts of a work that wait for a device, done in turn: while one waits, the processor does the other's share."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import TypeVar, cast

T = TypeVar("T")

Turns = Generator[None, None, T]
"""Yields where it has given the device something to do, and would wait for it next."""


def in_turn(parts: Sequence[Turns[T]]) -> list[T]:
    """What all of them give; where one fails, the others end, too."""
    results: list[T | None] = [None] * len(parts)
    waiting = deque(enumerate(parts))
    try:
        while waiting:
            place, part = waiting.popleft()
            try:
                next(part)
            except StopIteration as end:
                results[place] = end.value
            else:
                waiting.append((place, part))
    finally:
        for part in parts:
            part.close()
    return cast("list[T]", results)
