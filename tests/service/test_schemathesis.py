"""The OpenAPI document against the running service: whatever routes there are, requests made from it by the dozen."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from tests.service.conftest import Server

CONFIG: dict[str, Any] = {
    "request-timeout": 120,
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503, 504]},  # both are documented
        "positive_data_acceptance": {"enabled": False},  # to a schema all bytes are a file; most are no image
    },
}
EXAMPLES = 12


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as-it-says", "otherwise"])
def test_every_operation(tight: Server, mode: GenerationMode) -> None:
    """Statuses, content types, headers and bodies are those of the document; nothing is a 500."""
    config = schemathesis.Config.from_dict(CONFIG)
    api = schemathesis.openapi.from_url(f"{tight.url}/openapi.json", config=config)
    failures, tried = [], 0
    for found in api.get_all_operations():
        operation = found.ok()
        if mode.is_negative and not (operation.query or operation.path_parameters or operation.body):
            continue  # nothing to get wrong

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(mode))
        def call(case: Case) -> None:
            case.call_and_validate()

        try:
            call()
        except Unsatisfiable:
            continue  # a parameter that takes any text cannot be wrong
        except Exception as failure:  # noqa: BLE001 - all of them are shown together
            failures.append(f"{operation.label}: {failure}")
        tried += 1
    assert not failures, "\n\n".join(failures)
    assert tried
