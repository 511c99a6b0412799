"""The server's own life: how it stops when told to, and how it ends when it can work no more."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn

from service import logs
from service.context import Context

log = structlog.get_logger()

EXIT_UNFIT = 71
"""Exit code of a process of which a model has failed its trial: whoever asks no readiness probe must find nobody."""
EXIT_LOST = 70
"""Exit code of a process whose work has stopped (`watchdog.py`); one whose event loop hangs ends with 1."""

_SECONDS_TO_SPEAK = 1.0  # for a connection that was made just before the end
_LAST_SECONDS = 3.0  # in which /livez is seen to fail, and those who wait are told


class Server(uvicorn.Server):
    """uvicorn's server with two ends of its own.

    SIGTERM: readiness off at once, requests are still served for `drain_seconds`, then nobody is let in, what has
    begun is finished, and the exit code is 0. SIGINT: the same, at once. A second signal ends it on the spot.
    Work that hangs: `/livez` fails, whoever waits is told, the stacks of all threads go to standard error, exit code
    70. A model that failed its trial: exit code 71.
    """

    def __init__(self, config: uvicorn.Config, here: Context) -> None:
        super().__init__(config)
        self._here = here
        self._stop_at: float | None = None
        self._exit_at: float | None = None
        self._exit_code = EXIT_LOST
        self._told = False
        self._unwatched = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """A signal has come."""
        if self._here.health.stopping:
            end(128 + sig)
        self._here.health.stopping = True
        self._stop_at = time.monotonic() + (self._here.settings.drain_seconds if sig == signal.SIGTERM else 0)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: look whether all is well, and whether it is time to stop."""
        here = self._here
        if counter % 10 == 0:
            self._watch_event_loop(here.settings.hang_seconds)
        lost = here.watchdog.lost()
        if lost and self._exit_at is None:
            self._exit_at = time.monotonic() + _LAST_SECONDS
            log.critical("work has stopped, the process ends", reason=lost)
            here.health.lost = here.admission.lost = lost
            here.scheduler.give_up(lost)
        if here.admission.unfit and self._exit_at is None:
            self._exit_at, self._exit_code = time.monotonic() + _LAST_SECONDS, EXIT_UNFIT
            log.critical("nothing that it does could be trusted, the process ends", reason=here.admission.unfit)
        if self._exit_at and time.monotonic() > self._exit_at:
            if self._exit_code == EXIT_LOST:
                faulthandler.dump_traceback()
            end(self._exit_code)
        if here.health.stopping and not self._told:
            self._told = True
            log.info("draining", seconds=here.settings.drain_seconds, inside=len(here.admission))
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody in any more, and finish what has begun. What hangs even then is cut off."""
        self._watch_event_loop((self.config.timeout_graceful_shutdown or 0) + self._here.settings.hang_seconds)
        await self._close_doors(sockets or [])
        self._here.admission.closed = True
        await super().shutdown(sockets)
        log.info("stopped")
        faulthandler.cancel_dump_traceback_later()

    def _watch_event_loop(self, seconds: float) -> None:
        """End the process with code 1 and every thread's stack, unless called again in time; needs no GIL for that."""
        try:
            faulthandler.dump_traceback_later(seconds, exit=True)
        except RuntimeError as error:  # it is a thread, of which the machine may have none to give
            if not self._unwatched:
                log.error("the event loop is not watched", reason=str(error))
            self._unwatched = True
        else:
            self._unwatched = False

    async def _close_doors(self, sockets: list[socket.socket]) -> None:
        """Close the listeners without losing whom they have let in: in the kernel's queue, or about to send."""
        loop = asyncio.get_running_loop()
        connections = [connection for listener in sockets for connection in _waiting(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        for connection in connections:
            await loop.connect_accepted_socket(self._protocol, connection)
        if self._here.settings.drain_seconds:
            await asyncio.sleep(_SECONDS_TO_SPEAK)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that the kernel has accepted, and nobody else yet; closing the listener would reset them."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # nobody waits, or there is no descriptor for who does
        while True:
            yield listener.accept()[0]


def end(code: int) -> None:
    """Now: threads that hang would keep an orderly exit from ever coming."""
    try:
        logs.settle()
    finally:
        os._exit(code)
