"""HTTP before there is a request: limits for its head, and what is answered to bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import structlog

from service.connection import Connection, NotHttp
from service.context import Context
from service.errors import MEDIA_TYPE, HeadersTooLarge, MalformedRequest, Problem, RequestTimeout
from service.headers import DEFAULTS
from service.identity import REQUEST_ID_HEADER, new_request_id
from service.observe import UNMATCHED

log = structlog.get_logger()

_END = re.compile(rb"\n\r?\n")
_MAY_BE_HTTP = re.compile(rb"[A-Za-z]")
_UPGRADE = re.compile(rb"(\n)upgrade:", re.IGNORECASE)
"""No upgrade is ever taken, and a request that offers one (h2c, as some clients do) is one like any other. The parser
would take it for the end of HTTP: its body would be lost, or be the next request."""

_LISTS = frozenset({b"accept", b"if-match", b"if-none-match"})
"""Headers that may come in several lines and mean the same as in one (RFC 9110, 5.3)."""


class Protocol(Connection):
    """uvicorn's HTTP/1.1, which bounds neither the size of a head nor the time that it takes to arrive.

    Attributes:
        max_head: bytes of request line and headers; they are in memory before anybody can be asked for a key.
        head_seconds: from the connection, or from a head's first byte, to its last.
        max_pipelined: requests that may wait for the answers of those before them.
    """

    max_head: ClassVar[int] = 64 << 10
    head_seconds: ClassVar[float] = 30.0
    max_pipelined: ClassVar[int] = 256

    _head: int | None = 0  # bytes of the head that is arriving; None when it has arrived
    _held = b""  # of it, as long as it is not complete
    _begun = False  # the parser is in the middle of a head: one that began behind a body
    _timer: asyncio.TimerHandle | None = None
    _deaf = False  # what has come last is no HTTP, and nothing behind it is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """And is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in heads one by one and whole, without what they say of upgrades; bodies as they come."""
        while data and not self._deaf and not self.transport.is_closing():
            if self._head is None or self._begun:
                self._take(data)
                return
            if not self._held and (blank := len(data) - len(data.lstrip(b"\r\n"))):
                self._take(data[:blank])  # no head begins with an empty line
                data = data[blank:]
                continue
            begins = not self._held
            seen, self._held = max(0, len(self._held) - 3), self._held + data
            end = _END.search(self._held, seen)
            if not end and _MAY_BE_HTTP.match(self._held) and len(self._held) <= self.max_head:
                self._unset_keepalive_if_required()
                self._head = len(self._held)
                if begins or not self._timer:
                    self._watch()
                return
            place = end.end() if end else len(self._held)
            if end and place > self.max_head:  # however it was cut on its way
                self._refuse(self._too_large())
                return
            head, data, self._held, self._head = self._held[:place], self._held[place:], b"", 0
            self._take(_UPGRADE.sub(rb"\1X-Ignored-Upgrade:", head))

    def _take(self, data: bytes) -> None:
        """Count what belongs to a head; what follows one in the same read is let pass."""
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > self.max_head:
            self._refuse(self._too_large())
        elif self._forgotten():
            self._watch()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._begun = True
        self._watch()

    def on_headers_complete(self) -> None:
        """The last byte of its head."""
        self._head, self._begun = None, False
        self._unwatch()
        if self.parser.should_upgrade():
            raise NotHttp("a CONNECT, or an Upgrade of a request behind a body")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            raise NotHttp("several Host headers" if hosts else "no Host header")
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # its client would take what it is told for the answer (RFC 9110, 10.1.1)
        if len(self.pipeline) >= self.max_pipelined:
            raise NotHttp(f"more than {self.max_pipelined} requests of this connection wait for their answers")
        self._join_lists()
        super().on_headers_complete()

    def _join_lists(self) -> None:
        times = Counter(name for name, _ in self.headers if name in _LISTS)
        for name in [name for name, count in times.items() if count > 1]:
            joined = b", ".join(value for key, value in self.headers if key == name)
            self.headers[:] = [header for header in self.headers if header[0] != name] + [(name, joined)]

    def on_message_complete(self) -> None:
        """The last byte of its body."""
        super().on_message_complete()
        self._head = 0

    def on_response_complete(self) -> None:
        """An answer is out; behind the last one that can be given, the connection ends."""
        last = self._deaf and not self.pipeline
        super().on_response_complete()
        if last:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP, as the parser's error in hand says."""
        error = sys.exc_info()[1]
        if isinstance(error, httptools.HttpParserCallbackError):
            error = error.__context__ if isinstance(error.__context__, NotHttp) else None
        self._refuse(MalformedRequest(f"this is no HTTP: {error}" if error else msg))

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"request line and headers have more than {self.max_head} bytes")

    def _forgotten(self) -> bool:
        """No request is under way, and nothing would ever end the connection: uvicorn's timer ends with any byte."""
        cycle: Any = self.cycle
        idle = self._head is not None and not self.pipeline and (cycle is None or cycle.response_complete)
        return idle and not (self._timer or self.timeout_keep_alive_task or self.transport.is_closing())

    def _watch(self) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _unwatch(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self._head:
            self._refuse(RequestTimeout(f"the headers were not complete after {self.head_seconds:g} s"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer and close: nothing that follows can be understood."""
        cycle: Any = self.cycle
        under_way = cycle and not cycle.response_complete
        if self.transport.is_closing() or self._deaf:
            return
        if cycle and cycle.response_complete and cycle.more_body:
            self._cut(problem)  # the rest of a body whose request has had its answer
            return
        if self.pipeline or (under_way and not cycle.more_body):
            self._hear_no_more(problem)
            return
        if under_way and cycle.response_started:
            self._cut(problem)  # its answer did not wait for the body that is wrong
            return
        if under_way:  # what is wrong is this request's own body: its handler is told that nobody waits for it
            cycle.disconnected = True
            cycle.message_event.set()
        state: dict[str, Any] = cycle.scope.get("state", {}) if under_way else {}
        request_id = state["record"].request_id if "record" in state else new_request_id()
        self._log(problem, request_id)
        if not under_way:  # else its handler's end is counted
            app: Any = self.config.app
            context: Context = app.state.context
            context.metrics.requests.labels(UNMATCHED, "other", problem.status).inc()
        self._write(problem, request_id)

    def _write(self, problem: Problem, request_id: str) -> None:
        """The last answer of this connection."""
        body = problem.document(request_id)
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Connection": "close",
            REQUEST_ID_HEADER: request_id,
        }
        lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (headers | DEFAULTS).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _cut(self, problem: Problem) -> None:
        """Close without a word: an answer is out, or on its way."""
        log.info("connection cut", client=self.client[0] if self.client else None, reason=problem.detail)
        self.transport.close()

    def _hear_no_more(self, problem: Problem) -> None:
        """What came before is answered; then the connection is closed, since nothing behind it can be understood."""
        self._deaf = True
        self._unwatch()
        self._log(problem, new_request_id())
        newest: Any = self.cycle
        if newest.more_body:  # what is wrong is its own body; it waits behind another
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else newest
        last.keep_alive = False

    def _log(self, problem: Problem, request_id: str) -> None:
        log.info(
            "refused",
            request_id=request_id,
            client=self.client[0] if self.client else None,
            problem=problem.code,
            status=problem.status,
            detail=problem.detail,
        )
