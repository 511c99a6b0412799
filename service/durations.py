"""Durations as people write them: `90s`, `15m`, `12h`, `30d`, `2w`."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TEXT = re.compile(r"(\d{1,9})\s*([smhdw])")


def parse(text: str) -> int:
    """Seconds, at least one. A number alone is none: who means 30 days must not lose a store after 30 seconds.

    Raises:
        ValueError: it is no duration.
    """
    match = _TEXT.fullmatch(text.strip().lower())
    if not match or not int(match[1]):
        raise ValueError("a duration is a number and a unit: 90s, 15m, 12h, 30d or 2w")
    return int(match[1]) * _SECONDS[match[2]]


def show(seconds: float) -> str:
    """A duration in its largest unit that leaves a number above one: `36h`, `3d`."""
    for unit in ("w", "d", "h", "m"):
        if seconds >= 2 * _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"
