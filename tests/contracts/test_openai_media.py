"""OpenAI's API of live services that speak and draw, asked by OpenAI's client and by litellm."""

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.test_openai import KEY, NAME, create
from tests.support.clients import driver
from tests.support.live import Live, live
from tests.support.openapi import export, validate
from tests.support.rendering import render
from tests.support.updating import put_model, python

pytestmark = pytest.mark.xdist_group("openai-media")

# What it makes says what it was told.
STUDIO = '''"""Speaks and draws, with all that a request may say of it."""

import json
from typing import Any

from pydantic import BaseModel

from serving import BadInput, File, Input, Picture

MODEL_NAME = "studio"
SOUNDS = {"mp3": "audio/mpeg", "opus": "audio/ogg; codecs=opus", "wav": "audio/wav"}


class Params(BaseModel):
    """The request's body."""


class Output(BaseModel):
    """Nothing."""


EXAMPLE: dict[str, Any] = {}


class Model:
    """Speaks and draws."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Answer each."""
        return [Output() for _ in inputs]

    def speak(
        self,
        text: str,
        *,
        voice: str,
        speed: float = 1,
        instructions: str = "",
        response_format: str = "wav",
    ) -> File:
        """Return what was said about it."""
        if voice == "nobody":
            raise BadInput("The voices are anna and bert.")
        if text == "fail":
            raise ValueError("secret")
        told = json.dumps([text, voice, speed, instructions]).encode()
        kind = SOUNDS.get(response_format, "audio/wav")
        return File(data=told, content_type=kind, name="speech.wav")

    def draw(
        self,
        prompt: str,
        *,
        n: int,
        size: str = "64x64",
        quality: str = "usual",
        background: str = "grey",
        style: str = "",
        output_format: str = "png",
        output_compression: int = 90,
    ) -> list[Picture]:
        """Return so many pictures of what was said about them."""
        if prompt == "two forms":
            return [Picture(data=b""), Picture(data=b"", content_type="image/webp")]
        told = [prompt, size, quality, background, style, output_compression]
        kind: Any = f"image/{'png' if output_format == 'gif' else output_format}"
        pictures = [json.dumps([*told, place]).encode() for place in range(n)]
        if prompt == "too few":
            del pictures[0]
        return [Picture(data=picture, content_type=kind) for picture in pictures]
'''
# Takes the text alone. Each call may end it, or be an answer that the API does not have.
PLAIN = '''"""Speaks with one voice, and draws one picture."""

from pydantic import BaseModel

from serving import Decoder, File, Input, Picture

MODEL_NAME = "plain"
DECODER = Decoder()
EXAMPLE = {"file": "example.png"}


class Params(BaseModel):
    """Parameters beside the picture: none."""


class Output(BaseModel):
    """Nothing."""


class Model:
    """Speaks and draws."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Answer each."""
        return [Output() for _ in inputs]

    def speak(self, text: str) -> File:
        """Return the text."""
        kind = "text/plain" if text == "as a text" else "audio/flac"
        return File(data=text.encode(), content_type=kind)

    def draw(self, prompt: str) -> File:
        """Return the prompt."""
        if prompt == "a bitmap":
            return File(data=b"BM", content_type="image/bmp")
        return Picture(data=prompt.encode(), content_type="image/webp")
'''
SPEECH, IMAGES = "/v1/audio/speech", "/v1/images/generations"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a service with keys, whose model is in a process of its own."""
    answers: dict[str, Any] = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    answers |= {"auth": "api-key", "contracts": ["openai"]}
    answers |= {"features": ["isolation", "openapi-export"]}
    project = render(tmp_path_factory.mktemp("studio") / "service", answers)
    put_model(project, STUDIO)
    return project


@pytest.fixture(scope="module")
def studio(project: Path) -> Iterator[Live]:
    """Run it."""
    with live(project, python(), project.parent / "log", API_KEYS=KEY) as running:
        running.ready().headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run a service of pictures whose other methods take their text alone."""
    folder = tmp_path_factory.mktemp("plain")
    answers = {"model_type": "custom", "input_kind": "image", "accelerator": "cpu"}
    project = render(folder / "service", answers | {"contracts": ["openai"], "features": []})
    put_model(project, PLAIN)
    with live(project, python(), folder / "log") as running:
        running.ready()
        yield running


def speech_of(answer: dict[str, Any]) -> tuple[str, Any]:
    """Return the content type of speech, and what the model was told."""
    return answer["headers"]["content-type"], json.loads(b64decode(answer["data"]))


@pytest.mark.parametrize("how", ["sync", "async", "streamed"])
def test_speech(studio: Live, how: str) -> None:
    """The answer is the model's file; what a request says is what the model is told."""
    usual: dict[str, Any] = {"how": how, "key": KEY, "input": "Grüß Gott", "voice": "anna"}
    answer = create(studio, "speech", **usual)
    assert speech_of(answer) == ("audio/wav", ["Grüß Gott", "anna", 1, ""])
    assert answer["headers"]["content-disposition"] == "inline; filename*=UTF-8''speech.wav"
    assert answer["headers"]["x-content-type-options"] == "nosniff"
    told = {"speed": 1.5, "instructions": "whisper", "response_format": "mp3"}
    found = create(studio, "speech", **usual, **told, stream_format="audio")
    assert speech_of(found) == ("audio/mpeg", ["Grüß Gott", "anna", 1.5, "whisper"])
    named = create(studio, "speech", **usual, response_format="opus")
    assert speech_of(named)[0] == "audio/ogg; codecs=opus"


@pytest.mark.parametrize("how", ["sync", "async", "raw"])
def test_images(studio: Live, how: str) -> None:
    """So many pictures come as are wanted, in base64, with the name of their form."""
    usual = {"how": how, "key": KEY, "prompt": "A cat"}
    answer = create(studio, "images", **usual)
    assert sorted(answer) == ["created", "data", "output_format"]
    assert answer["output_format"] == "png"
    assert pictures_of(answer) == [["A cat", "64x64", "usual", "grey", "", 90, 0]]
    left: dict[str, Any] = {
        "size": "auto",
        "quality": "auto",
        "background": "auto",
        "moderation": "auto",
    }
    left |= {"response_format": "b64_json", "stream": False, "partial_images": 0}
    same = create(studio, "images", **usual, **left)
    assert pictures_of(same) == pictures_of(answer)
    told = {"size": "32x16", "quality": "high", "background": "opaque", "style": "vivid"}
    several = create(
        studio, "images", **usual, **told, n=3, output_format="webp", output_compression=50
    )
    assert several["output_format"] == "webp"
    options = ["A cat", "32x16", "high", "opaque", "vivid", 50]
    assert pictures_of(several) == [[*options, place] for place in range(3)]


def pictures_of(answer: dict[str, Any]) -> list[Any]:
    """Return what the model was told, by each picture."""
    return [json.loads(b64decode(each["b64_json"])) for each in answer["data"]]


def test_without_options(plain: Live) -> None:
    """A model that takes no options is asked without; what is done anyway may be said."""
    body: dict[str, Any] = {"input": "Hello", "voice": "default"}
    usual = {"speed": 1, "instructions": "", "response_format": "flac"}
    for more in ({}, usual):
        answer = create(plain, "speech", **body, **more)
        assert answer["headers"]["content-type"] == "audio/flac"
        assert b64decode(answer["data"]) == b"Hello"
    usual = {"n": 1, "size": "auto", "output_compression": 100, "output_format": "webp"}
    for more in ({}, usual):
        answer = create(plain, "images", prompt="A cat", **more)
        assert answer["output_format"] == "webp"
        assert [b64decode(each["b64_json"]) for each in answer["data"]] == [b"A cat"]


def test_litellm(plain: Live) -> None:
    """The library litellm gets the same, with nothing changed for this service."""
    found = driver("of_openai")("media_by_litellm", plain.url, NAME, "A cat")
    assert list(map(b64decode, found)) == [b"A cat", b"A cat"]


SPOKEN = {"input": "Hello", "voice": "default"}
DRAWN = {"prompt": "A cat"}
# Where the model takes all that there is, and where it takes nothing.
REFUSED: dict[str, tuple[str, str, dict[str, Any], str | None, str | None]] = {
    "no voice": ("studio", SPEECH, {"input": "x"}, "voice", "missing_required_parameter"),
    "a custom voice": ("studio", SPEECH, {"input": "x", "voice": {"id": "a"}}, "voice", None),
    "no such voice": ("studio", SPEECH, {**SPOKEN, "voice": "nobody"}, None, None),
    "other voices": (
        "plain",
        SPEECH,
        {**SPOKEN, "voice": "anna"},
        "voice",
        "unsupported_parameter",
    ),
    "no text": ("studio", SPEECH, {**SPOKEN, "input": ""}, "input", "invalid_value"),
    "long": ("studio", SPEECH, {**SPOKEN, "input": "x" * 4097}, "input", "invalid_value"),
    "fast": ("plain", SPEECH, {**SPOKEN, "speed": 2}, "speed", "unsupported_parameter"),
    "too fast": ("studio", SPEECH, {**SPOKEN, "speed": 9}, "speed", "invalid_value"),
    "instructed": (
        "plain",
        SPEECH,
        {**SPOKEN, "instructions": "whisper"},
        "instructions",
        "unsupported_parameter",
    ),
    "events": ("studio", SPEECH, {**SPOKEN, "stream_format": "sse"}, "stream_format", None),
    "mp3 of a FLAC": (
        "plain",
        SPEECH,
        {**SPOKEN, "response_format": "mp3"},
        "response_format",
        "unsupported_value",
    ),
    "a form that the model leaves out": (
        "studio",
        SPEECH,
        {**SPOKEN, "response_format": "aac"},
        "response_format",
        "unsupported_value",
    ),
    "no such form": (
        "studio",
        SPEECH,
        {**SPOKEN, "response_format": "au"},
        "response_format",
        None,
    ),
    "no prompt": ("studio", IMAGES, {}, "prompt", "missing_required_parameter"),
    "two": ("plain", IMAGES, {**DRAWN, "n": 2}, "n", "unsupported_parameter"),
    "too many": ("studio", IMAGES, {**DRAWN, "n": 11}, "n", "invalid_value"),
    "a size": ("plain", IMAGES, {**DRAWN, "size": "8x8"}, "size", "unsupported_parameter"),
    "no size": ("studio", IMAGES, {**DRAWN, "size": "large"}, "size", "invalid_value"),
    "style": ("plain", IMAGES, {**DRAWN, "style": "vivid"}, "style", "unsupported_parameter"),
    "moderation": (
        "studio",
        IMAGES,
        {**DRAWN, "moderation": "low"},
        "moderation",
        "unsupported_parameter",
    ),
    "compressed": (
        "plain",
        IMAGES,
        {**DRAWN, "output_compression": 50},
        "output_compression",
        "unsupported_parameter",
    ),
    "an address": ("studio", IMAGES, {**DRAWN, "response_format": "url"}, "response_format", None),
    "streamed": ("studio", IMAGES, {**DRAWN, "stream": True}, "stream", None),
    "in parts": ("studio", IMAGES, {**DRAWN, "partial_images": 1}, "partial_images", None),
    "png of a WebP": (
        "plain",
        IMAGES,
        {**DRAWN, "output_format": "png"},
        "output_format",
        "unsupported_value",
    ),
    "a form that it leaves out": (
        "studio",
        IMAGES,
        {**DRAWN, "output_format": "gif"},
        "output_format",
        "unsupported_value",
    ),
    "unknown": ("studio", IMAGES, {**DRAWN, "negative_prompt": "x"}, "negative_prompt", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(request: pytest.FixtureRequest, name: str) -> None:
    """What is wrong, not supported, or not what the model makes is 400, with the field's name."""
    fixture, path, body, param, code = REFUSED[name]
    running: Live = request.getfixturevalue(fixture)
    response = running.client.post(path, json={"model": NAME, **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    expected = code or ("unknown_parameter" if name == "unknown" else "invalid_value")
    if param:
        assert (error["param"], error["code"]) == (param, expected), error
    assert error["type"] == "invalid_request_error"


def test_refused_in_words(studio: Live, plain: Live) -> None:
    """A form that the model does not make is rejected with the one that it makes."""
    failed = create(plain, "speech", **SPOKEN, response_format="mp3")["failure"]
    assert (failed["status"], failed["class"]) == (400, "BadRequestError")
    assert failed["message"] == "This model makes flac, not mp3."
    failed = create(studio, "images", key=KEY, prompt="A cat", output_format="gif")["failure"]
    assert failed["message"] == "This model makes png, not gif."
    failed = create(plain, "speech", input="Hello", voice="anna")["failure"]
    assert failed["message"] == "This model has one voice, 'default'."
    failed = create(studio, "speech", key=KEY, input="Hello", voice="nobody")["failure"]
    assert failed["message"] == "The voices are anna and bert."
    odd = create(plain, "speech", input="as a text", voice="default", response_format="wav")
    assert odd["failure"]["message"] == "This model makes text/plain, not wav."


def test_failures(studio: Live, plain: Live) -> None:
    """What the model does wrong is the service's error, and tells nothing; a key is needed."""
    for service, api, body in (
        (studio, "speech", {"input": "fail", "voice": "anna"}),
        (studio, "images", {"prompt": "too few", "n": 2}),
        (studio, "images", {"prompt": "two forms", "n": 2}),
        (plain, "images", {"prompt": "a bitmap"}),
    ):
        failed = create(service, api, key=KEY, **body)["failure"]
        assert (failed["status"], failed["class"]) == (500, "InternalServerError"), failed
        assert "secret" not in str(failed)
    assert "draw returned 1 pictures where 2 were wanted" in studio.log
    assert "draw returned pictures of several forms: png, webp" in studio.log
    wrong = create(studio, "speech", key="wrong", input="Hello", voice="anna")["failure"]
    assert (wrong["status"], wrong["class"]) == (401, "AuthenticationError")


def test_document(studio: Live, plain: Live, project: Path, tmp_path: Path) -> None:
    """The OpenAPI document is valid, and has of each body what the model takes."""
    validate(export(project, tmp_path))
    always = {"model", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"}
    always |= {"service_tier"}
    speech = {"input", "voice", "response_format"}
    images = {"prompt", "output_format"}
    for service, spoken, drawn in (
        (plain, set(), set()),
        (
            studio,
            {"speed", "instructions"},
            {"n", "size", "quality", "background", "style", "output_compression"},
        ),
    ):
        paths = service.client.get("/openapi.json").json()["paths"]
        assert {path for path in paths if path.startswith("/v1/") and "models" not in path} == {
            SPEECH,
            IMAGES,
        }
        fields = {path: fields_of(paths[path]) for path in (SPEECH, IMAGES)}
        assert fields[SPEECH].keys() == always | speech | spoken
        assert fields[IMAGES].keys() == always | images | drawn
        assert fields[SPEECH]["voice"].get("enum") == (None if spoken else ["default"])
        answers = paths[SPEECH]["post"]["responses"]["200"]["content"]
        assert answers == {"*/*": {"schema": {"type": "string", "format": "binary"}}}


def fields_of(path: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a path's body."""
    schema = path["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields: dict[str, Any] = schema["properties"]
    return fields
