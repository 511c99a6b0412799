"""The outermost layer: a request gets its id, and leaves one log line and its numbers, whatever happened to it."""

from __future__ import annotations

import time

import structlog
from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.identity import REQUEST_ID_HEADER, Record, request_id, trace_id
from service.last_resort import LastResort
from service.metrics import Metrics
from service.tracing import QUIET, Tracing, current

log = structlog.get_logger()

UNMATCHED = "unmatched"
# any other method shares one label, which must not grow with what clients invent
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Observe:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app, self.metrics, self.tracing = LastResort(app), metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, and account for it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        record = Record(request_id(headers), trace_id(headers))
        span = current(scope) if self.tracing else None
        if span:
            record.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            span.set_attribute("http.request.header.x-request-id", [record.request_id])
        scope.setdefault("state", {})["record"] = record
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        if record.trace_id:
            structlog.contextvars.bind_contextvars(trace_id=record.trace_id)
        status = 0

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = record.request_id
            if scope["method"] != "HEAD":  # whose body the server drops
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, identified)
        finally:
            self._account(scope, record, status, time.perf_counter() - start)
            if self.tracing and span:
                self.tracing.stages(span, record.stages)

    def _account(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", record.route or UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        code = record.problem.status if record.problem else status
        self.metrics.requests.labels(route, method, code).inc()
        self.metrics.request_duration.labels(route, method).observe(seconds)
        self.metrics.input_bytes.inc(record.bytes_in)
        self.metrics.output_bytes.inc(record.bytes_out)
        if record.problem and record.problem.rejects and route not in QUIET:  # a probe asks for nothing
            self.metrics.rejected.labels(record.problem.code).inc()
        line = {
            "method": method,
            "route": route,
            "status": code,
            "duration_ms": round(seconds * 1000, 1),
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "client": scope["client"][0] if scope.get("client") else None,
            "key": record.key.name if record.key else None,
            "key_id": record.key.id if record.key else None,
            "model": record.model,
            "bitstream": record.bitstream,
            "problem": record.problem.code if record.problem else None,
            "detail": record.problem.detail if record.problem else None,
        }
        write = log.debug if route in QUIET and code < 400 else log.info
        write("request", **{key: value for key, value in line.items() if value is not None})
