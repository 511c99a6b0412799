"""Logs as JSON, one line an event, on standard output; those of libraries too."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


def configure(level: str) -> None:
    """Set the process's logging up. Called once, by the command."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # the request_id of the request in hand
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stdout)
    lines = _Lines(handler)
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of clients' files is in their problems
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its tale of starting is told by ours


class _Lines:
    """Writes ours past `logging`, whose records would take half of the time that a refusal takes.

    As there, a line that cannot be written is lost and costs nothing else, and lines do not mix with the handler's.
    """

    def __init__(self, handler: logging.StreamHandler[TextIO]) -> None:
        self._handler = handler

    def msg(self, line: str) -> None:
        self._handler.acquire()
        try:
            with contextlib.suppress(OSError, ValueError):
                self._handler.stream.write(line + "\n")
                self._handler.stream.flush()
        finally:
            self._handler.release()

    debug = info = warning = error = critical = exception = fatal = msg
