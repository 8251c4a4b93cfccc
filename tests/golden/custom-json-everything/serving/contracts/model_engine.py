"""Model Engine's contract: JSON in and out, as its forwarder asks for it."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import from_json

from serving.contracts.core import Core
from serving.limits import RESPONSES, BadInput, ErrorBody, TooLarge, UnsupportedType, inline_refs
from serving.requests import Upload
from serving.streaming import EventStream, event_stream

FULL = {"model": ErrorBody, "description": "As many requests wait as MAX_QUEUE_SIZE allows."}


def create_router(core: Core[Any]) -> APIRouter:
    """Return the routes that the forwarder asks."""
    router = APIRouter()
    reader = Reader(core)
    responses = RESPONSES | {429: FULL}

    @router.get("/readyz", responses={503: RESPONSES[503]})
    async def readyz() -> dict[str, str]:
        """Readiness, for the forwarder: it sends requests from the first 200 on."""
        core.worker.check()
        return {"status": "ready"}

    @router.post(
        "/predict",
        response_model=core.body,
        responses=responses,
        openapi_extra=reader.openapi(),
    )
    async def predict(request: Request) -> Response:
        """Answer for one JSON document."""
        core.worker.admit()
        upload = await reader(request)
        body = await core.answer(upload, core.encode, request.state.is_disconnected)
        return Response(body, media_type="application/json")

    if core.streams:

        @router.post(
            "/stream",
            response_class=EventStream,
            responses=responses,
            openapi_extra=reader.openapi(),
        )
        async def predict_stream(request: Request) -> Response:
            """Answer in parts: a server-sent event for each, as soon as the model has it."""
            core.worker.admit()
            upload = await reader(request)
            parts = core.stream(upload, core.encode, request.state.is_disconnected)
            return await event_stream(parts, request)

    return router


class Reader:
    """Reads a request's document: its fields, or an object that has them under "args".

    The forwarder takes them out of "args"; where it is told not to, or where there is none, they
    come as they were sent to Model Engine.
    """

    def __init__(self, core: Core[Any]) -> None:
        self.core = core
        self.schema = inline_refs(core.read.params.model_json_schema())
        self.wraps = "args" not in self.schema.get("properties", {})

    async def __call__(self, request: Request) -> Upload[Any]:
        """Return the request's content.

        Raises, in this order, TooLarge, UnsupportedType, BadInput and RequestValidationError.
        """
        body = await request.body()
        if len(body) > self.core.read.max_bytes:
            raise TooLarge
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json" and not content_type.endswith("+json"):
            raise UnsupportedType("Send application/json.")
        if not body:
            raise BadInput("Empty upload.")
        try:
            document = from_json(body)
        except ValueError as error:
            raise BadInput(f"The body is not JSON: {error}") from error
        if self.wraps and isinstance(document, dict) and "args" in document:
            document = document["args"]
        return self.core.take(document)

    def openapi(self) -> dict[str, Any]:
        """Describe both forms of the body for the OpenAPI document."""
        plain = self.schema
        wrapped = {"type": "object", "properties": {"args": plain}, "required": ["args"]}
        schema = {"anyOf": [plain, wrapped]} if self.wraps else plain
        content = {"application/json": {"schema": schema}}
        return {"requestBody": {"required": True, "content": content}}
