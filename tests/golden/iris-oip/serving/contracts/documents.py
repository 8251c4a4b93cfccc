"""Requests that are JSON documents, for contracts that carry files in base64."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json

from serving.errors import BadInput
from serving.inputs import ParamsT
from serving.requests import ParsedRequest, RequestParser
from serving.schemas import inline_refs

LARGE = 1024 * 1024  # bytes that take longer to parse than the event loop should stand still
ANYTHING = TypeAdapter[Any](Any, config=ConfigDict(ser_json_inf_nan="constants"))

T = TypeVar("T")


async def off_the_loop(function: Callable[[bytes], T], body: bytes) -> T:
    """Return what a function makes of a body; of a large one in another thread."""
    return await asyncio.to_thread(function, body) if len(body) > LARGE else function(body)


def load_json(body: bytes) -> Any:
    """Return what the JSON says. Raises BadInput."""
    try:
        return from_json(body)
    except ValueError as error:
        raise BadInput(f"The body is not JSON: {error}") from error


def parse_json(parse: RequestParser[ParamsT], body: bytes) -> ParsedRequest[ParamsT]:
    """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
    return parse.check(body)


def parse_document(parse: RequestParser[ParamsT], document: Any) -> ParsedRequest[ParamsT]:
    """Return the request that a JSON document makes. Raises BadInput and RequestValidationError."""
    return parse.check(ANYTHING.dump_json(document))


def describe_document(parse: RequestParser[Any]) -> dict[str, Any]:
    """Return the schema of a request that is a JSON document."""
    return inline_refs(parse.params.model_json_schema())
