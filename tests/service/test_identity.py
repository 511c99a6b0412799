"""Request ids and traces are only believed when they are what they should be."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from service.identity import request_id, trace_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"01-{TRACE}-{SPAN}-01-more", TRACE),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
    ],
)
def test_traceparent(value: str, expected: str | None) -> None:
    assert trace_id(Headers({"traceparent": value})) == expected


def test_request_ids() -> None:
    assert request_id(Headers({"X-Request-ID": "a_B-9" * 12})) == "a_B-9" * 12
    assert request_id(Headers({"X-Request-ID": "a\n"})) != "a\n"
    assert request_id(Headers({})) != request_id(Headers({}))
