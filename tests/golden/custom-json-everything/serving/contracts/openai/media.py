"""The routes that answer with media: `POST /v1/audio/speech`, `POST /v1/images/generations`.

The model decides on the form of a file. A request that names another is rejected: nothing is
converted here.
"""

import time
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from serving.actions import Action
from serving.contracts.openai.bodies import read
from serving.contracts.openai.errors import ERRORS, Refused
from serving.contracts.openai.requests import Asked, ModelRequest, Options
from serving.outputs import File, describe_file, encode_file
from serving.requests import essence

if TYPE_CHECKING:
    from serving.service import Service

VOICE = "default"  # of a model that has one voice alone
BEST = 100  # the compression that loses least
# What the API calls each content type.
SOUNDS = {
    "audio/mpeg": "mp3",
    "audio/ogg": "opus",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/wav": "wav",
    "audio/pcm": "pcm",
}
PICTURES = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/svg+xml": "svg",
}
ImageFormat = Literal["png", "jpeg", "webp", "gif", "svg"]


class SpeechRequest(ModelRequest):
    """Body of `POST /v1/audio/speech`."""

    input: str = Field(min_length=1, max_length=4096)
    voice: str
    speed: float | None = Field(default=None, ge=0.25, le=4)
    instructions: str = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    stream_format: Literal["audio"] = "audio"

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for."""
        yield Asked("voice", "voice", self.voice, self.voice == VOICE)
        yield Asked("speed", "speed", self.speed, self.speed == 1)
        yield Asked("instructions", "instructions", self.instructions or None)
        # The answer's own form tells whether the model makes this one.
        yield Asked("response_format", "response_format", self.response_format, is_usual=True)


class ImageRequest(ModelRequest):
    """Body of `POST /v1/images/generations`."""

    prompt: str = Field(min_length=1, max_length=32_000)
    n: int = Field(default=1, ge=1, le=10)
    size: str = Field(default="auto", pattern="^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")
    quality: str = "auto"
    style: str | None = None
    background: Literal["auto", "transparent", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    output_format: ImageFormat | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    response_format: Literal["b64_json"] = "b64_json"
    stream: Literal[False] = False
    partial_images: Literal[0] = 0

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for; "auto" leaves it to the model."""
        yield Asked("n", "n", self.n, self.n == 1)
        for name in ("size", "quality", "background", "moderation"):
            value = getattr(self, name)
            yield Asked(name, name, None if value == "auto" else value)
        yield Asked("style", "style", self.style)
        compression = self.output_compression
        yield Asked("output_compression", "output_compression", compression, compression == BEST)
        yield Asked("output_format", "output_format", self.output_format, is_usual=True)


class Image(BaseModel):
    """One picture."""

    b64_json: str


class ImageList(BaseModel):
    """Answer of `POST /v1/images/generations`: pictures of one form."""

    created: int
    data: list[Image]
    output_format: ImageFormat


def add_speech(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.speak` answers: a `Recording`, or another `File`."""

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={**ERRORS, **describe_file(File)},
        openapi_extra=describe_speech(takes),
    )
    async def create_speech(request: Request) -> Response:
        """Speak a text."""
        asked = await read(SpeechRequest, request)
        if "voice" not in takes.names and asked.voice != VOICE:
            message = f"This model has one voice, '{VOICE}'."
            raise Refused(message, "voice", "unsupported_parameter")
        job = Action(
            method="speak",
            arguments=(asked.input,),
            options=takes.choose(asked.asked()),
            encode=partial(encode_speech, asked),
        )
        answer: Response = await service.worker.run(job, request.state.body.is_disconnected)
        return answer


def add_images(router: APIRouter, service: "Service[Any]", takes: Options) -> None:
    """Add what `Model.draw` answers: a `Picture` or another `File`, or a list of them."""

    @router.post(
        "/v1/images/generations",
        response_model=ImageList,
        responses=ERRORS,
        openapi_extra=takes.describe(
            ImageRequest, {*ModelRequest.model_fields, "prompt", "output_format"}
        ),
    )
    async def create_image(request: Request) -> Response:
        """Draw a picture, or several."""
        asked = await read(ImageRequest, request)
        job = Action(
            method="draw",
            arguments=(asked.prompt,),
            options=takes.choose(asked.asked()),
            encode=partial(encode_images, asked),
        )
        body = await service.worker.run(job, request.state.body.is_disconnected)
        return Response(body, media_type="application/json")


def describe_speech(takes: Options) -> dict[str, Any]:
    """Describe the body for the OpenAPI document; without voices there is one."""
    ours = {*ModelRequest.model_fields, "input", "voice", "response_format"}
    described = takes.describe(SpeechRequest, ours)
    if "voice" not in takes.names:
        [content] = described["requestBody"]["content"].values()
        content["schema"]["properties"]["voice"]["enum"] = [VOICE]
    return described


def encode_speech(asked: SpeechRequest, outputs: list[Any]) -> Response:
    """Return the file that `speak` has returned. Raises Refused where another form is wanted."""
    [file] = outputs
    form_of(file, SOUNDS, "response_format", asked.response_format)
    return encode_file("*/*", outputs)


def encode_images(asked: ImageRequest, outputs: list[Any]) -> bytes:
    """Return the body for what `draw` has returned. Raises Refused where another form is wanted."""
    [drawn] = outputs
    files = [drawn] if isinstance(drawn, File) else drawn
    if len(files) != asked.n:
        raise RuntimeError(f"draw returned {len(files)} pictures where {asked.n} were wanted")
    forms = {form_of(file, PICTURES, "output_format", asked.output_format) for file in files}
    if len(forms) > 1:
        raise RuntimeError(f"draw returned pictures of several forms: {', '.join(sorted(forms))}")
    data = [Image(b64_json=b64encode(file.data).decode()) for file in files]
    answer = {"created": int(time.time()), "data": data, "output_format": forms.pop()}
    return ImageList.model_validate(answer).model_dump_json().encode()


def form_of(file: File, names: dict[str, str], field: str, wanted: str | None) -> str:
    """Return the name of a file's form. Raises Refused where the request's field wants another."""
    kind = essence(file.content_type)
    form = names.get(kind, kind)
    if wanted not in (None, form):
        raise Refused(f"This model makes {form}, not {wanted}.", field, "unsupported_value")
    return form
