"""Requests that are JSON documents, for contracts that carry files in base64."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import from_json

from serving.errors import BadInput, TooLarge, UnsupportedType
from serving.inputs import ParamsT, Upload
from serving.limits import MAX_UPLOAD_BYTES
from serving.requests import ParsedRequest, RequestParser, check_encoding, essence

LARGE = 1024 * 1024  # bytes that take longer to parse than the event loop should stand still
URL_SAFE = bytes.maketrans(b"-_", b"+/")

T = TypeVar("T")


async def read_json(request: Request) -> bytes:
    """Return a body of JSON. Raises, in this order, TooLarge, UnsupportedType and BadInput."""
    body = await request.body()
    if len(body) > MAX_UPLOAD_BYTES:
        raise TooLarge
    check_encoding(request)
    content_type = essence(request.headers.get("content-type"))
    is_json = content_type in ("", "application/json", "text/json")
    if not is_json and not content_type.endswith("+json"):
        raise UnsupportedType("Send application/json.")
    if not body:
        raise BadInput("Empty upload.")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadInput("The body begins with a byte order mark: JSON is UTF-8 without one.")
    return body


async def off_the_loop(function: Callable[[bytes], T], body: bytes) -> T:
    """Return what a function makes of a body; of a large one in another thread."""
    return await asyncio.to_thread(function, body) if len(body) > LARGE else function(body)


def load_json(body: bytes) -> Any:
    """Return what the JSON says. Raises BadInput."""
    try:
        return from_json(body)
    except ValueError as error:
        raise BadInput(f"The body is not JSON: {error}") from error


def wrong(field: tuple[str, ...], message: str) -> RequestValidationError:
    """Return the error for a field that cannot be what it is."""
    item = {"type": "value_error", "loc": ("body", *field), "msg": message}
    return RequestValidationError([item])


def parse_json(parse: RequestParser[ParamsT], body: bytes) -> ParsedRequest[ParamsT]:
    """Return the request that this JSON makes. Raises what `parse_document` does."""
    return parse_document(parse, load_json(body))


def parse_document(parse: RequestParser[ParamsT], document: Any) -> ParsedRequest[ParamsT]:
    """Return the request that a JSON document makes; files are in base64, under their field.

    Raises RequestValidationError, TooLarge and BadInput.
    """
    if not isinstance(document, dict):
        raise wrong((), "Input should be an object")
    fields = dict(document)
    given = fields.pop(parse.field, None)
    several = parse.decoder.several
    texts = given if several or given is None else [given]
    if texts is not None and not is_list_of_texts(texts):
        kind = "a list of base64 strings" if several else "a base64 string"
        raise wrong((parse.field,), f"Input should be {kind}")
    try:
        files = [decode_base64(text) for text in texts or ()]
    except ValueError as error:
        raise wrong((parse.field,), f"Input should be base64: {error}") from error
    return parse.check(files, fields)


def is_list_of_texts(value: Any) -> bool:
    """Tell whether a JSON value is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def decode_base64(text: str) -> Upload:
    """Return the file that a text holds: in base64 or its url-safe form, or as a data URI.

    Lines may be broken, and the padding at the end may be missing. A space is an error: it may have
    been a plus, which some clients' forms change. Raises ValueError.
    """
    content_type = None
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data URI has to begin with data:TYPE;base64,")
        content_type = head[len("data:") : -len(";base64")]
        text = unquote(text)
    encoded = text.strip().encode("ascii", "replace").translate(URL_SAFE, b"\r\n")
    content = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    return Upload(content, content_type=content_type or None)


def describe_document(parse: RequestParser[Any]) -> dict[str, Any]:
    """Return the schema of a request that is a JSON document."""
    text = {"type": "string", "contentEncoding": "base64"}
    files = {"type": "array", "items": text, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            parse.field: files if parse.decoder.several else text,
            **parse.schema.get("properties", {}),
        },
        "required": [parse.field, *parse.schema.get("required", [])],
    }
