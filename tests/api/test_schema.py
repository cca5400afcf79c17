"""Requests that are made from the OpenAPI document, right ones and wrong ones: none breaks the hub."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from notifications.api.methods import METHODS
from tests.conftest import API_KEY
from tests.servers import Hub

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = {GenerationMode.POSITIVE: 40, GenerationMode.NEGATIVE: 10}


@pytest.fixture(scope="module")
def document(hub: Hub) -> Any:
    """The OpenAPI document of a running hub, with no other fields than it names: they would be nearly all."""
    found = requests.get(f"{hub.url}/api/openapi.json", timeout=10).json()
    for shape in found["components"]["schemas"].values():
        for choice in shape.get("oneOf", [shape]):
            choice["additionalProperties"] = False
    for path in found["paths"].values():
        for body in path["post"]["requestBody"]["content"].values():
            del body["example"]  # or it would be asked again and again
    return schemathesis.openapi.from_dict(found)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Connections that are kept open, with a key."""
    with requests.Session() as kept:
        kept.headers["X-API-Key"] = API_KEY
        yield kept


def aim(request: Any) -> None:
    """Make a request one that gets far: about topics that are declared, somebody who is named, and data that is given.

    What a method does not know is ignored.
    """
    if not isinstance(request, dict):
        return
    if isinstance(commands := request.get("commands"), list):
        for command in commands:
            for inner in command.values() if isinstance(command, dict) else ():
                aim(inner)
    if isinstance(name := request.get("channel"), str):
        request["channel"] = f"open:{len(name)}"
    if isinstance(names := request.get("channels"), list):
        request["channels"] = [f"open:{len(name)}" if isinstance(name, str) else name for name in names]
    for field in ("b64data", "b64info"):
        if isinstance(text := request.get(field), str):
            request[field] = base64.b64encode(json.dumps(text).encode()).decode()
    request["user"] = request.get("user") or "7"
    request.setdefault("data", 1)


@pytest.mark.parametrize("mode", EXAMPLES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("method", METHODS)
def test_every_answer_is_as_documented(
    hub: Hub, document: Any, session: requests.Session, method: str, mode: GenerationMode
) -> None:
    asked = 0

    @settings(
        max_examples=EXAMPLES[mode],
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=document[f"/api/{method}"]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal asked
        asked += 1
        aim(case.body)
        response = case.call_and_validate(base_url=hub.url, session=session, checks=CHECKS)
        assert '"code":100,' not in response.text  # a failure that is answered with 200

    ask()

    assert asked >= EXAMPLES[mode] // 2
