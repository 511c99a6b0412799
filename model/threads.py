"""Work shared out among the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

_S = TypeVar("_S")
_T = TypeVar("_T")


def cores() -> int:
    """That this process may use, which on a large machine may be few of all."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_CORES = min(cores(), 32)
_later = ThreadPoolExecutor(_CORES, thread_name_prefix="shares")
_now = ThreadPoolExecutor(_CORES, thread_name_prefix="shares-now")


def each(work: Callable[[_S], _T], items: Sequence[_S], *, urgent: bool = False) -> list[_T]:
    """The work on each item, shared out among the cores where there are several; must not be called by such work.

    What is urgent, since a device waits for it, does not queue behind what is not.
    """
    shares = min(_CORES, len(items))
    if shares < 2:
        return [work(item) for item in items]

    def some(share: int) -> list[_T]:
        return [work(item) for item in items[share::shares]]

    done: list[_T | None] = [None] * len(items)
    others = [(_now if urgent else _later).submit(some, share) for share in range(1, shares)]
    done[::shares] = some(0)  # whoever calls has a core already, and need not be woken
    for share, other in enumerate(others, 1):
        done[share::shares] = other.result()
    return cast("list[_T]", done)
