"""The Open Inference Protocol, version 2, over HTTP: the same model, asked in tensors.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data. What a
tensor means is derived from `Params` and `Output`; `GET /v2/models/NAME` tells.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError

from serving.contracts.oip.bodies import (
    HEADER_LENGTH,
    SMALL,
    Reply,
    compress,
    encode,
    parse,
    read_body,
)
from serving.contracts.oip.large import off_the_loop, one_at_a_time
from serving.contracts.oip.messages import (
    ErrorMessage,
    InferRequest,
    InferResponse,
    ModelReady,
    Parameters,
    ServerMetadata,
)
from serving.contracts.oip.metadata import add_metadata_routes
from serving.contracts.oip.signature import NAME, VERSION, Signature
from serving.contracts.oip.statistics import statistics
from serving.errors import RESPONSES
from serving.inputs import ParamsT
from serving.limits import ModelRoute
from serving.runner import Job
from serving.schemas import inline_refs
from serving.settings import settings

if TYPE_CHECKING:
    from serving.service import Service

SERVER_VERSION = "0.1.0"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
MAX_SENTENCE = 1000  # characters of an error

ERRORS: dict[int | str, Parameters] = {
    "4XX": {"model": ErrorMessage, "description": "Another request that cannot be answered."},
    404: {"model": ErrorMessage, "description": "Another model, or another version."},
    503: {"model": ErrorMessage, "description": "Not loaded yet, too busy, or out of memory."},
}
INFER_ERRORS: dict[int | str, Parameters] = {
    status: {**response, "model": ErrorMessage} for status, response in RESPONSES.items()
}
INFER_ERRORS.pop(422)  # the protocol has none
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inline_refs(InferRequest.model_json_schema())}},
    }
}


def prepare(
    signature: Signature[ParamsT], header_length: str | None, body: bytes
) -> tuple[Job[Reply], int]:
    """Return a request's work, and its size in bytes. Raises what it is refused with."""
    asked, tensors = parse(body, header_length)
    parameters = asked.parameters or {}
    outputs = {output.name: output.parameters or {} for output in asked.outputs or ()}
    question = signature.read(tensors, parameters)
    columns = signature.wanted(outputs, in_rows=question.rows is not None)
    in_general = parameters.get("binary_data_output")
    flags = [outputs.get(x.name, {}).get("binary_data", in_general) is True for x in columns]
    head: Parameters = {"model_name": NAME, "model_version": VERSION}
    if asked.id is not None:
        head["id"] = asked.id
    return Job(question.decoder(), partial(encode, columns, flags, head)), question.size


async def read_job(signature: Signature[ParamsT], request: Request) -> Job[Reply]:
    """Return a request's work. Raises what it is refused with."""
    body = await read_body(request)
    header_length = request.headers.get(HEADER_LENGTH)
    function = partial(prepare, signature, header_length, body)
    job, size = await one_at_a_time(len(body), function)
    request.state.body.grow_to(size)
    return job


class Route(ModelRoute):
    """A route of the protocol, which has its own form of errors."""

    @staticmethod
    def error_form(
        error: Exception, status: int, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body as the protocol has them: it knows no 422."""
        is_invalid = isinstance(error, RequestValidationError)
        return 400 if is_invalid else status, {"error": as_sentence(body)}


def as_sentence(body: dict[str, Any]) -> str:
    """Return an error's body as one sentence."""
    detail = body["detail"]
    if isinstance(detail, list):
        wrong = [(".".join(map(str, item["loc"][1:])), item["msg"]) for item in detail]
        detail = "; ".join(f"{name}: {message}" if name else message for name, message in wrong)
    elif "error_id" in body:
        detail += f" Error id: {body['error_id']}."
    return str(detail)[:MAX_SENTENCE]


def create_router(service: "Service[ParamsT]") -> APIRouter:
    """Return the protocol's routes."""
    router = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS, route_class=Route)
    signature = Signature(service.parse, service.output)
    infer: Parameters = {
        "response_model": InferResponse,
        "responses": INFER_ERRORS,
        "openapi_extra": BODY,
    }

    @router.get("/v2", name="server_metadata")
    @router.get("/v2/", include_in_schema=False)
    async def server_metadata() -> ServerMetadata:
        """Tell what the server can do."""
        name = settings.oip_server_name
        return ServerMetadata(name=name, version=SERVER_VERSION, extensions=EXTENSIONS)

    @router.get("/v2/health/live")
    async def server_live() -> dict[str, bool]:
        """Liveness, as `GET /health`."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Readiness, as `GET /ready`."""
        service.worker.check()
        return {"ready": True}

    add_metadata_routes(router, service, signature)

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready", name="model_ready_of_version")
    async def model_ready(name: str, version: str = "") -> ModelReady:
        """Readiness, as `GET /ready`."""
        signature.check(name, version)
        service.worker.check()
        return ModelReady(name=name, ready=True)

    @router.post("/v2/models/{name}/infer", **infer)
    @router.post(
        "/v2/models/{name}/versions/{version}/infer",
        name="model_infer_of_version",
        **infer,
    )
    async def model_infer(name: str, request: Request, version: str = "") -> Response:
        """Answer, tensors for tensors."""
        signature.check(name, version)
        with statistics.count():
            job = await read_job(signature, request)
            is_disconnected = request.state.body.is_disconnected
            reply = await statistics.run(service.worker, job, is_disconnected)
        headers = {}
        if reply.header_length is not None:
            headers[HEADER_LENGTH] = str(reply.header_length)
        accepted = request.headers.get("accept-encoding", "")
        answer, encoding = reply.body, ""
        if len(answer) > SMALL:
            answer, encoding = await off_the_loop(len(answer), partial(compress, answer, accepted))
        if encoding:
            headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
        kind = "application/octet-stream" if HEADER_LENGTH in headers else "application/json"
        return Response(answer, headers=headers, media_type=kind)

    return router
