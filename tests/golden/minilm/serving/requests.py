"""Takes a request off the wire: a JSON document."""

from dataclasses import dataclass
from typing import Any, Generic

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from serving.errors import BadInput, TooLarge, UnsupportedType
from serving.inputs import Input, ParamsT
from serving.limits import MAX_UPLOAD_BYTES
from serving.schemas import field_errors, inline_refs


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
        return self.check(await read_json(request))

    def check(self, document: bytes) -> ParsedRequest[ParamsT]:
        """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
        try:
            return ParsedRequest(self.params.model_validate_json(document))
        except ValidationError as error:
            errors = field_errors(error)
            if errors[0]["type"] == "json_invalid":
                raise BadInput(f"The body is not JSON: {errors[0]['msg']}") from error
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
    content_type = essence(request.headers.get("content-type"))
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedType("Send application/json.")
    if not body:
        raise BadInput("Empty upload.")
    return body


def essence(content_type: str | None) -> str:
    """Return a content type without its parameters: "image/png; q=1" is "image/png"."""
    return (content_type or "").partition(";")[0].strip().lower()
