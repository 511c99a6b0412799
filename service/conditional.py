"""Conditional and range requests by RFC 9110: what of a representation a client still needs."""

from __future__ import annotations

import re
from collections.abc import Callable

from service.errors import PreconditionFailed, RangeNotSatisfiable

# no part that could be tried in many ways: headers have thousands of characters
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')
_RANGE = re.compile(r"bytes\s*+=\s*+(\d{0,18})\s*+-\s*+(\d{0,18})\s*+", re.IGNORECASE)


def client_has(if_none_match: str | None, current: Callable[[str], bool]) -> str | None:
    """The entity tag of `If-None-Match` that is still current, "*" where any will do; None where there is none.

    Args:
        if_none_match: the header.
        current: whether a tag, with its quotes, is one of this representation.
    """
    if if_none_match is None:
        return None
    if if_none_match.strip() == "*":
        return "*"
    return next((tag for tag in _TAG.findall(if_none_match) if current(tag)), None)


def demand(if_match: str | None, etag: str) -> None:
    """That a request which says `If-Match` is about the representation of this strong entity tag, or about any.

    Raises:
        PreconditionFailed: it is about another.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if etag not in (tag.strip() for tag in if_match.split(",")):
        raise PreconditionFailed(f"the entity tag is {etag} now")


def wanted_range(header: str | None, if_range: str | None, etag: str, size: int) -> slice | None:
    """The one range of bytes that is asked for; None for all of them.

    All of them are also the answer to several ranges, other units, and a `Range` that makes no sense.

    Args:
        header: `Range`.
        if_range: `If-Range`; a range of another representation is none.
        etag: of this representation, strong.
        size: of all of it.

    Raises:
        RangeNotSatisfiable: it begins behind the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]) or (if_range is not None and if_range.strip() != etag):
        return None
    first, last = match[1], match[2]
    if first and last and int(first) > int(last):
        return None
    wanted = slice(int(first), size) if first else slice(max(0, size - int(last)), size)
    if first and last:
        wanted = slice(int(first), min(int(last) + 1, size))
    if wanted.start >= size:
        raise RangeNotSatisfiable(
            f"there are {size} bytes, none of them in {header!r:.100}", headers={"Content-Range": f"bytes */{size}"}
        )
    return wanted
