"""Every failure: its status, and the JSON that its client gets."""

import logging
import uuid
from typing import Any, ClassVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

logger = logging.getLogger(__name__)


class ServiceError(HTTPException):
    """A request that cannot be answered; each subclass is one kind of failure."""

    status: ClassVar[int]
    message: ClassVar[str]
    retry_after: ClassVar[int | None] = None  # seconds
    closes: ClassVar[bool] = False  # the connection, where the rest of the request is not wanted

    def __init__(self, message: str | None = None) -> None:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.closes:
            headers["Connection"] = "close"
        super().__init__(self.status, message or self.message, headers)


class BadInput(ServiceError):
    """The input cannot be read as what it claims to be, or is beyond a decoder's limit."""

    status, message = 400, "The input cannot be read."


class TooSlow(ServiceError):
    """The body was not complete within REQUEST_TIMEOUT_SECONDS."""

    status, message = 408, "The request took too long to arrive."
    closes = True


class TooLarge(ServiceError):
    """The body is over MAX_UPLOAD_MB."""

    status, message = 413, "File too large."


class UnsupportedType(ServiceError):
    """The content type is none that this service takes."""

    status, message = 415, "Unsupported content type."


class NotReady(ServiceError):
    """The model is not loaded, or cannot take requests."""

    status, message = 503, "Model not loaded yet."


class Busy(ServiceError):
    """As many requests wait as MAX_QUEUE_SIZE allows."""

    status, message, retry_after = 503, "Too many requests are waiting.", 1


class TooManyBytes(ServiceError):
    """The bodies of the requests that are here take MAX_BODIES_MB."""

    status, message, retry_after = 503, "Too many large requests are here.", 1
    closes = True


class OutOfMemory(ServiceError):
    """There was no memory left for this request: the machine's, or the GPU's."""

    status, message, retry_after = 503, "Out of memory.", 5


class DeadlineExceeded(ServiceError):
    """No answer within INFER_TIMEOUT_SECONDS."""

    status, message = 504, "Inference timed out."


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
    """Body of a 500: the id is in the service's log, beside the traceback."""

    error_id: str


# What the OpenAPI document says of a route that runs the model.
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
    """Return a failure's status and body; an unforeseen one is logged."""
    if isinstance(error, HTTPException):
        return error.status_code, {"detail": error.detail}
    if isinstance(error, RequestValidationError):
        keys = ("loc", "msg", "type")  # no input: it may be huge, binary or NaN
        return 422, {"detail": [{key: item[key] for key in keys} for item in error.errors()]}
    error_id = uuid.uuid4().hex
    request = scope["method"], scope["path"]
    logger.error("Error %s in %s %s", error_id, *request, exc_info=error)
    return 500, {"detail": "Internal server error.", "error_id": error_id}


def find_route(scope: Scope) -> Any:
    """Return the route that a request is for, also before it has come there; None without one."""
    if "route" in scope:
        return scope["route"]
    contexts = iter_route_contexts(scope["app"].routes)
    found = (each for each in contexts if each.matches(scope)[0] is Match.FULL)
    return getattr(next(found, None), "original_route", None)


def respond(error: Exception, scope: Scope) -> JSONResponse:
    """Return the answer to a request that failed, in the form of the route that it is for."""
    status, body = describe(error, scope)
    if form := getattr(find_route(scope), "error_form", None):
        status, body = form(error, status, body)
    response = JSONResponse(body, status, getattr(error, "headers", None))
    # Who asks first may send the body or not: nobody knows where the next request begins.
    if any(name == b"expect" for name, _ in scope["headers"]):
        response.headers["Connection"] = "close"
    return response


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Answer for a route that raised; FastAPI calls this."""
    return respond(error, request.scope)
