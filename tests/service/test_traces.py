"""OpenTelemetry: what a collector receives, over real HTTP, of a real server."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.tracing import asked_for
from tests.service.conftest import MODEL, Server, start, wait_for

pytest.importorskip("opentelemetry.sdk", reason="the extra `otlp` is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def of(self, trace: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace_id.hex() == trace]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.services |= {
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny_file, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("traced")
    (folder / tiny_file.name).write_bytes(tiny_file.read_bytes())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        running = start(folder, model_dir=folder, default_model="tcm-tiny-mse-0.01", preload="none")
    yield running
    before = len(collector.spans)
    running.client.get("/problems")  # its span is sent when the server ends
    assert running.stop() == 0
    assert len(collector.spans) > before


def attributes(span: Span) -> dict[str, object]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_span_a_stage(traced: Server, collector: Collector, photo_file: bytes) -> None:
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{caller}-01", "X-Request-ID": "traced-1"}
    response = traced.client.post("/v1/encode?metadata=strip", content=photo_file, headers=headers)
    assert response.status_code == 200
    stages = {part.partition(";")[0].strip() for part in response.headers["server-timing"].split(",")}
    assert {"read_image", "queue", "g_a", "entropy"} <= stages
    wait_for(lambda: len(collector.of(trace)) > len(stages))
    spans = {span.name: span for span in collector.of(trace)}
    request = spans.pop("POST /v1/encode")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.parent_span_id.hex() == caller
    told = attributes(request)
    assert told["http.response.status_code"] == 200
    assert told["url.query"] == "metadata=strip"
    assert spans.keys() == stages
    for span in spans.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    order = sorted(spans, key=lambda name: spans[name].start_time_unix_nano)
    assert order.index("read_image") < order.index("queue") < order.index("g_a") < order.index("entropy")
    [line] = traced.requests("traced-1")
    assert line["trace_id"] == trace
    assert collector.services == {"tcm"}


def test_a_trace_of_our_own(traced: Server, collector: Collector) -> None:
    traced.client.get("/nowhere?signature=c2VjcmV0", headers={"X-Request-ID": "traced-2"})
    [line] = traced.requests("traced-2")
    wait_for(lambda: collector.of(str(line["trace_id"])))
    [span] = collector.of(str(line["trace_id"]))
    assert attributes(span)["http.response.status_code"] == 404
    assert attributes(span)["url.query"] == "signature=REDACTED"
    assert not span.parent_span_id


def test_what_is_not_traced(traced: Server, collector: Collector, photo_file: bytes) -> None:
    quiet, unsampled, after = (secrets.token_hex(16) for _ in range(3))
    traced.client.get("/livez", headers={"traceparent": f"00-{quiet}-{'1' * 16}-01"})
    headers = {"traceparent": f"00-{unsampled}-{'1' * 16}-00", "X-Request-ID": "traced-3"}
    assert traced.client.post("/v1/encode", content=photo_file, headers=headers).status_code == 200
    traced.client.get("/problems", headers={"traceparent": f"00-{after}-{'1' * 16}-01"})
    wait_for(lambda: collector.of(after))
    assert not collector.of(quiet)
    assert not collector.of(unsampled)
    [line] = traced.requests("traced-3")
    assert line["trace_id"] == unsampled


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_when_it_is_on(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool) -> None:
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_TRACES_EXPORTER",
        "OTEL_SDK_DISABLED",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asked_for() is expected


def test_a_collector_that_is_gone_does_no_harm(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = start(tmp_path, model_dir=tmp_path, preload="none")
    assert server.client.get("/v1/models").json()["models"][1]["name"] == MODEL
    assert server.stop() == 0
