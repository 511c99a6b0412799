"""WIDTHxHEIGHT, as people write it."""

from __future__ import annotations


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of `768x512`.

    Raises:
        ValueError: it is no size.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"{text!r} is no size: WIDTHxHEIGHT")
    return int(width), int(height)
