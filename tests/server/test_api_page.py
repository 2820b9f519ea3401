"""schemathesis against ``/openapi.json``: whatever the page allows, and what it does not, gets no status 500."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="the API page is checked with schemathesis")
hypothesis = pytest.importorskip("hypothesis", reason="schemathesis draws requests with hypothesis")

PATHS = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/models",
    "/v1/models/{name}",
    "/health",
    "/metrics",
}


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_page_has_every_endpoint(schema):
    assert {operation.ok().path for operation in schema.get_all_operations()} >= PATHS


def test_no_request_gets_a_500(schema):
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

    settings = hypothesis.settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    statuses = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings
        @hypothesis.given(case=operation.as_strategy())
        def check(case):
            if isinstance(case.body, dict):
                case.body.pop("model", None)  # almost no text is the name of a model
            response = case.call(timeout=120)
            statuses.add(response.status_code)
            case.validate_response(
                response, checks=[not_a_server_error, status_code_conformance, content_type_conformance]
            )

        check()
    assert {200, 400} <= statuses and not statuses & set(range(500, 600))
