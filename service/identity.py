"""Who a request is: its id, the trace it belongs to, and what the log will say of it."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from model.stages import Stages

if TYPE_CHECKING:
    from service.errors import Problem
    from service.keys import Key

REQUEST_ID_HEADER = "X-Request-ID"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# W3C Trace Context: version 00 ends after the flags, later versions may go on
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def new_request_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(16)


def request_id(headers: Headers) -> str:
    """The client's `X-Request-ID` where it is fit for a log, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def trace_id(headers: Headers) -> str | None:
    """The trace of a valid `traceparent`."""
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return match[2] if match and not (match[1] == "00" and match[3]) else None


@dataclass
class Record:
    """What is known of one request; handlers and middleware fill it in, the access log reads it.

    Attributes:
        request_id: echoed to the client, in every log line and every problem.
        trace_id: of the caller's trace, where it sent one, or of ours, where requests are traced.
        key: the caller's, once it was found; it may be past its end.
        model: that the request was served with.
        bitstream: id of the stored one that it was about.
        bytes_in: of the body read so far.
        arrived: all of the body was read.
        bytes_out: of the answer sent so far.
        problem: that it was answered with.
        stages: where its time went.
        route: where it was going, for who is refused before routing, and for files, which have no route.
    """

    request_id: str
    trace_id: str | None = None
    key: Key | None = None
    model: str | None = None
    bitstream: str | None = None
    bytes_in: int = 0
    arrived: bool = False
    bytes_out: int = 0
    problem: Problem | None = None
    stages: Stages = field(default_factory=Stages)
    route: str | None = None

    @staticmethod
    def of(scope: Scope) -> Record:
        """The record of the request in hand."""
        record: Record = scope["state"]["record"]
        return record
