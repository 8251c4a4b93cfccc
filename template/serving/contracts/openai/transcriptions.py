"""`POST /v1/audio/transcriptions`, for a model that has `transcribe`."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.actions import Action
from serving.contracts.openai.errors import ERRORS
from serving.contracts.openai.requests import Asked, ModelRequest, Options
from serving.errors import UnsupportedType
from serving.inputs import Upload
from serving.requests import ParsedRequest, check_encoding, essence, name_of, parse_form, text_of
from serving.schemas import field_errors, inline_refs

if TYPE_CHECKING:
    from serving.service import Service

FILE = "file"


class TranscriptionRequest(ModelRequest):
    """The fields of the form beside the file; each comes as a text."""

    model_config = ConfigDict(strict=False)

    language: str | None = None
    prompt: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    response_format: Literal["json", "text"] = "json"
    stream: bool = False

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for."""
        for name in ("language", "prompt"):
            yield Asked(name, name, getattr(self, name), getattr(self, name) == "")
        yield Asked("temperature", "temperature", self.temperature, self.temperature == 0)
        yield Asked("stream", "stream", self.stream, not self.stream)


class Transcription(BaseModel):
    """What was said."""

    text: str


def add_transcriptions(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.transcribe` answers: a text, or an object that has one."""

    @router.post(
        "/v1/audio/transcriptions",
        response_model=Transcription,
        responses=ERRORS,
        openapi_extra=describe(takes),
    )
    async def create_transcription(request: Request) -> Response:
        """Tell what is said in a recording."""
        asked, parsed = await read_form(service, request)
        job = Action(
            method="transcribe",
            decode=parsed.decode,
            options=takes.choose(asked.asked()),
            encode=partial(encode, asked, parsed),
        )
        body, headers = await service.worker.run(job, request.state.body.is_disconnected)
        kind = "application/json" if asked.response_format == "json" else "text/plain"
        return Response(body, headers=headers, media_type=kind)


async def read_form(
    service: "Service[Any]", request: Request
) -> tuple[TranscriptionRequest, ParsedRequest[Any]]:
    """Return the fields and the file. Raises what `RequestParser` does, and NoSuchModel."""
    header = request.headers.get("content-type", "")
    body = await request.body()
    check_encoding(request)
    if essence(header) != "multipart/form-data":
        raise UnsupportedType("Send multipart/form-data.")
    parts = parse_form(body, header)
    files = [
        Upload.sent(part.raw, part.filename, part.headers.get("Content-Type"))
        for part in parts
        if name_of(part) == FILE
    ]
    fields = {name_of(part): text_of(part) for part in parts if part.filename is None}
    try:
        asked = TranscriptionRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(field_errors(error)) from error
    asked.check_model()
    return asked, service.parse.check(files[-1:], {})


def encode(
    asked: TranscriptionRequest, parsed: ParsedRequest[Any], outputs: list[Any]
) -> tuple[bytes, dict[str, str]]:
    """Return the body for what `transcribe` has returned, and what is known of the file."""
    [output] = outputs
    text = output if isinstance(output, str) else output.text
    if asked.response_format == "text":
        return f"{text}\n".encode(), parsed.headers
    return Transcription(text=text).model_dump_json().encode(), parsed.headers


def describe(takes: Options) -> dict[str, Any]:
    """Describe the form for the OpenAPI document."""
    schema = inline_refs(TranscriptionRequest.model_json_schema())
    known = takes.names | ModelRequest.model_fields.keys() | {"response_format"}
    fields = {name: field for name, field in schema["properties"].items() if name in known}
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {FILE: file, **fields}, "required": [FILE, "model"]}
    content = {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}
