"""Errors in OpenAI's form: `{"error": {"message": …, "type": …, "param": …, "code": …}}`."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from serving.errors import RESPONSES, Busy, ServiceError
from serving.limits import ModelRoute

INTERNAL_ERROR = 500
CODES = {
    401: "invalid_api_key",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_content_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "service_unavailable",
    504: "timeout",
}
# What Pydantic calls it.
FIELD_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


class Refused(ServiceError):
    """A field of a request asks for what is not supported, or makes no sense."""

    status, message = 400, "This model does not support that."

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NoSuchModel(ServiceError):
    """OpenAI's API was asked for another model."""

    status, message = 404, "No such model."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.param, self.code = "model", "model_not_found"


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Body of every error."""

    error: ErrorDetails


class Route(ModelRoute):
    """A route of the API, which has its own form of errors."""

    @staticmethod
    def error_form(
        error: Exception, status: int, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body as OpenAI's clients read them: a wrong field is a 400."""
        param, message = getattr(error, "param", None), str(body["detail"])
        code = getattr(error, "code", None)
        if isinstance(error, RequestValidationError):
            status, first = 400, error.errors()[0]
            param = ".".join(map(str, first["loc"][1:])) or None
            message = f"{param}: {first['msg']}" if param else str(first["msg"])
            code = FIELD_CODES.get(first["type"], "invalid_value")
        elif isinstance(error, Busy):  # on which Model Engine's forwarder tries again elsewhere
            status = 429
        if "error_id" in body:
            message += f" Error id: {body['error_id']}."
        kind = "server_error" if status >= INTERNAL_ERROR else "invalid_request_error"
        kind = "rate_limit_error" if status == 429 else kind  # noqa: PLR2004
        details = {"message": message, "type": kind, "param": param}
        return status, {"error": {**details, "code": code or CODES.get(status)}}


# What the OpenAPI document says of a route that runs the model.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**response, "model": OpenAIError} for status, response in RESPONSES.items()
}
ERRORS[400] = {"model": OpenAIError, "description": "A field is wrong, or not supported."}
ERRORS[404] = {"model": OpenAIError, "description": "Another model."}
ERRORS.pop(422)
ERRORS[429] = {"model": OpenAIError, "description": "Too busy."}
