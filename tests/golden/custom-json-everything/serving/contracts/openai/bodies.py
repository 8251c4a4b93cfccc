"""Reads a request: a body of JSON, of the type that its route takes."""

import asyncio
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from serving.contracts.openai.requests import ModelRequest
from serving.errors import BadInput
from serving.requests import read_json
from serving.schemas import field_errors

LARGE = 1024 * 1024  # bytes that take longer to parse than the event loop should stand still

RequestT = TypeVar("RequestT", bound=ModelRequest)


async def read(kind: type[RequestT], request: Request) -> RequestT:
    """Return the request of this kind.

    Raises TooLarge, UnsupportedType, BadInput, RequestValidationError and Refused.
    """
    body = await read_json(request)
    if len(body) > LARGE:
        asked = await asyncio.to_thread(parse, kind, body)
    else:
        asked = parse(kind, body)
    asked.check_model()
    return asked


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = field_errors(error)
        if errors[0]["type"] == "json_invalid":
            raise BadInput(f"The body is not JSON: {errors[0]['msg']}") from error
        raise RequestValidationError(errors) from error
