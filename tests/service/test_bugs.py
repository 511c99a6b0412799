"""A mistake of ours: a named error, told to the operator and not to the client, and over with the request."""

from __future__ import annotations

from service.headers import DEFAULTS
from tests.service.conftest import StartFaulty, assert_problem

PAGE = "https://pages.example"


def test_what_nobody_thought_of(start_faulty: StartFaulty, photo_file: bytes) -> None:
    server, faults = start_faulty(cors_origins=PAGE)
    with faults.during("bug"):
        answer = server.client.post("/v1/encode", content=photo_file, headers={"Origin": PAGE})
    problem = assert_problem(answer, 500, "internal-error")
    assert "a bug" not in answer.text
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-origin"] == PAGE  # or the page could not even read the status
    assert {name: answer.headers[name] for name in DEFAULTS} == DEFAULTS
    (line,) = server.lines("internal-error")
    assert "ZeroDivisionError" in str(line)
    assert line["request_id"] == problem["request_id"]
    assert server.metric("tcm_http_requests_total", code="500") == 1
    assert server.client.post("/v1/encode", content=photo_file).status_code == 200
