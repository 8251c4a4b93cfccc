"""Model Engine's contract: JSON in and out, as its forwarder asks for it."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serving.contracts.documents import (
    describe_document,
    load_json,
    off_the_loop,
    parse_document,
)
from serving.errors import RESPONSES, Busy, ErrorBody
from serving.limits import ModelRoute
from serving.requests import ParsedRequest, RequestParser, read_json
from serving.service import Service
from serving.streaming import EventStream

FULL = {"model": ErrorBody, "description": "As many requests wait as MAX_QUEUE_SIZE allows."}


class Route(ModelRoute):
    """A route that the forwarder asks: on a 429 it tries again elsewhere."""

    @staticmethod
    def error_form(
        error: Exception, status: int, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body as the forwarder wants them."""
        return 429 if isinstance(error, Busy) else status, body


def create_router(service: Service[Any], body: type[BaseModel]) -> APIRouter:
    """Return the routes that the forwarder asks; they answer with such a body."""
    router = APIRouter()
    model_router = APIRouter(route_class=Route)
    parse = DocumentParser(service.parse)
    responses = RESPONSES | {429: FULL}

    @router.get("/readyz", responses={503: RESPONSES[503]})
    async def readyz() -> dict[str, str]:
        """Readiness, for the forwarder: it sends requests from the first 200 on."""
        service.worker.check()
        return {"status": "ready"}

    @model_router.post(
        "/predict",
        response_model=body,
        responses=responses,
        openapi_extra=parse.openapi(),
    )
    async def predict(request: Request) -> Response:
        """Answer for one JSON document."""
        return await service.answer(request, parse, accept="application/json")

    if service.streams:

        @model_router.post(
            "/stream",
            response_class=EventStream,
            responses=responses,
            openapi_extra=parse.openapi(),
        )
        async def predict_stream(request: Request) -> Response:
            """Answer in parts: a server-sent event for each, as soon as the model has it."""
            return await service.stream(request, parse)

    router.include_router(model_router)
    return router


class DocumentParser:
    """Reads a request's document: its fields, or an object that has them under "args".

    The forwarder takes them out of "args"; where it is told not to, or where there is none, they
    come as they were sent to Model Engine.
    """

    def __init__(self, parse: RequestParser[Any]) -> None:
        self.parse = parse
        self.schema = describe_document(parse)
        self.wraps = "args" not in self.schema.get("properties", {})

    async def __call__(self, request: Request) -> ParsedRequest[Any]:
        """Return the request's content.

        Raises, in this order, TooLarge, UnsupportedType, BadInput and RequestValidationError.
        """
        return await off_the_loop(self.parse_body, await read_json(request))

    def parse_body(self, body: bytes) -> ParsedRequest[Any]:
        """Return the request that this JSON makes. Raises BadInput and RequestValidationError."""
        document = load_json(body)
        if self.wraps and isinstance(document, dict) and "args" in document:
            document = document["args"]
        return parse_document(self.parse, document)

    def openapi(self) -> dict[str, Any]:
        """Describe both forms of the body for the OpenAPI document."""
        wrapped = {"type": "object", "properties": {"args": self.schema}, "required": ["args"]}
        schema = {"anyOf": [self.schema, wrapped]} if self.wraps else self.schema
        content = {"application/json": {"schema": schema}}
        body = {"required": True, "content": content}
        return {"requestBody": body}
