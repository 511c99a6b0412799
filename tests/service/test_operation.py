"""Probes, metrics, identity, logs: what whoever operates it sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.service.conftest import MODEL, Server, assert_problem, start, wait_for

PROBES = ["/livez", "/readyz", "/startupz", "/healthz", "/v2/health/live", "/v2/health/ready"]


def test_probes_tell_the_truth_at_the_start(server: Server) -> None:
    assert server.first_answers["/livez"].status_code == 200
    for path in ("/readyz", "/startupz", "/v2/health/ready"):
        assert_problem(server.first_answers[path], 503, "not-ready")


@pytest.mark.parametrize("path", PROBES)
def test_probes_of_a_ready_service(server: Server, path: str) -> None:
    for response in (server.client.get(path), server.client.head(path)):
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"


def test_the_trial_was_made(server: Server) -> None:
    trial = server.lines("model tried")[0]
    assert trial["model"] == MODEL
    assert float(str(trial["psnr"])) > 18


def test_requests_are_counted_by_route_template(server: Server, photo_file: bytes) -> None:
    count = "tcm_http_requests_total"
    before = server.metric(count, route="/v1/encode", code="200", method="POST")
    unmatched = server.metric(count, route="unmatched", code="404")
    server.client.post("/v1/encode", content=photo_file)
    for i in range(3):
        server.client.get(f"/nowhere/{i}")
    server.client.get("/problems/not-found")
    assert server.metric(count, route="/v1/encode", code="200", method="POST") == before + 1
    assert server.metric(count, route="unmatched", code="404") == unmatched + 3
    assert server.metric(count, route="/problems/{code}") >= 1
    for path, route in (("/static/app.js", "/static/{file}"), ("/openapi.json", "/openapi.json")):
        assert server.client.get(path).status_code == 200
        wait_for(lambda r=route: server.metric(count, route=r, code="200") >= 1)  # a file is closed first, on a thread
    assert server.metric("tcm_http_request_duration_seconds_count", route="/v1/encode") >= 1


def test_methods_do_not_multiply_labels(server: Server) -> None:
    assert server.client.request("PROPFIND", "/livez").status_code == 405
    assert server.metric("tcm_http_requests_total", method="other") >= 1
    assert server.metric("tcm_http_requests_total", method="PROPFIND") == 0


def test_work_is_measured(server: Server, photo_file: bytes, bitstream: bytes) -> None:
    bytes_in = server.metric("tcm_input_bytes_total")
    bytes_out = server.metric("tcm_output_bytes_total")
    server.client.post("/v1/encode", content=photo_file)
    server.client.post("/v1/decode", content=bitstream)
    assert server.metric("tcm_input_bytes_total") == bytes_in + len(photo_file) + len(bitstream)
    assert server.metric("tcm_output_bytes_total") > bytes_out + len(bitstream)
    assert server.metric("tcm_encoded_bits_per_pixel_count", model=MODEL) >= 1
    for op, stage in (("encode", "g_a"), ("encode", "read_image"), ("decode", "g_s"), ("decode", "write_image")):
        assert server.metric("tcm_stage_duration_seconds_count", op=op, stage=stage) >= 1
    assert server.metric("tcm_queue_wait_seconds_count") >= 2
    assert server.metric("tcm_queue_depth") == 0
    assert server.metric("tcm_queue_pixels") == 0
    assert server.metric("tcm_models_loaded") >= 1
    assert server.metric("tcm_device_memory_bytes", device="cpu") > 30e6
    assert server.metric("tcm_model_load_duration_seconds_count") >= 1
    assert server.metric("tcm_build_info") == 1


def test_openmetrics_is_had_for_the_asking(server: Server) -> None:
    asked = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert "openmetrics" in server.client.get("/metrics", headers=asked).headers["content-type"]
    assert server.client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_a_request_id_is_echoed(server: Server) -> None:
    for path, status in (("/livez", 200), ("/nowhere", 404)):
        response = server.client.get(path, headers={"X-Request-ID": "my-id_7"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "my-id_7")


@pytest.mark.parametrize("given", ["", "has space", "x" * 65, "é".encode(), 'quo"te', "a;b"])
def test_an_unfit_request_id_is_replaced(server: Server, given: str | bytes) -> None:
    made = server.client.get("/livez", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_one_line_a_request(server: Server, photo_file: bytes) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "logged-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01", "Authorization": "secret"}
    response = server.client.post("/v1/encode?model=" + MODEL, content=photo_file, headers=headers)
    [line] = server.requests("logged-1")
    assert line["trace_id"] == trace
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/encode", 200)
    assert (line["bytes_in"], line["bytes_out"]) == (len(photo_file), len(response.content))
    assert line["model"] == MODEL
    assert float(str(line["duration_ms"])) > 1
    assert "secret" not in str(server.log())


def test_a_problem_is_named_in_the_log(server: Server) -> None:
    server.client.post("/v1/encode", headers={"X-Request-ID": "logged-2", "traceparent": "00-zz-1-01"})
    [line] = server.requests("logged-2")
    assert (line["status"], line["problem"]) == (400, "empty-body")
    assert "body" in str(line["detail"])
    assert "trace_id" not in line


def test_models(server: Server) -> None:
    models = server.client.get("/v1/models").json()["models"]
    assert [m["name"] for m in models] == ["tcm-xs-mse-0.0035", "tcm-xs-mse-0.013", "tcm-xs-mse-0.05"]
    assert [m["lambda"] for m in models] == [0.0035, 0.013, 0.05]
    assert [m["quality"] for m in models] == [2, 4, 6]
    middle = models[1]
    assert middle["default"]
    assert middle["loaded"]
    assert middle["embedded"]
    assert middle["device"] == "cpu"
    assert middle["memory"] > 30e6
    assert middle["parameters"] > 8e6
    assert re.fullmatch("[0-9a-f]{12}", middle["fingerprint"])


def test_the_bench_of_what_the_service_takes_serves(tmp_path: Path, photo_file: bytes) -> None:
    """It once asked for a method of the codec that had gone, and measured errors."""
    program = [str(Path(__file__).parents[2] / "bench" / "no_codec.py")]
    server = start(tmp_path, program=program, ready=False, model_dir=tmp_path / "models")
    bitstream = server.client.post("/v1/encode", content=photo_file).raise_for_status().content
    assert server.client.post("/v1/decode", content=bitstream).raise_for_status().headers["Content-Type"] == "image/png"
    assert server.stop() == 0
