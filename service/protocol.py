"""HTTP before there is a request: limits for its head, and what is answered to bytes that are no HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar

from service.connection import Connection
from service.errors import MEDIA_TYPE, HeadersTooLarge, MalformedRequest, Problem, RequestTimeout
from service.headers import DEFAULTS
from service.identity import REQUEST_ID_HEADER, new_request_id


class Protocol(Connection):
    """uvicorn's HTTP/1.1, which bounds neither the size of a head nor the time that it takes to arrive.

    Attributes:
        max_head: bytes of request line and headers; they are in memory before anybody can be asked for a key.
        head_seconds: from the connection, or from a head's first byte, to its last.
    """

    max_head: ClassVar[int] = 64 << 10
    head_seconds: ClassVar[float] = 30.0

    _head: int | None = 0  # bytes of the head that is arriving; None when it has arrived
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """And is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head; what follows one in the same read is let pass."""
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > self.max_head:
            self._refuse(HeadersTooLarge(f"request line and headers have more than {self.max_head} bytes"))
        elif self._forgotten():
            self._watch()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._watch()

    def on_headers_complete(self) -> None:
        """The last byte of its head."""
        self._head = None
        self._unwatch()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of its body."""
        super().on_message_complete()
        self._head = 0

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP."""
        self._refuse(MalformedRequest(msg))

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
        if (
            self.transport.is_closing()
            or self.pipeline
            or (under_way and (cycle.response_started or not cycle.more_body))
        ):
            self.transport.close()  # an earlier answer is on its way, and must not be mixed with this one
            return
        if under_way:  # what is wrong is this request's own body: its handler is told that nobody waits for it
            cycle.disconnected = True
            cycle.message_event.set()
        request_id = new_request_id()
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
