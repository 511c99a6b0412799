"""Logs as JSON, one line an event, on standard output; those of libraries too."""

from __future__ import annotations

import atexit
import logging
import os
import sys

import structlog
from structlog.typing import Processor

from service.log_lines import LogLines

_lines: list[LogLines] = []


def configure(level: str) -> None:
    """Set the process's logging up. Called once, by the command."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # the request_id of the request in hand
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    lines = LogLines(sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY))
    _lines.append(lines)
    atexit.register(settle)
    handler = logging.StreamHandler(lines)
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
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its starting and its refusals are told by ours


def settle(seconds: float = 1.0) -> None:
    """Give what was logged so far a moment to be written, before the process ends."""
    for lines in _lines:
        lines.settle(seconds)
