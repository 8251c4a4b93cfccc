"""What a request may cost before the model sees it: its place, its size, and its time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, ClassVar, Self

from fastapi import Request, Response
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from opentelemetry.trace import get_current_span
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Busy, TooLarge, TooManyBytes, TooSlow, find_route, respond
from serving.settings import settings
from serving.worker import Worker

MEGABYTE = 1024 * 1024
MAX_UPLOAD_BYTES = settings.max_upload_mb * MEGABYTE
# A multipart body is larger than its files by boundaries, part headers and form fields.
MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 64 * 1024

logger = logging.getLogger(__name__)


class ModelRoute(APIRoute):
    """A route that runs the model: while the queue is full, its requests are rejected unread.

    Where its endpoint takes the request and nothing else, FastAPI has nothing to resolve, and is
    not asked to, which saves a fifth of the time around a model. A parameter is enough to have it
    asked, or a dependency of the route, of a router that it is in, or of the app.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers requests."""
        by_fastapi = super().get_route_handler()
        needs_fastapi: bool | None = None  # until a request comes: by then all routers are there

        async def handle(request: Request) -> Response:
            nonlocal needs_fastapi
            if needs_fastapi is None:
                contexts = iter_route_contexts(request.app.routes)
                own = [context for context in contexts if context.original_route is self]
                needs_fastapi = not own or not all(map(takes_request_alone, own))
            if needs_fastapi or get_current_span().is_recording():  # a trace has FastAPI's spans
                return await by_fastapi(request)
            response: Response = await self.endpoint(request)
            return response

        return handle


def takes_request_alone(route: RouteContext) -> bool:
    """Tell whether a route has but an endpoint that makes a response of the request."""
    if route.dependencies or not iscoroutinefunction(route.endpoint):
        return False
    endpoint = signature(route.endpoint)
    parameters = [(each.annotation, each.kind) for each in endpoint.parameters.values()]
    answer = endpoint.return_annotation
    is_response = isinstance(answer, type) and issubclass(answer, Response)
    return is_response and parameters == [(Request, Parameter.POSITIONAL_OR_KEYWORD)]


class Admission:
    """Middleware that rejects a request for the model while its queue is full.

    It stands before all that reads the body or asks who sent it: most of an overload ends here.
    """

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self.app = app
        self.worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it."""
        may_reject = self.worker.is_full and scope.get("method") == "POST"
        if may_reject and isinstance(find_route(scope), ModelRoute):
            await respond(Busy(), scope)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Share:
    """What one request holds of the memory that MAX_BODIES_MB allows for all of them."""

    held_by_all: ClassVar[int] = 0

    def __init__(self) -> None:
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        Share.held_by_all -= self.held
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises TooManyBytes, unless no other request holds any."""
        self.held += size
        Share.held_by_all += size
        if Share.held_by_all > max(settings.max_bodies_mb * MEGABYTE, self.held):
            raise TooManyBytes

    def grow_to(self, size: int) -> None:
        """Hold so many bytes at least, for what a body has become. Raises TooManyBytes."""
        self.take(max(0, size - self.held))


class Body(Share):
    """The body of a request on its way in, which may take only so much time and memory."""

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + settings.request_timeout_seconds
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next part. Raises TooSlow, TooLarge and TooManyBytes."""
        if self._is_complete:  # what comes now is that the client leaves, whenever that is
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow from None
        self._is_complete = not message.get("more_body")
        size = len(message.get("body", b""))
        if self.held + size > MAX_BODY_BYTES:
            raise TooLarge
        self.take(size)
        return message

    async def is_disconnected(self) -> bool:
        """Tell whether the client has left."""
        return await Request({"type": "http"}, self.receive).is_disconnected()


class BodyLimit:
    """Middleware that limits a body's size and time, and answers for all that fails further in.

    A size that is declared is rejected at once, another one as soon as too much has come. Starlette
    would answer for unforeseen errors too, but outside the CORS middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            await respond(TooLarge(), scope)(scope, receive, send)
            return
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            with Body(receive) as body:
                # For the route: in between, `@app.middleware("http")` has a `receive` of its own.
                scope.setdefault("state", {})["body"] = body
                await self.app(scope, body.receive, watch)
        except Exception as raised:
            error = unwrap(raised)
            if isinstance(error, ClientDisconnect):
                logger.info("The client left during %s %s", scope["method"], scope["path"])
                return
            response = respond(error, scope)
            if has_begun:
                raise
            await response(scope, receive, send)


def unwrap(error: Exception) -> Exception:
    """Return what was raised: `@app.middleware("http")` puts errors of `receive` into a group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
