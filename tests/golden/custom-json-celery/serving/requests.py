"""Takes a request off the wire: a JSON document."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Generic

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from serving.errors import BadInput, TooLarge, UnsupportedType
from serving.inputs import Input, ParamsT
from serving.limits import MAX_UPLOAD_BYTES
from serving.schemas import field_errors, inline_refs, is_finite

# What may be no number: nan, inf, 1e999, 400 digits, a text with escapes. Few documents have any.
SUSPICIOUS = re.compile(rb"nan|inf|\\u|e\+?[\d_]{3}|[\d_]{200}", re.IGNORECASE)
LARGE = 1024 * 1024  # bytes that take longer to parse than the event loop should stand still


@dataclass(frozen=True, slots=True)
class ParsedRequest(Generic[ParamsT]):
    """One request as it came: its validated body."""

    params: ParamsT

    def decode(self) -> list[Input[ParamsT]]:
        """Return what the model takes: one `Input`."""
        return [Input(self.params)]


class RequestParser(Generic[ParamsT]):
    """Reads and checks a request whose body is a JSON document of the model `params`."""

    def __init__(self, params: type[ParamsT]) -> None:
        self.params = params

    async def __call__(self, request: Request) -> ParsedRequest[ParamsT]:
        """Return the request's document.

        Raises, in this order, TooLarge, UnsupportedType, BadInput and RequestValidationError.
        """
        document = await read_json(request)
        if len(document) > LARGE:
            return await asyncio.to_thread(self.check, document)
        return self.check(document)

    def check(self, document: bytes) -> ParsedRequest[ParamsT]:
        """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
        params = self.validate(document)
        if SUSPICIOUS.search(document) and not is_finite(params.model_dump(exclude_unset=True)):
            raise BadInput("JSON has no NaN, no infinity, and no number beyond 1.79e308.")
        return ParsedRequest(params)

    def validate(self, document: bytes) -> ParamsT:
        """Return the parameters, NaN and infinity included. Raises as `check` does."""
        try:
            return self.params.model_validate_json(document)
        except ValidationError as error:
            errors = field_errors(error)
            if errors[0]["type"] == "json_invalid":
                why = errors[0]["msg"].replace("unexpected end of hex escape", "lone surrogate")
                raise BadInput(f"The body is not JSON: {why}") from error
            raise RequestValidationError(errors) from error

    def decode_example(self, example: Any) -> list[Input[ParamsT]]:
        """Return what the model takes of this body."""
        return [Input(self.params.model_validate(example))]

    def openapi(self, example: Any) -> dict[str, Any]:
        """Describe the body for the OpenAPI document."""
        schema = inline_refs(self.params.model_json_schema())
        content = {"application/json": {"schema": schema, "example": example}}
        return {"requestBody": {"required": True, "content": content}}


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


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()


def check_encoding(request: Request) -> None:
    """Reject a body that says it is compressed: nothing is unpacked. Raises UnsupportedType."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise UnsupportedType(f"Content-Encoding {encoding} is not taken: send the body unpacked.")
