"""What a request may cost before the model sees it: its place, its size, and its time."""

import asyncio
import logging
from typing import ClassVar, Self

from fastapi import Request
from fastapi.routing import APIRoute
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
    """A route that runs the model: while the queue is full, its requests are rejected unread."""

    runs_model = True


class Admission:
    """Middleware that rejects a request for the model while its queue is full.

    It stands before all that reads the body or asks who sent it: most of an overload ends here.
    """

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self.app = app
        self.worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it."""
        if self.worker.is_full and runs_model(scope):
            await respond(Busy(), scope)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def runs_model(scope: Scope) -> bool:
    """Tell whether this is a request that runs the model."""
    return scope.get("method") == "POST" and getattr(find_route(scope), "runs_model", False)


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


class Body:
    """The body of a request on its way in, which may take only so much time and memory."""

    def __init__(self, receive: Receive, share: Share) -> None:
        self._receive = receive
        self._share = share
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
        if self._share.held + size > MAX_BODY_BYTES:
            raise TooLarge
        self._share.take(size)
        return message


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
            with Share() as share:
                body = Body(receive, share)
                # Between here and the route, `@app.middleware("http")` keeps it from being heard.
                state = scope.setdefault("state", {})
                state["is_disconnected"] = Request(scope, body.receive).is_disconnected
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
