"""Takes a request off the wire: a JSON document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from serving.limits import BadInput, TooLarge, UnsupportedType, field_errors, inline_refs

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upload(Generic[ParamsT]):
    """One request as it came: its validated body."""

    params: ParamsT


class Reader(Generic[ParamsT]):
    """FastAPI dependency that reads and checks one request."""

    def __init__(self, params: type[ParamsT], *, max_bytes: int) -> None:
        """Take documents of this model, up to this size."""
        self.params = params
        self.max_bytes = max_bytes

    async def __call__(self, request: Request) -> Upload[ParamsT]:
        """Return the request's document.

        Raises, in this order, TooLarge, UnsupportedType, BadInput and RequestValidationError.
        """
        body = await request.body()
        if len(body) > self.max_bytes:
            raise TooLarge
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json" and not content_type.endswith("+json"):
            raise UnsupportedType("Send application/json.")
        if not body:
            raise BadInput("Empty upload.")
        return self.check(body)

    def check(self, document: bytes) -> Upload[ParamsT]:
        """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
        try:
            return Upload(self.params.model_validate_json(document))
        except ValidationError as error:
            errors = field_errors(error)
            if errors[0]["type"] == "json_invalid":
                raise BadInput(f"The body is not JSON: {errors[0]['msg']}") from error
            raise RequestValidationError(errors) from error

    def example(self, example: Mapping[str, Any]) -> Upload[ParamsT]:
        """Return the upload that a request of this body makes."""
        return Upload(self.params(**example))

    def openapi(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the body for the OpenAPI document."""
        schema = inline_refs(self.params.model_json_schema())
        content = {"application/json": {"schema": schema, "example": example}}
        return {"requestBody": {"required": True, "content": content}}
