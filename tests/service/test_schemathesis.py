"""The OpenAPI document against the running service: whatever routes there are, requests made from it by the dozen."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case

from tests.service.conftest import Server

CONFIG: dict[str, Any] = {
    "request-timeout": 120,
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503, 504]},  # both are documented
        "positive_data_acceptance": {"enabled": False},  # to a schema all bytes are a file; most are no image
    },
}


@pytest.fixture(scope="module")
def described(tight: Server) -> Any:
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_url(f"{tight.url}/openapi.json", config=config)


@pytest.mark.slow
@schemathesis.pytest.from_fixture("described").parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation(case: Case) -> None:
    """Statuses, content types, headers and bodies are those of the document; nothing is a 500."""
    case.call_and_validate()
