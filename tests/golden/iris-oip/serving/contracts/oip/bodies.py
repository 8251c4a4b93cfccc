"""Bodies of requests and answers over HTTP: JSON, the binary data behind it, and compression."""

import gzip
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from gzip import BadGzipFile, GzipFile
from io import BytesIO
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from serving.contracts.oip.fields import Column, check_json
from serving.contracts.oip.large import LARGE, off_the_loop
from serving.contracts.oip.messages import InferRequest, Parameters
from serving.contracts.oip.signature import ELEMENT_BYTES, answers
from serving.contracts.oip.tensors import Tensor
from serving.errors import BadInput, TooLarge, UnsupportedType
from serving.limits import MAX_UPLOAD_BYTES, Share
from serving.schemas import field_errors

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the binary data
SMALL = 1024  # bytes that are not worth to be compressed
STEP = 1024 * 1024  # bytes of a body that are unpacked before they are counted
GZIP = b"\x1f\x8b"  # begins each member


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
        if answer.content_type and not (is_binary and answer.content_type == "base64"):
            parameters["content_type"] = answer.content_type
        if is_binary:
            behind.append(answer.binary)
            parameters["binary_data_size"] = len(behind[-1])
        else:
            tensor["data"] = answer.in_json
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
        parameters = given.parameters or {}
        size = parameters.get("binary_data_size")
        binary = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise BadInput(f"Tensor {given.name!r}: no {size} bytes of binary data are left.")
            binary = body[end : end + size]
            end += size
        tensors.append(
            Tensor(given.name, given.datatype, given.shape, elements, binary, parameters)
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
    read = GzipFile(fileobj=BytesIO(body)).read if body.startswith(GZIP) else inflate(body)
    pieces: list[bytes] = []
    size, step = 0, LARGE
    try:
        while piece := await off_the_loop(max(len(body), step), partial(read, step)):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_UPLOAD_BYTES:
                raise TooLarge
            share.grow_to(len(body) + size)
            step = STEP
    except EOFError as error:
        raise BadInput(f"The body is no {encoding}: it ends too early.") from error
    except (BadGzipFile, zlib.error) as error:
        raise BadInput(f"The body is no {encoding}: {error}.") from error
    return b"".join(pieces)


def inflate(body: bytes) -> Callable[[int], bytes]:
    """Return what reads a zlib stream in pieces. It raises EOFError where the stream is cut off."""
    stream, left = zlib.decompressobj(), body

    def read(size: int) -> bytes:
        nonlocal left
        piece = stream.decompress(left, size)
        left = stream.unconsumed_tail
        if not piece and not stream.eof:
            raise EOFError
        return piece

    return read


def compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    """Return a body in an encoding that its client has asked for, and the encoding's name."""
    names = [name.strip() for name in accepted.split(",")]
    if "gzip" in names:
        return gzip.compress(body, 1), "gzip"
    if "deflate" in names:
        return zlib.compress(body, 1), "deflate"
    return body, ""
