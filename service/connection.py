"""What a connection may cost that sends or reads too slowly, or sends what is neither head nor body."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

log = structlog.get_logger()


class NotHttp(ValueError):
    """What a request has that none may have. The parser, which calls us, reports it as an error of its own."""


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which waits for ever for a client that does not read its answer.

    Attributes:
        read_seconds: how often a client that has not read all of its answer is looked at.
        read_rate: bytes a second that it must have read since; an answer stays in memory until it is read.
        linger_seconds: that the rest of a body may take once the request has been answered.
        max_framing: bytes in a row that are no body: chunk extensions, trailers.
        unread: bytes of answers that wait for their clients, of all connections of the process.
    """

    read_seconds: ClassVar[float] = 30.0
    read_rate: ClassVar[float] = 16 << 10
    linger_seconds: ClassVar[float] = 5.0
    max_framing: ClassVar[int] = 1 << 20
    unread: ClassVar[int] = 0

    _pace: asyncio.TimerHandle | None = None
    _linger: asyncio.TimerHandle | None = None
    _unread = 0
    _on_its_way = 0  # what was unread when the client was last looked at, with what the kernel holds
    _framing = 0
    _in_hand: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Any byte that the client has not read counts, not only what passes 64 KiB."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._in_hand = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        if self._in_hand and not self._in_hand.response_complete:  # uvicorn tells the one that came last
            self._in_hand.disconnected = True
            self._in_hand.message_event.set()
        _cancel(self._pace)
        _cancel(self._linger)
        self._count(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what may be neither body nor the end of a request."""
        self._framing += len(data)
        super().data_received(data)
        if self._framing > self.max_framing:
            log.info("connection cut", reason="too much that is no body")
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse a transfer coding that a proxy in front may read as another body than we do."""
        value = value.strip(b" \t")  # which the parser leaves at the end (RFC 9112, 5.1)
        if name.lower() == b"transfer-encoding" and value.lower() != b"chunked":
            raise NotHttp("a transfer coding other than chunked")
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of body."""
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._framing = 0
        _cancel(self._linger)
        self._linger = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer that did not wait for the whole body gives the rest a moment, then closes."""
        unfinished = self.cycle is not None and self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if unfinished and not self._linger:
            self._linger = self.loop.call_later(self.linger_seconds, self.transport.close)

    def pause_writing(self) -> None:
        """There is something that the client has not read."""
        super().pause_writing()
        self._count(self.transport.get_write_buffer_size())
        self._on_its_way = self._unread + self._in_the_kernel()
        self._pace = self.loop.call_later(self.read_seconds, self._look)

    def resume_writing(self) -> None:
        """It has read everything."""
        _cancel(self._pace)
        self._count(0)
        super().resume_writing()

    def _look(self) -> None:
        unread = self.transport.get_write_buffer_size()
        on_its_way = unread + self._in_the_kernel()
        if 0 <= self._on_its_way - on_its_way < self.read_rate * self.read_seconds:
            log.info("connection cut", reason="the client does not read its answer", unread=unread)
            self.transport.abort()
            return
        self._count(unread)
        self._on_its_way = on_its_way
        self._pace = self.loop.call_later(self.read_seconds, self._look)

    def _in_the_kernel(self) -> int:
        """Bytes that the client has not acknowledged: the kernel takes no more until megabytes of them are gone."""
        connection = self.transport.get_extra_info("socket")
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
        except (OSError, AttributeError):  # a system that does not tell
            return 0
        return int(count)

    def _count(self, unread: int) -> None:
        Connection.unread += unread - self._unread
        self._unread = unread


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()
