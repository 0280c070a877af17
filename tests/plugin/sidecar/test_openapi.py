"""The OpenAPI document says all that can be answered: requests made from it, answers held to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from plugin.sidecar.app import build_app
from plugin.sidecar.protocol import DEADLINE_HEADER
from plugin.sidecar.settings import load_settings
from tests.plugin.sidecar.fakes import Gated, serving

load_all_checks()

OPERATIONS = [
    ("POST", "/rerank"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "negative_data_rejection",
    )
]
STATUSES = {"200", "400", "401", "408", "413", "422", "429", "499", "500", "503"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    gated = Gated()
    gated.open.set()
    with serving(build_app(gated, load_settings())) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_answer_is_in_the_document(
    client: httpx.Client, document: dict[str, Any], data: st.DataObject
) -> None:
    api = schemathesis.openapi.from_dict(document)
    operation = data.draw(st.sampled_from(OPERATIONS))
    mode = data.draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
    case = data.draw(api[operation[1]][operation[0]].as_strategy(generation_mode=mode))
    case.call_and_validate(base_url=str(client.base_url), checks=CHECKED)


def test_every_status_is_documented(document: dict[str, Any]) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == STATUSES
        error = "CohereError" if path != "/rerank" else "ErrorResponse"
        for status, response in responses.items():
            assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))
            if status not in ("200", "499"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{error}"}
    assert set(document["paths"]) == {
        *("/livez", "/readyz", "/health", "/metrics"),
        *("/rerank", "/v1/rerank", "/v2/rerank"),
    }
    assert set(document["paths"]["/readyz"]["get"]["responses"]) >= {"200", "503"}


def test_headers_and_keys_are_documented(document: dict[str, Any]) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        search = document["paths"][path]["post"]
        headers = {each["name"] for each in search["parameters"] if each["in"] == "header"}
        assert headers == {DEADLINE_HEADER, "X-Opaque-Id", "traceparent", "tracestate"}
        assert not any(each.get("required") for each in search["parameters"])
        (scheme,), none = search["security"]
        assert none == {}
        assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    assert "security" in document["paths"]["/metrics"]["get"]
    assert "security" not in document["paths"]["/livez"]["get"]
