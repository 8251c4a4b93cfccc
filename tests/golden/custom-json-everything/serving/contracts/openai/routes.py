"""OpenAI's API: a route for each of the methods that `Model` has for it.

What the API has beside these is 404, in its own form of errors.
"""

import asyncio
import base64
import json
import math
import struct
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from serving.actions import Action
from serving.contracts.openai.answers import (
    ChatCompletion,
    ChatForm,
    Completion,
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    Form,
    ModelCard,
    ModelList,
    count,
    in_chunks,
    join,
)
from serving.contracts.openai.bodies import read
from serving.contracts.openai.calls import Generation
from serving.contracts.openai.errors import ERRORS, Route
from serving.contracts.openai.media import add_images, add_speech
from serving.contracts.openai.pace import measure
from serving.contracts.openai.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    Options,
    check_name,
)
from serving.errors import DeadlineExceeded, describe
from serving.settings import settings
from serving.streaming import EventStream, event, event_stream

if TYPE_CHECKING:
    from serving.service import Service

DONE = "data: [DONE]\n\n"
NOT_FOUND, WRONG_METHOD = 404, 405
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
# What the OpenAPI document says of an answer that may be streamed.
IN_CHUNKS: dict[int | str, Any] = {
    200: {
        "content": {EventStream.media_type: {"schema": {"type": "string"}}},
        "description": "The answer; with `stream`, its chunks as server-sent events.",
    }
}


def create_router(service: "Service[Any]") -> APIRouter:
    """Return the routes of the methods that the model has."""
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    add_models(router, settings.openai_model_name)
    methods = {
        "chat": add_chat,
        "complete": add_completions,
        "embed": add_embeddings,
        "speak": add_speech,
        "draw": add_images,
    }
    for method, add in methods.items():
        if found := getattr(service.runner.model_class, method, None):
            add(router, service, Options.of(found))
    add_rest(router)
    return router


def add_models(router: APIRouter, own: str) -> None:
    """Add what names the model."""

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """Name the model."""
        return ModelList(data=[ModelCard(id=own)])

    @router.get("/v1/models/{name:path}", responses={404: ERRORS[404]})
    async def retrieve_model(name: str) -> ModelCard:
        """Tell that this is the model."""
        check_name(name)
        return ModelCard(id=own)


def add_chat(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.chat` answers."""

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**ERRORS, **IN_CHUNKS},
        openapi_extra=takes.describe(ChatRequest),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Continue a conversation."""
        asked = await read(ChatRequest, request)
        options = takes.choose(asked.asked())
        job = Generation(method="chat", arguments=(asked.messages,), options=options, n=asked.n)
        return await generate(service, request, job, asked, ChatForm(asked.model))


def add_completions(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.complete` answers."""

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={**ERRORS, **IN_CHUNKS},
        openapi_extra=takes.describe(CompletionRequest),
    )
    async def create_completion(request: Request) -> Response:
        """Continue a text, or several."""
        asked = await read(CompletionRequest, request)
        options = takes.choose(asked.asked())
        prompts = tuple(asked.prompt)
        job = Generation(method="complete", arguments=prompts, options=options, n=asked.n)
        return await generate(service, request, job, asked, Form(asked.model))


def add_embeddings(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.embed` answers."""

    @router.post(
        "/v1/embeddings",
        response_model=EmbeddingList,
        responses=ERRORS,
        openapi_extra=takes.describe(EmbeddingRequest),
    )
    async def create_embedding(request: Request) -> Response:
        """Embed texts, all in one call of the model."""
        asked = await read(EmbeddingRequest, request)
        job = Action(
            method="embed",
            arguments=(asked.input,),
            options=takes.choose(asked.asked()),
            encode=partial(encode_embeddings, asked),
        )
        body = await service.worker.run(job, request.state.body.is_disconnected)
        return Response(body, media_type="application/json")


def add_rest(router: APIRouter) -> None:
    """Add the answer for all that the model has no method for."""
    paths = {route.path for route in router.routes if isinstance(route, Route)}

    @router.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    async def no_such_route(request: Request) -> Response:
        """Say that there is nothing."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path in paths:
            raise HTTPException(WRONG_METHOD, "Method Not Allowed")
        raise HTTPException(NOT_FOUND, f"This model has no {request.method} {path}.")


async def generate(
    service: "Service[Any]",
    request: Request,
    job: Generation,
    asked: GenerationRequest,
    form: Form,
) -> Response:
    """Answer with what the model generates, whole or in chunks.

    The whole has the deadline of a request, a stream has it for each part. Raises as `Worker.run`
    does.
    """
    is_disconnected = request.state.body.is_disconnected
    parts = measure(service.worker.stream(job, is_disconnected), monotonic())
    if asked.stream:
        chunks = in_chunks(parts, form, asked.n, includes_usage=asked.includes_usage)
        return await event_stream(chunks, request, end=DONE, fail=describe_failure)
    try:
        async with asyncio.timeout(settings.infer_timeout_seconds):
            choices = await join(parts, is_disconnected)
    except TimeoutError:
        raise DeadlineExceeded from None
    return Response(form.whole(choices, count(choices, asked.n)), media_type="application/json")


def describe_failure(error: Exception, scope: Scope) -> str:
    """Return the event that tells a client that its stream has failed."""
    _, body = Route.error_form(error, *describe(error, scope))
    return event(json.dumps(body))


def encode_embeddings(asked: EmbeddingRequest, outputs: list[Any]) -> bytes:
    """Return the body for what `embed` has returned: the vectors, and the number of tokens."""
    [(vectors, tokens)] = outputs
    if len(vectors) != len(asked.input):
        raise RuntimeError(f"embed returned {len(vectors)} vectors for {len(asked.input)} texts")
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        raise ValueError("NaN or infinity in a vector")
    in_base64 = asked.encoding_format == "base64"
    data = [
        Embedding(index=index, embedding=pack(vector) if in_base64 else vector)
        for index, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return EmbeddingList(data=data, model=asked.model, usage=usage).model_dump_json().encode()


def pack(vector: list[float]) -> str:
    """Return a vector as clients unpack it: 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
