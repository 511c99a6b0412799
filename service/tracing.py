"""OpenTelemetry traces: a span a request (FastAPI's own), and one below it for each of its stages.

Off unless the environment names a collector, in `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`;
the standard's other variables apply. Needs the extra `otlp`. When off, only OpenTelemetry's API is imported,
which FastAPI itself needs, and nothing is done.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import structlog
from fastapi.telemetry import TelemetryConfig
from opentelemetry import context, trace
from starlette.types import Scope

from model.stages import Stages
from service.metrics import version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger()

QUIET = {"/livez", "/readyz", "/startupz", "/healthz", "/v2/health/live", "/v2/health/ready", "/metrics"}
"""Paths that are asked for all day long: neither traced nor logged where all is well."""

OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""For FastAPI, which would record the bodies that fail validation."""

FLUSH_SECONDS = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SHOWN = {"model", "quality", "metadata", "timeout_ms"}  # of a query; others may be secrets, as signatures are


def asked_for() -> bool:
    """Whether the environment wants traces."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    return not disabled and exporter == "otlp" and any(os.environ.get(name) for name in _ENDPOINTS)


class Tracing:
    """What sends spans away, in the background.

    Raises:
        ImportError: the extra `otlp` is not installed.
    """

    def __init__(self) -> None:
        self._provider = _provider()
        self._tracer = self._provider.get_tracer("tcm", version())

    @property
    def telemetry(self) -> TelemetryConfig:
        """For FastAPI: its span of each request, and no other signal."""
        return OFF | {
            "tracing": True,
            "tracer_provider": self._provider,
            "operation_spans": False,
            "exclude": lambda scope: scope["path"] in QUIET,
        }

    def stages(self, request: trace.Span, stages: Stages) -> None:
        """Add the stages of a request, from the first beginning to the last end of each, to its span."""
        if not request.get_span_context().trace_flags.sampled:
            return
        parent = trace.set_span_in_context(request, context.Context())
        epoch = time.time_ns() - time.perf_counter_ns()
        for name, (start, end) in list(stages.spans.items()):  # a thread that nobody waits for may add to it
            span = self._tracer.start_span(name, parent, start_time=epoch + int(start * 1e9))
            span.set_attribute("tcm.stage.seconds", stages[name])  # without the stages inside it
            span.end(epoch + int(end * 1e9))

    async def close(self) -> None:
        """Send what waits, but let no collector that hangs hold the exit up."""
        sender = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sender.start()
        await asyncio.to_thread(sender.join, FLUSH_SECONDS)


def configured() -> Tracing | None:
    """Traces, where the environment wants them and they can be had."""
    if not asked_for():
        return None
    try:
        return Tracing()
    except ImportError as error:
        log.warning("no traces: pip install 'tcm-service[otlp]'", reason=str(error))
        return None


def current(scope: Scope) -> trace.Span | None:
    """FastAPI's span of the request in hand, if it is traced."""
    return trace.get_current_span() if scope.get("fastapi.telemetry") else None


def _provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Discreet(SpanProcessor):
        """Takes from a span's query what is not known to be harmless."""

        def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:  # noqa: ARG002
            query = (span.attributes or {}).get("url.query")
            if isinstance(query, str):
                given = parse_qsl(query, keep_blank_values=True)
                shown = [(name, value if name in _SHOWN else "REDACTED") for name, value in given]
                span.set_attribute("url.query", urlencode(shown))

    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({"service.version": version()} | ({} if named else {"service.name": "tcm"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(Discreet())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
