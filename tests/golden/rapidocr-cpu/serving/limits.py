"""What the service refuses, and the one place that gives every failure its status."""

import asyncio
import logging
import os
import sys
import uuid
from typing import Any, ClassVar, Self, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

# A multipart body is larger than its files by boundaries, part headers and form fields.
MULTIPART_OVERHEAD = 64 * 1024


def env_int(name: str, default: int, *, minimum: int = 0) -> int:
    """Read a whole number from the environment; a wrong one ends the start with a plain message."""
    text = os.getenv(name, str(default))
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        sys.exit(f"{name} must be a whole number from {minimum} on, e.g. {default}; not {text!r}")
    return value


def env_bool(name: str, *, default: bool) -> bool:
    """Read a switch from the environment: 1/0, true/false, yes/no, on/off."""
    text = os.getenv(name, str(default)).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off", ""}:
        return False
    sys.exit(f"{name} must be true or false; not {text!r}")


MAX_BODIES_MB = env_int("MAX_BODIES_MB", 512, minimum=1)
REQUEST_TIMEOUT_SECONDS = env_int("REQUEST_TIMEOUT_SECONDS", 30, minimum=1)


class Refusal(HTTPException):
    """A request that gets an error instead of an answer; each subclass is one kind of failure."""

    status: ClassVar[int]
    reason: ClassVar[str]
    retry_after: ClassVar[int | None] = None
    closes: ClassVar[bool] = False  # the connection, where the rest of the request is not wanted

    def __init__(self, reason: str | None = None) -> None:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.closes:
            headers["Connection"] = "close"
        super().__init__(self.status, reason or self.reason, headers)


class BadInput(Refusal):
    """The input cannot be read as what it claims to be, or is beyond a decoder's limit."""

    status, reason = 400, "The input cannot be read."


class UnsupportedUpgrade(Refusal):
    """The request has a body and offers to change the protocol, so that its body is lost."""

    status = 400
    reason = (
        "The body cannot be read, as the request offers an upgrade. Send it without the Upgrade "
        "header, as plain HTTP/1.1, or start the service with HTTP_PARSER=h11."
    )


class TooSlow(Refusal):
    """The body was not complete within REQUEST_TIMEOUT_SECONDS."""

    status, reason = 408, "The request took too long to arrive."
    closes = True


class TooLarge(Refusal):
    """The body is over MAX_UPLOAD_MB."""

    status, reason = 413, "File too large."


class UnsupportedType(Refusal):
    """The content type is none that this service takes."""

    status, reason = 415, "Unsupported content type."


class NotReady(Refusal):
    """The model is not loaded, or cannot take requests."""

    status, reason = 503, "Model not loaded yet."


class Busy(Refusal):
    """As many requests wait as MAX_QUEUE_SIZE allows."""

    status, reason, retry_after = 503, "Too many requests are waiting.", 1


class TooManyBytes(Refusal):
    """The bodies of the requests that are here take MAX_BODIES_MB."""

    status, reason, retry_after = 503, "Too many large requests are here.", 1
    closes = True


class OutOfMemory(Refusal):
    """There was no main memory left for this request."""

    status, reason, retry_after = 503, "Out of memory.", 5


class GpuOutOfMemory(OutOfMemory):
    """The GPU had no memory left for this request."""

    reason = "GPU out of memory."


class DeadlineExceeded(Refusal):
    """No answer within INFER_TIMEOUT_SECONDS."""

    status, reason = 504, "Inference timed out."


class CannotLoad(Exception):
    """The model cannot be loaded, for a reason that one line tells its operator in full."""


class ErrorBody(BaseModel):
    """Every error's body; a 422 has a list of the fields that are wrong instead of a sentence."""

    detail: str


class FieldError(BaseModel):
    """One field that did not validate."""

    loc: list[str | int]
    msg: str
    type: str


class ValidationBody(BaseModel):
    """Body of a 422."""

    detail: list[FieldError]


class InternalErrorBody(ErrorBody):
    """Body of a 500: the id stands in the service's log, beside the traceback."""

    error_id: str


# What the inference endpoint's OpenAPI entry says of its errors.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Empty, corrupt or oversized once decoded."},
    408: {"model": ErrorBody, "description": "Not complete within REQUEST_TIMEOUT_SECONDS."},
    413: {"model": ErrorBody, "description": "Larger than MAX_UPLOAD_MB."},
    415: {"model": ErrorBody, "description": "A content type that is not taken."},
    422: {"model": ValidationBody, "description": "A field is missing or invalid."},
    500: {"model": InternalErrorBody, "description": "Unforeseen; the log has the same id."},
    503: {"model": ErrorBody, "description": "Not loaded yet, too busy, or out of memory."},
    504: {"model": ErrorBody, "description": "No answer within INFER_TIMEOUT_SECONDS."},
}


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a framework's error means that memory ran out: each has its own class for it."""
    texts = ("out of memory", "failed to allocate", "allocate memory")
    return (
        isinstance(error, MemoryError)
        or "outofmemory" in type(error).__name__.lower()
        or any(text in str(error).lower() for text in texts)
    )


def describe(error: Exception, scope: Scope) -> tuple[int, dict[str, Any]]:
    """Return the status that a failure has, and the body; an unforeseen one is logged."""
    if isinstance(error, HTTPException):
        return error.status_code, {"detail": error.detail}
    if isinstance(error, RequestValidationError):
        keys = ("loc", "msg", "type")  # no input: it may be huge, binary or NaN
        return 422, {"detail": [{key: item[key] for key in keys} for item in error.errors()]}
    error_id = uuid.uuid4().hex
    request = scope["method"], scope["path"]
    logger.error("Error %s in %s %s", error_id, *request, exc_info=error)
    return 500, {"detail": "Internal server error.", "error_id": error_id}


def respond(error: Exception, scope: Scope) -> JSONResponse:
    """Return the answer to a request that failed."""
    status, body = describe(error, scope)
    response = JSONResponse(body, status, getattr(error, "headers", None))
    # Who asks first may send the body or not: nobody knows where the next request begins.
    if any(name == b"expect" for name, _ in scope["headers"]):
        response.headers["Connection"] = "close"
    return response


async def failed(request: Request, error: Exception) -> JSONResponse:
    """Answer for a route that raised."""
    return respond(error, request.scope)


def unwrap(error: Exception) -> Exception:
    """Return what was raised: `@app.middleware("http")` puts errors of `receive` into a group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class CatchAll:
    """Answers an unforeseen error with a JSON 500 whose id is in the log too.

    Starlette's own handler for it would sit outside the CORS middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and stand in for an answer that did not come."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as raised:
            error = unwrap(raised)
            if isinstance(error, ClientDisconnect):
                logger.info("The client left during %s %s", scope["method"], scope["path"])
                return
            response = respond(error, scope)
            if started:
                raise
            await response(scope, receive, send)


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
        if Share.held_by_all > max(MAX_BODIES_MB * 1024 * 1024, self.held):
            raise TooManyBytes


class BodyLimit:
    """Refuses a body over the limit: at once where its length is declared, else by counting.

    Refuses one that takes too long, too, and one for which all others leave no memory.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes + MULTIPART_OVERHEAD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await respond(TooLarge(), scope)(scope, receive, send)
            return
        counted = 0
        share = Share()
        is_complete = False
        deadline = asyncio.get_running_loop().time() + REQUEST_TIMEOUT_SECONDS

        async def count() -> Message:
            nonlocal counted, is_complete
            if is_complete:  # what comes now is that the client leaves, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise TooSlow from None
            is_complete = not message.get("more_body")
            size = len(message.get("body", b""))
            counted += size
            if counted > self.max_bytes:
                raise TooLarge
            share.take(size)
            return message

        state = scope.setdefault("state", {})
        # Between here and the route, `@app.middleware("http")` keeps it from being heard.
        state["is_disconnected"] = Request(scope, count).is_disconnected
        with share:
            await self.app(scope, count, send)


class NoUpgrades:
    """Keeps the body of a request that offers an upgrade from being read as the next request.

    httptools ends such a request with its head, whatever is offered and to whichever method. So a
    route that asks for the body gets an error, and every answer ends the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, without its body where that is lost."""
        if scope["type"] != "http" or not offers_upgrade(scope):
            await self.app(scope, receive, send)
            return

        async def refuse() -> Message:
            raise UnsupportedUpgrade

        async def close(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, refuse if has_body(scope) else receive, close)


def offers_upgrade(scope: Scope) -> bool:
    """Tell whether httptools takes what follows the request's head for another protocol's bytes."""
    if scope["method"] == "CONNECT":
        return True
    options = {b"connection", b"proxy-connection"}  # the second is no standard, and taken as well
    return any(name == b"upgrade" for name, _ in scope["headers"]) and any(
        name in options and b"upgrade" in value.lower() for name, value in scope["headers"]
    )


def has_body(scope: Scope) -> bool:
    """Tell whether a request declares a body."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0


def guard(app: FastAPI, max_bytes: int) -> None:
    """Put the limits and error handlers around an app; call it before CORS is added."""
    app.add_exception_handler(HTTPException, failed)
    app.add_exception_handler(RequestValidationError, failed)
    app.add_middleware(CatchAll)
    app.add_middleware(BodyLimit, max_bytes=max_bytes)


def field_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return what is wrong with each field, as FastAPI reports it and without the input."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**item, "loc": ("body", *item["loc"])} for item in errors]


def inline_refs(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its `$defs` put in place, as OpenAPI wants them."""
    definitions = schema.get("$defs", {})

    def resolve(node: Any, seen: frozenset[str]) -> Any:
        if isinstance(node, list):
            return [resolve(item, seen) for item in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if name in seen:  # a model that holds itself: what is inside stays open
            return {"type": "object"}
        if name in definitions:  # a field's own default and description stand beside its $ref
            beside = {key: value for key, value in node.items() if key != "$ref"}
            return resolve({**definitions[name], **beside}, seen | {name})
        # A discriminator tells schemas apart by their names, which are gone.
        gone = {"$defs", "discriminator"} if "oneOf" in node else {"$defs"}
        return {key: resolve(value, seen) for key, value in node.items() if key not in gone}

    return cast("dict[str, Any]", resolve(schema, frozenset()))
