"""The Open Inference Protocol, version 2, over HTTP: the same model, asked in tensors.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data. What a
tensor means is derived from `Params` and `Output`; `GET /v2/models/my-model-server` tells.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from core import Core
from inputs import Input, decode
from limits import (
    RESPONSES,
    BadInput,
    Refusal,
    TooLarge,
    UnsupportedType,
    field_errors,
    inline_refs,
)
from tensors import Answer, Column, Datatype, Tensor, describe_column
from uploads import ParamsT
from worker import Job

VERSION = "1"  # of the model; the protocol wants one
PLATFORM = "custom"
EXTENSIONS = ["binary_tensor_data"]

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the binary data
LARGE = 64 * 1024  # bytes from which on a body is no business of the event loop
SMALL = 1024  # bytes that are not worth to be compressed

# Parameters that are meant for the protocol, or for servers that have what this one has not.
RESERVED = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority"}
RESERVED |= {"timeout", "headers", "content_type"}

Parameters = dict[str, Any]
T = TypeVar("T")


class UnknownModel(Refusal):
    """A name or version that is not served here."""

    status, reason = 404, f"There is no such model: ask for my-model-server, version {VERSION}."


class ServerMetadata(BaseModel):
    """What the server can do."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor that the model takes or gives; a dimension of -1 may have any size."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = Field(
        default=None, description="content_type, of BYTES: json, or base64 where they are in JSON."
    )


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class RequestInput(BaseModel):
    """A tensor of a request: its elements are in `data`, or behind the JSON."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=32)]
    datatype: Datatype
    parameters: Parameters = {}
    data: Any = None


class RequestOutput(BaseModel):
    """A tensor that is asked for."""

    name: str
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """A request."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[RequestInput]
    outputs: list[RequestOutput] = []


class ResponseOutput(BaseModel):
    """A tensor of an answer, row by row; where it is binary its data follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """An answer."""

    model_config = ConfigDict(protected_namespaces=())  # for names that begin with model_

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class ModelReady(BaseModel):
    """Whether the model can take requests."""

    name: str
    ready: bool


class ErrorMessage(BaseModel):
    """Body of every error."""

    error: str


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


class Signature(Generic[ParamsT]):
    """The tensors that the model takes and gives."""

    def __init__(self, core: Core[ParamsT]) -> None:
        """Derive them from `Params` and `Output`."""
        self.core = core
        self.name = core.name
        self.params = columns(core.read.params, in_rows=False, output=False)
        self.inputs = self.params
        self.outputs = columns(core.output, in_rows=False, output=True)

    def check(self, name: str, version: str | None) -> None:
        """Raise UnknownModel where another model, or another version, is meant."""
        if name != self.name or version not in (None, "", VERSION):
            raise UnknownModel

    def metadata(self) -> ModelMetadata:
        """Tell what the model takes and gives."""
        return ModelMetadata(
            name=self.name,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[TensorMetadata(**column.metadata) for column in self.inputs],
            outputs=[TensorMetadata(**column.metadata) for column in self.outputs],
        )

    def read(
        self, tensors: Sequence[Tensor], parameters: Mapping[str, Any]
    ) -> Callable[[], list[Input[ParamsT]]]:
        """Return what decodes a request's tensors. Raises BadInput and RequestValidationError."""
        given = {tensor.name: tensor for tensor in tensors}
        names = [column.name for column in self.inputs]
        if unknown := set(given) - set(names):
            raise BadInput(f"There is no input {min(unknown)!r}: send {', '.join(names)}.")
        if len(given) < len(tensors):
            raise BadInput("An input stands there twice.")
        fields = {column.name: column for column in self.params}
        meant = parameters.keys() - (RESERVED - fields.keys())
        values = {name: parameters[name] for name in meant}
        values |= {name: fields[name].take(tensor) for name, tensor in given.items()}
        return partial(decode, self.core.take(values))

    def wanted(self, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Column]:
        """Return the outputs of these names, or all where there are none.

        They are a batch, of one at least, where the inputs are. Raises BadInput.
        """
        fields = {column.name: column for column in self.params}
        given = [tensor for tensor in tensors if tensor.name in fields]
        batch = bool(given) and all(fields[x.name].is_in_rows(x) for x in given)
        columns = {x.name: replace(x, in_rows=x.in_rows or batch) for x in self.outputs}
        try:
            return [columns[name] for name in dict.fromkeys(names or columns)]
        except KeyError as error:
            raise BadInput(f"There is no output {error}: ask for {', '.join(columns)}.") from error


def columns(model: type[BaseModel], *, in_rows: bool, output: bool) -> list[Column]:
    """Return the fields of a model as tensors."""
    if output:
        schema = model.model_json_schema(by_alias=False, mode="serialization")
    else:
        schema = model.model_json_schema()
    return [
        describe_column(name, field, in_rows=in_rows, may_be_null=not output)
        for name, field in inline_refs(schema).get("properties", {}).items()
    ]


def answers(columns: Sequence[Column], outputs: Sequence[BaseModel]) -> list[Answer]:
    """Return the model's outputs as tensors."""
    rows = [output.model_dump(mode="json") for output in outputs]
    return [column.give([row[column.name] for row in rows]) for column in columns]


@dataclass(frozen=True)
class Reply:
    """An answer's body, and how much of it is JSON where binary data follow."""

    body: bytes
    header_length: int | None = None


def encode(
    columns: Sequence[Column], binary: Sequence[bool], head: Parameters, outputs: list[BaseModel]
) -> Reply:
    """Return the answer with these outputs of the model, each as JSON or in binary."""
    described: list[Parameters] = []
    behind: list[bytes] = []
    for answer, is_binary in zip(answers(columns, outputs), binary, strict=True):
        tensor: Parameters = {"name": answer.name}
        tensor |= {"datatype": answer.datatype, "shape": answer.shape}
        parameters: Parameters = {}
        if answer.content_type:
            parameters["content_type"] = answer.content_type
        if is_binary:
            behind.append(answer.binary)
            parameters["binary_data_size"] = len(behind[-1])
        else:
            is_text = answer.datatype == "BYTES"
            tensor["data"] = [item.decode() for item in answer.flat] if is_text else answer.flat
        if parameters:
            tensor["parameters"] = parameters
        described.append(tensor)
    # JSON has no NaN and no infinity: they become null.
    header = to_json({**head, "outputs": described}, inf_nan_mode="null")
    return Reply(header + b"".join(behind), len(header)) if behind else Reply(header)


def parse(body: bytes, header_length: str | None) -> tuple[InferRequest, list[Tensor]]:
    """Return a request and its tensors. Raises BadInput and RequestValidationError."""
    end = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,18}", header_length) or int(header_length) > end:
            raise BadInput(f"{HEADER_LENGTH} is {header_length}: no length of this body's JSON.")
        end = int(header_length)
    try:
        request = InferRequest.model_validate_json(body[:end])
    except ValidationError as error:
        raise RequestValidationError(field_errors(error)) from error
    tensors: list[Tensor] = []
    for given in request.inputs:
        size = given.parameters.get("binary_data_size")
        binary = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise BadInput(f"Tensor {given.name!r}: no {size} bytes of binary data are left.")
            binary = body[end : end + size]
            end += size
        tensors.append(
            Tensor(given.name, given.datatype, given.shape, given.data, binary, given.parameters)
        )
    if end < len(body):
        raise BadInput(f"{len(body) - end} bytes behind the JSON belong to no tensor.")
    return request, tensors


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body as it was before it was compressed.

    Raises UnsupportedType, TooLarge and BadInput.
    """
    if encoding in {"", "identity"}:
        found = body
    elif encoding in {"gzip", "deflate"}:
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two
        try:
            found = inflate.decompress(body, max_bytes + 1)
        except zlib.error as error:
            raise BadInput(f"The body is no {encoding}: {error}.") from error
        if len(found) <= max_bytes and not inflate.eof:
            raise BadInput(f"The body is no {encoding}: it ends too early.")
    else:
        raise UnsupportedType("Compress with gzip or deflate, or not at all.")
    if len(found) > max_bytes:
        raise TooLarge
    return found


def compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Return a body in an encoding that its client has asked for, and the encoding's name."""
    names = [name.strip() for name in accepted.split(",")]
    if "gzip" in names:
        return gzip.compress(body, 1), "gzip"
    if "deflate" in names:
        return zlib.compress(body, 1), "deflate"
    return body, ""


def prepare(signature: Signature[ParamsT], request: Request, body: bytes) -> Job[Reply]:
    """Return a request's work. Raises what it is refused with."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    body = decompress(body, encoding, signature.core.read.max_bytes)
    asked, tensors = parse(body, request.headers.get(HEADER_LENGTH))
    names = [output.name for output in asked.outputs]
    columns = signature.wanted(names, tensors)
    binary = dict.fromkeys([x.name for x in columns], asked.parameters.get("binary_data_output"))
    binary |= {
        output.name: output.parameters["binary_data"]
        for output in asked.outputs
        if "binary_data" in output.parameters
    }
    head: Parameters = {"model_name": signature.name, "model_version": VERSION}
    if asked.id is not None:
        head["id"] = asked.id
    flags = [binary[column.name] is True for column in columns]
    decode = signature.read(tensors, asked.parameters)
    return Job(decode, partial(encode, columns, flags, head))


async def off_the_loop(size: int, function: Callable[[], T]) -> T:
    """Return what a function returns that takes long where there are many bytes."""
    return await run_in_threadpool(function) if size > LARGE else function()


def create_router(core: Core[ParamsT]) -> APIRouter:
    """Return the protocol's routes."""
    router = APIRouter(tags=["Open Inference Protocol"], responses=ERRORS)
    signature = Signature(core)
    infer: Parameters = {
        "response_model": InferResponse,
        "responses": INFER_ERRORS,
        "openapi_extra": BODY,
    }

    @router.get("/v2", name="server_metadata")
    @router.get("/v2/", include_in_schema=False)
    async def server_metadata() -> ServerMetadata:
        """Tell what the server can do."""
        return ServerMetadata(name=core.name, version=core.version, extensions=EXTENSIONS)

    @router.get("/v2/health/live")
    async def server_live() -> dict[str, bool]:
        """Liveness, as `GET /health`."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Readiness, as `GET /ready`."""
        core.worker.check()
        return {"ready": True}

    @router.get("/v2/models/{name}", response_model_exclude_none=True)
    @router.get(
        "/v2/models/{name}/versions/{version}",
        name="model_metadata_of_version",
        response_model_exclude_none=True,
    )
    async def model_metadata(name: str, version: str | None = None) -> ModelMetadata:
        """Tell what the model takes and gives."""
        signature.check(name, version)
        return signature.metadata()

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready", name="model_ready_of_version")
    async def model_ready(name: str, version: str | None = None) -> ModelReady:
        """Readiness, as `GET /ready`."""
        signature.check(name, version)
        core.worker.check()
        return ModelReady(name=name, ready=True)

    @router.post("/v2/models/{name}/infer", **infer)
    @router.post(
        "/v2/models/{name}/versions/{version}/infer",
        name="model_infer_of_version",
        **infer,
    )
    async def model_infer(name: str, request: Request, version: str | None = None) -> Response:
        """Answer, tensors for tensors."""
        core.worker.admit()
        signature.check(name, version)
        body = await request.body()
        size = len(body) if "content-encoding" not in request.headers else core.read.max_bytes
        job = await off_the_loop(size, partial(prepare, signature, request, body))
        reply = await core.worker.run(job, gone=request.is_disconnected)
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
