"""Requests that are JSON documents, for contracts that carry files in base64."""

from typing import Any

from pydantic import ConfigDict, TypeAdapter

from serving.inputs import ParamsT
from serving.requests import ParsedRequest, RequestParser

ANYTHING = TypeAdapter[Any](Any, config=ConfigDict(ser_json_inf_nan="constants"))


def parse_document(parse: RequestParser[ParamsT], document: Any) -> ParsedRequest[ParamsT]:
    """Return the request that a JSON document makes. Raises RequestValidationError."""
    return parse.check(ANYTHING.dump_json(document))
