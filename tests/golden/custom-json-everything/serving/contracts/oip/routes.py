"""The Open Inference Protocol, version 2, over HTTP: the same model, asked in tensors.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data. What a
tensor means is derived from `Params` and `Output`; `GET /v2/models/my-model-server` tells.
"""

import asyncio
import gzip
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json
from starlette.concurrency import run_in_threadpool

from serving.contracts.documents import ANYTHING
from serving.contracts.oip.tensors import (
    Answer,
    Column,
    Datatype,
    Tensor,
    check_json,
    describe_column,
)
from serving.errors import RESPONSES, BadInput, ServiceError, TooLarge, UnsupportedType
from serving.inputs import Input, ParamsT
from serving.limits import MAX_UPLOAD_BYTES, ModelRoute, Share
from serving.requests import ParsedRequest, RequestParser
from serving.runner import Job
from serving.schemas import field_errors, inline_refs

if TYPE_CHECKING:
    from serving.service import Service

NAME = "my-model-server"
SERVER_VERSION = "0.1.0"
VERSION = "1"  # of the model; the protocol wants one
PLATFORM = "custom"
EXTENSIONS = ["binary_tensor_data"]

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the binary data
LARGE = 64 * 1024  # bytes from which on a body is no business of the event loop
SMALL = 1024  # bytes that are not worth to be compressed
STEP = 1024 * 1024  # bytes of a body that are unpacked before they are counted
MAX_TENSORS = 1000
MAX_SENTENCE = 1000  # characters of an error
# What an element of a field takes of MAX_UPLOAD_MB, however short it comes: a number in a list of
# Python's takes as much.
ELEMENT_BYTES = 32
# Large requests are read one after the other: meanwhile each takes many times its size.
reading = asyncio.Semaphore(1)

# Parameters that are meant for the protocol, or for servers that have what this one has not.
RESERVED = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority"}
RESERVED |= {"timeout", "headers", "content_type"}

Parameters = dict[str, Any]
Failure = ServiceError | RequestValidationError
T = TypeVar("T")


class UnknownModel(ServiceError):
    """A name or version that is not served here."""

    status, message = 404, f"There is no such model: ask for {NAME}, version {VERSION}."


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
    inputs: Annotated[list[RequestInput], Field(max_length=MAX_TENSORS)]
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


@dataclass(frozen=True)
class Question(Generic[ParamsT]):
    """A request's inputs, checked as far as that takes no memory; isolation sends it on."""

    parse: RequestParser[ParamsT]
    columns: Sequence[Column]
    tensors: Sequence[Tensor]  # compact, one for each column
    rest: bytes  # the other fields, as JSON

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return sum(tensor.size for tensor in self.tensors) + len(self.rest)

    def decoder(self) -> Callable[[], list[Input[ParamsT]]]:
        """Return what decodes it. Raises BadInput and RequestValidationError.

        What is wrong with small fields is known at once. Large ones wait for the model as they
        came, since their values take many times as much.
        """
        return self.decode if self.size > LARGE else self.check()

    def fields(self) -> Parameters:
        """Return the values of the fields. Raises BadInput."""
        fields: Parameters = from_json(self.rest)
        pairs = zip(self.columns, self.tensors, strict=True)
        return fields | {column.name: column.take(tensor) for column, tensor in pairs}

    def check(self) -> Callable[[], list[Input[ParamsT]]]:
        """Return what decodes it. Raises BadInput and RequestValidationError."""
        return self.parsed().decode

    def parsed(self) -> ParsedRequest[ParamsT]:
        """Return what its fields make. Raises BadInput and RequestValidationError."""
        return ParsedRequest(self.parse.validate(ANYTHING.dump_json(self.fields())))

    def decode(self) -> list[Input[ParamsT]]:
        """Check and decode it, on the model's thread: of the large ones, one at a time."""
        return result(settle(self._decode))

    def _decode(self) -> list[Input[ParamsT]]:
        return self.check()()


class Signature(Generic[ParamsT]):
    """The tensors that the model takes and gives."""

    def __init__(self, parse: RequestParser[ParamsT], output: type[BaseModel]) -> None:
        """Derive them from `Params` and `Output`."""
        self.parse = parse
        self.max_elements = MAX_UPLOAD_BYTES // ELEMENT_BYTES
        self.params = columns(parse.params, in_rows=False, output=False)
        self.inputs = self.params
        self.outputs = columns(output, in_rows=False, output=True)

    def check(self, name: str, version: str | None) -> None:
        """Raise UnknownModel where another model, or another version, is meant."""
        if name != NAME or version not in (None, "", VERSION):
            raise UnknownModel

    def metadata(self) -> ModelMetadata:
        """Tell what the model takes and gives."""
        return ModelMetadata(
            name=NAME,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[TensorMetadata(**column.metadata) for column in self.inputs],
            outputs=[TensorMetadata(**column.metadata) for column in self.outputs],
        )

    def read(self, tensors: Sequence[Tensor], parameters: Mapping[str, Any]) -> Question[ParamsT]:
        """Return a request's inputs. Raises BadInput, TooLarge and RequestValidationError."""
        given = {tensor.name: tensor for tensor in tensors}
        names = [column.name for column in self.inputs]
        if unknown := set(given) - set(names):
            raise BadInput(f"There is no input {min(unknown)!r}: send {', '.join(names)}.")
        if len(given) < len(tensors):
            raise BadInput("An input stands there twice.")
        fields = {column.name: column for column in self.params}
        meant = parameters.keys() - (RESERVED - fields.keys())
        rest = to_json({name: parameters[name] for name in meant - given.keys()})
        most = self.max_elements
        taken = [fields[name].check(tensor, most) for name, tensor in given.items()]
        columns = [fields[name] for name in given]
        return Question(self.parse, columns, taken, rest)

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
    """Return the fields of a model as tensors; a model without named fields ends the start."""
    if output:
        schema = model.model_json_schema(by_alias=False, mode="serialization")
    else:
        schema = model.model_json_schema()
    fields = inline_refs(schema).get("properties")
    if fields is None:
        sys.exit(f"{model.__name__} must have named fields: each is a tensor of contracts=[oip]")
    return [
        describe_column(name, field, in_rows=in_rows, may_be_null=not output)
        for name, field in fields.items()
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


def without_data(document: Any) -> tuple[Any, list[Any]]:
    """Return a request's JSON without the elements of its tensors, and these.

    Lists as Pydantic reads them from JSON take twice as much memory.
    """
    inputs = document.get("inputs") if isinstance(document, dict) else None
    given = inputs if isinstance(inputs, list) else []
    return document, [item.pop("data", None) if isinstance(item, dict) else None for item in given]


def parse(body: bytes, header_length: str | None) -> tuple[InferRequest, list[Tensor]]:
    """Return a request and its tensors. Raises BadInput, TooLarge and RequestValidationError."""
    end = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,18}", header_length) or int(header_length) > end:
            raise BadInput(f"{HEADER_LENGTH} is {header_length}: no length of this body's JSON.")
        end = int(header_length)
    head = body[:end]
    most = MAX_UPLOAD_BYTES // ELEMENT_BYTES
    check_json(head, most)
    try:
        document, data = without_data(from_json(head))
    except ValueError as error:
        raise BadInput(f"Invalid JSON: {error}") from error
    described = to_json(document)
    try:
        request = InferRequest.model_validate_json(described)
    except ValidationError as error:
        raise RequestValidationError(field_errors(error)) from error
    tensors: list[Tensor] = []
    for given, elements in zip(request.inputs, data, strict=True):
        size = given.parameters.get("binary_data_size")
        binary = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise BadInput(f"Tensor {given.name!r}: no {size} bytes of binary data are left.")
            binary = body[end : end + size]
            end += size
        tensors.append(
            Tensor(given.name, given.datatype, given.shape, elements, binary, given.parameters)
        )
    if end < len(body):
        raise BadInput(f"{len(body) - end} bytes behind the JSON belong to no tensor.")
    return request, tensors


async def read_body(request: Request) -> bytes:
    """Return a request's body as it was before it was compressed.

    Raises UnsupportedType, TooLarge, TooManyBytes and BadInput.
    """
    # The request itself would keep it until it is answered.
    body = b"".join([chunk async for chunk in request.stream()])
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in {"gzip", "deflate"}:
        return await decompress(body, encoding, request.state.body)
    if encoding not in {"", "identity"}:
        raise UnsupportedType("Compress with gzip or deflate, or not at all.")
    if len(body) > MAX_UPLOAD_BYTES:
        raise TooLarge
    return body


async def decompress(body: bytes, encoding: str, share: Share) -> bytes:
    """Return a body as it was before it was compressed, and count it as it grows.

    Raises TooLarge, TooManyBytes and BadInput.
    """
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two
    pieces: list[bytes] = []
    left, size, step = body, 0, LARGE
    while not inflate.eof:
        try:
            piece = await off_the_loop(step, partial(inflate.decompress, left, step))
        except zlib.error as error:
            raise BadInput(f"The body is no {encoding}: {error}.") from error
        pieces.append(piece)
        size += len(piece)
        if size > MAX_UPLOAD_BYTES:
            raise TooLarge
        if len(piece) < step and not inflate.eof:
            raise BadInput(f"The body is no {encoding}: it ends too early.")
        share.grow_to(len(body) + size)
        left, step = inflate.unconsumed_tail, STEP
    return b"".join(pieces)


def compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Return a body in an encoding that its client has asked for, and the encoding's name."""
    names = [name.strip() for name in accepted.split(",")]
    if "gzip" in names:
        return gzip.compress(body, 1), "gzip"
    if "deflate" in names:
        return zlib.compress(body, 1), "deflate"
    return body, ""


def prepare(
    signature: Signature[ParamsT], header_length: str | None, body: bytes
) -> tuple[Job[Reply], int]:
    """Return a request's work, and its size in bytes. Raises what it is refused with."""
    asked, tensors = parse(body, header_length)
    names = [output.name for output in asked.outputs]
    columns = signature.wanted(names, tensors)
    binary = dict.fromkeys([x.name for x in columns], asked.parameters.get("binary_data_output"))
    binary |= {
        output.name: output.parameters["binary_data"]
        for output in asked.outputs
        if "binary_data" in output.parameters
    }
    head: Parameters = {"model_name": NAME, "model_version": VERSION}
    if asked.id is not None:
        head["id"] = asked.id
    flags = [binary[column.name] is True for column in columns]
    question = signature.read(tensors, asked.parameters)
    return Job(question.decoder(), partial(encode, columns, flags, head)), question.size


async def read_job(signature: Signature[ParamsT], request: Request) -> Job[Reply]:
    """Return a request's work. Raises what it is refused with."""
    body = await read_body(request)
    header_length = request.headers.get(HEADER_LENGTH)
    function = partial(prepare, signature, header_length, body)
    job, size = await one_at_a_time(len(body), function)
    request.state.body.grow_to(size)
    return job


async def one_at_a_time(size: int, function: Callable[[], T]) -> T:
    """Return what a function returns that takes memory where there are many bytes."""
    if size <= LARGE:
        return function()
    async with reading:
        found = await run_in_threadpool(settle, function)
    return result(found)


def settle(function: Callable[[], T]) -> T | Failure:
    """Return what a function returns, or what refuses a request, without all that the call held."""
    try:
        return function()
    except (ServiceError, RequestValidationError) as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def result(found: T | Failure) -> T:
    """Return what was settled, or raise it."""
    if not isinstance(found, ServiceError | RequestValidationError):
        return found
    try:
        raise found
    finally:
        del found  # else it and its traceback would hold each other


async def off_the_loop(size: int, function: Callable[[], T]) -> T:
    """Return what a function returns that takes long where there are many bytes."""
    return await run_in_threadpool(function) if size > LARGE else function()


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
        return ServerMetadata(name=NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    @router.get("/v2/health/live")
    async def server_live() -> dict[str, bool]:
        """Liveness, as `GET /health`."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Readiness, as `GET /ready`."""
        service.worker.check()
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
        service.worker.check()
        return ModelReady(name=name, ready=True)

    @router.post("/v2/models/{name}/infer", **infer)
    @router.post(
        "/v2/models/{name}/versions/{version}/infer",
        name="model_infer_of_version",
        **infer,
    )
    async def model_infer(name: str, request: Request, version: str | None = None) -> Response:
        """Answer, tensors for tensors."""
        signature.check(name, version)
        job = await read_job(signature, request)
        reply = await service.worker.run(job, request.state.body.is_disconnected)
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
