"""What every route calls, and all that stands around the app."""

import os
from asyncio import wrap_future
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from serving.auth import Authorizer, check_settings, install_auth
from serving.errors import RESPONSES, handle
from serving.inputs import ParamsT
from serving.limits import Admission, BodyLimit
from serving.metrics import MeasuredWorker
from serving.observability import install_observability
from serving.outputs import File, describe_file, encode_file
from serving.requests import ParsedRequest, RequestParser
from serving.runner import Job, Runner
from serving.schemas import is_finite
from serving.server import serve
from serving.settings import settings
from serving.tasks.metrics import MeasuredTasks
from serving.tasks.routes import RespondAsync
from serving.tasks.webhooks import check_settings as check_webhooks


class Service(Generic[ParamsT]):
    """The model and its queue: one for all routes, those of contracts and your own."""

    def __init__(
        self,
        model: type[Any],
        parse: RequestParser[ParamsT],
        output: type[BaseModel],
        *,
        example: Any,
        name: str,
    ) -> None:
        """Take the model's class, and all that tells what it is asked, and what it answers.

        `parse` reads a request; `output` is what the model returns for one input; `example` is
        answered before the first request; `name` is for the log.
        """
        self.parse = parse
        self.output = output
        self.is_file = issubclass(output, File)
        self.responses = RESPONSES | describe_file(output) if self.is_file else RESPONSES
        warmup = Job(partial(parse.decode_example, example), encode)
        self.runner = Runner(model, name, warmup)
        self.worker = MeasuredWorker(self.runner)
        self.authorizer = Authorizer()
        self.tasks = MeasuredTasks(self)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model, and release all at the end.

        Under `serve`, /health answers meanwhile; FastAPI's TestClient waits for the model.
        """
        self.worker.start()
        if not self.worker.is_served:
            await wrap_future(self.worker.loaded)
        async with self.authorizer, self.tasks.open():
            yield
        self.worker.stop()
        if not self.worker.running:  # a call that is past its deadline still uses the model
            self.runner.close()

    async def answer(
        self, request: Request, parse: Callable[[Request], Awaitable[ParsedRequest[Any]]]
    ) -> Response:
        """Answer a request that `parse` reads: queue, decode, predict, encode.

        Raises what `parse` does, BadInput, and what `Worker.run` does.
        """
        parsed = await parse(request)
        encode_answer: Callable[[list[Any]], Any] = partial(encode_strictly, encode)
        if self.is_file:
            accept = ",".join(request.headers.getlist("accept"))
            encode_answer = partial(encode_file, accept)
        job = Job(parsed.decode, encode_answer)
        answer = await self.worker.run(job, request.state.body.is_disconnected)
        return answer if self.is_file else Response(answer, media_type="application/json")

    def install(self, app: FastAPI) -> None:
        """Put the limits around an app, from the inside out; whatever else it has is inside."""
        app.include_router(self.tasks.router)
        app.add_exception_handler(HTTPException, handle)
        app.add_exception_handler(RequestValidationError, handle)
        app.add_middleware(BodyLimit)
        install_auth(app, self.authorizer)
        app.add_middleware(Admission, worker=self.worker)
        app.add_middleware(RespondAsync, tasks=self.tasks)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # a page of the internet may call a service of the intranet
            expose_headers=["Retry-After", "X-Request-ID", "*"],
        )
        install_observability(app)

    def serve(self, app: FastAPI) -> None:
        """Serve an app until a signal ends that, exit 0, or the model does, exit 1."""
        check_settings()
        check_webhooks()
        self.worker.is_served = True
        serve(app, self.worker)
        if self.worker.running:  # native code may abort an interpreter that ends beneath it
            os._exit(int(self.worker.failed))
        raise SystemExit(int(self.worker.failed))


def encode(outputs: list[Any]) -> bytes:
    """Return the response's body: a request has one input, so one output."""
    body: str = outputs[0].model_dump_json()
    return body.encode()


def encode_strictly(encode: Callable[[list[Any]], bytes], outputs: list[Any]) -> bytes:
    """Return what `encode` does, in which NaN and infinity have become null.

    Raises ValueError where `Output` allows no null: the OpenAPI document promises a number.
    """
    body = encode(outputs)
    for output in outputs if b"null" in body else ():
        if not is_finite(output.model_dump()):
            try:
                type(output).model_validate_json(output.model_dump_json())
            except ValidationError as error:
                fields = [".".join(map(str, each["loc"])) for each in error.errors()]
                raise ValueError(f"NaN or infinity in {', '.join(fields)} of the answer") from error
    return body
