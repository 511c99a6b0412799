"""What the service says of itself: its OpenAPI document, and its page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from service.errors import PROBLEMS
from tests.service.conftest import Server


@pytest.fixture(scope="module")
def schema(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = server.client.get("/openapi.json").json()
    return document


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield f"{method} {path}", operation


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_openapi_is_sound(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    assert schema["info"]["title"] == "TCM"
    operations = dict(_operations(schema))
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in schema["tags"]}
    for reference in _references(schema):
        assert reference.removeprefix("#/components/schemas/") in schema["components"]["schemas"]
    for name, operation in operations.items():
        assert set(operation["tags"]) <= tags, name
        assert operation["summary"], name
        assert all(response["description"] for response in operation["responses"].values()), name


def test_every_problem_of_every_route_is_documented(schema: dict[str, Any]) -> None:
    documented = set()
    for name, operation in _operations(schema):
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            media = response["content"]["application/problem+json"]
            assert media["schema"] == {"$ref": "#/components/schemas/Problem"}, name
            for code, example in media["examples"].items():
                assert PROBLEMS[code].status == int(status) == example["value"]["status"]
                documented.add(code)
    unseen = {"client-gone"}  # nobody sees it
    unseen |= {"method-not-allowed", "not-found"}  # no route
    assert documented >= PROBLEMS.keys() - unseen


def test_bodies_are_binary(schema: dict[str, Any]) -> None:
    binary = {"type": "string", "format": "binary"}
    encode, decode = (schema["paths"][path]["post"] for path in ("/v1/encode", "/v1/decode"))
    assert encode["requestBody"]["content"]["image/*"]["schema"] == binary
    assert encode["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"] == binary
    assert encode["responses"]["200"]["content"] == {"application/vnd.tcm": {"schema": binary}}
    assert decode["requestBody"]["content"]["application/vnd.tcm"]["schema"] == binary
    assert set(decode["responses"]["200"]["content"]) == {
        f"image/{name}" for name in ("png", "webp", "jpeg", "avif", "tiff")
    }


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := values.get(name))]
        self.ids |= {value} if (value := values.get("id")) else set()
        assert not any(name.startswith("on") or name == "style" for name in values), "the policy forbids it"


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    response = server.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = _Links()
    page.feed(response.text)
    for link in page.links:
        if link != "data:,":
            assert link.startswith("/")
            assert server.client.get(link).status_code == 200
    script = server.client.get("/static/app.js").text
    assert "http://" not in script
    assert "https://" not in script
    asked = {part.partition('"')[0] for part in script.split('$("')[1:]}
    assert asked <= page.ids


_OF_HTTP = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
_OF_BROWSERS = {"content-security-policy", "referrer-policy", "x-content-type-options", "x-frame-options"}


def test_every_header_of_an_answer_is_documented(
    server: Server, schema: dict[str, Any], photo_file: bytes, bitstream: bytes
) -> None:
    client = server.client
    kept = client.post("/v1/bitstreams", content=bitstream)
    address, etag = kept.headers["location"], f'"{kept.json()["id"]}"'
    picture = client.get(f"{address}/image")
    answers = [
        ("post /v1/encode", client.post("/v1/encode", content=photo_file)),
        ("post /v1/decode", client.post("/v1/decode", content=bitstream)),
        ("post /v1/decode", client.post("/v1/decode", content=b"nonsense")),
        ("post /v1/bitstreams", kept),
        ("get /v1/bitstreams/{id}", client.get(address)),
        ("get /v1/bitstreams/{id}", client.get(address, headers={"Range": "bytes=0-9"})),
        ("get /v1/bitstreams/{id}", client.get(address, headers={"Range": "bytes=99999999-"})),
        ("get /v1/bitstreams/{id}", client.get(address, headers={"If-None-Match": etag})),
        ("get /v1/bitstreams/{id}", client.get(address, headers={"If-Match": '"x"'})),
        ("get /v1/bitstreams/{id}/image", picture),
        ("get /v1/bitstreams/{id}/image", client.get(f"{address}/image", headers={"If-None-Match": "*"})),
        ("get /v1/models", client.get("/v1/models")),
        ("get /livez", client.get("/livez")),
    ]
    operations = dict(_operations(schema))
    assert len({answer.status_code for _, answer in answers}) > 5
    for name, answer in answers:
        described = operations[name]["responses"][str(answer.status_code)].get("headers", {})
        undescribed = set(answer.headers) - _OF_HTTP - _OF_BROWSERS - {header.lower() for header in described}
        assert not undescribed, (name, answer.status_code)
