"""Requests of every kind, good and bad, made of an endpoint's OpenAPI entry and an example."""

import json
import mimetypes
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conformance.fake_model import NUMBER

Request = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Arguments for `httpx.Client.post`, one set for each kind of request."""

    route: str
    field: str | None  # the form field that takes the file or files; None where the body is JSON
    several: bool
    valid: Request
    raw: Request | None  # a file as the whole body
    untyped: Request | None  # a file of no stated type
    empty: Request
    corrupt: Request | None  # None where only the model knows which files it can read
    wrong_type: Request | None  # None where all types are taken
    missing: Request
    too_large: Request  # by one byte, where MAX_UPLOAD_MB is 1

    @property
    def rejected(self) -> list[Request]:
        """The requests that are wrong, whatever the model says of them."""
        found = (self.empty, self.corrupt, self.wrong_type, self.missing)
        return [request for request in found if request]

    def document(self) -> Any:
        """Return the valid request as one JSON document, its files in base64."""
        if self.field is None:
            return self.valid["json"]
        files = [b64encode(content).decode() for _, (_, content, _) in self.valid["files"]]
        return {self.field: files if self.several else files[0], **self.valid["data"]}

    def numbered(self, number: int) -> Request:
        """Return the valid request with a number, which is in the answer too (`NUMBERED`)."""
        return self._with(lambda _: {NUMBER: number})

    def changed(self) -> Request:
        """Return the valid request with another value of its first field, be that valid or not."""
        if isinstance(items := self.valid.get("json"), list):
            return self.valid | {"json": _another(items)}
        return self._with(lambda fields: {name: _another(fields[name]) for name in [*fields][:1]})

    def _with(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Request:
        kind = "data" if self.field else "json"
        fields = self.valid[kind]
        if not isinstance(fields, dict):
            pytest.skip("the body is a bare list")
        return self.valid | {kind: fields | change(fields)}


def _another(value: Any) -> Any:
    """Return another value of the same type: numbers are halved, texts and lists reversed."""
    if isinstance(value, int | float):
        return type(value)(value / 2)
    if isinstance(value, str):
        with suppress(ValueError):  # in a form, numbers are texts
            return str(float(value) / 2)
    return value[::-1] if isinstance(value, str | list) else value


def make_samples(document: dict[str, Any], route: str, example: Any, folder: Path) -> Samples:
    """Make the requests of one valid example, whose files lie in the folder."""
    field, several = file_field(document, route)
    if field is None:
        return _json_samples(document, route, example)
    # A service that decodes nothing says which types of files it takes.
    form_entry = document["paths"][route]["post"]["requestBody"]["content"]["multipart/form-data"]
    taken = form_entry.get("encoding", {}).get(field, {}).get("contentType", "")
    wrong_type = "x-no/such" if taken else "text/plain"
    names = example[field] if several else [example[field]]
    params = {name: str(value) for name, value in example.items() if name != field}
    content_type = mimetypes.guess_type(names[0])[0] or "application/octet-stream"
    content_type = {"audio/x-wav": "audio/wav"}.get(content_type, content_type)
    contents = [(folder / name).read_bytes() for name in names]

    def form(content: bytes, content_type: str) -> Request:
        return {
            "url": route,
            "files": [(field, ("upload", content, content_type))],
            "data": params,
        }

    return Samples(
        route=route,
        field=field,
        several=several,
        valid={
            "url": route,
            "files": [(field, ("upload", content, content_type)) for content in contents],
            "data": params,
        },
        raw={
            "url": route,
            "content": contents[0],
            "params": params,
            "headers": {"Content-Type": content_type},
        },
        untyped=form(contents[0], "application/octet-stream"),
        empty=form(b"", content_type),
        corrupt=None if taken else form(b"This is no file of the kind. " * 100, content_type),
        wrong_type=None if "*/*" in taken else form(b"some text", wrong_type),
        missing={"url": route, "files": {"other": b"not the field's name"}, "data": params},
        too_large=form(contents[0].ljust(1024 * 1024 + 1, b"\0"), content_type),
    )


def _json_samples(document: dict[str, Any], route: str, example: Any) -> Samples:
    content = document["paths"][route]["post"]["requestBody"]["content"]
    schema = _resolve(document, content["application/json"]["schema"])

    def body(content: bytes, content_type: str = "application/json") -> Request:
        return {"url": route, "content": content, "headers": {"Content-Type": content_type}}

    return Samples(
        route=route,
        field=None,
        several=False,
        valid={"url": route, "json": example},
        raw=None,
        untyped=None,
        empty=body(b""),
        corrupt=body(b'{"'),
        wrong_type=body(b"{}", "text/plain"),
        missing=body(b"{}" if schema.get("required") or schema.get("type") == "array" else b"[]"),
        too_large=body(json.dumps(example).encode().ljust(1024 * 1024 + 1)),
    )


def file_field(document: dict[str, Any], route: str) -> tuple[str | None, bool]:
    """Return the form field that takes files, and whether it takes several."""
    content = document["paths"][route]["post"]["requestBody"]["content"]
    if "multipart/form-data" not in content:
        return None, False
    form = _resolve(document, content["multipart/form-data"]["schema"])
    for name, schema in form["properties"].items():
        items = schema.get("items", schema)
        if items.get("format") == "binary" or "contentMediaType" in items:
            return str(name), "items" in schema
    pytest.fail(f"The OpenAPI document names no file in the form of {route}.")


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference to one of the document's components."""
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def find_route(document: dict[str, Any], wanted: str | None, usual: str) -> str:
    """Return the inference route: the wanted one, the usual one, or the only one there is."""
    routes = [
        str(path)
        for path, methods in document["paths"].items()
        if "requestBody" in methods.get("post", {})
    ]
    if wanted is not None:
        route = "/" + wanted.removeprefix("/")
        if route in routes:
            return route
    elif usual in routes:
        return usual
    elif len(routes) == 1:
        return routes[0]
    pytest.fail(f"Choose the route to ask with --endpoint: {', '.join(routes) or 'there is none'}")
