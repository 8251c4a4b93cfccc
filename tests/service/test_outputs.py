"""Answers that are no JSON: pictures, recordings, clips and other files, alone and as fields."""

import io
import json
import math
import re
import subprocess
import wave
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

import httpx
import pytest

from tests.service.test_openapi import CLIENT, SCRIPTS, generate, make_python_client
from tests.support.clients import driver
from tests.support.environments import run, tool
from tests.support.live import Live, live
from tests.support.open_inference import INFER, make, started, tensor
from tests.support.openapi import export, validate
from tests.support.rendering import render
from tests.support.updating import own_tests, put_model, python

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("outputs")

# Answers with what a request's script makes.
STUDIO = '''"""Makes what a request says."""

from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from serving import Clip, File, Input, Picture, Recording

MODEL_NAME = "studio"


class Params(BaseModel):
    script: str = "File(data=b'')"


Output = File
EXAMPLE: dict[str, Any] = {}
PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
TONE = np.sin(np.arange(12_000) / 20).astype(np.float32)
FRAMES = [np.full((32, 48, 3), 20 * number, np.uint8) for number in range(10)]


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Any]:
        return [eval(item.params.script) for item in inputs]
'''
# What a file holds, asked where there is a decoder for it.
LOOK = """
import io, json, sys
import av
import numpy as np
from PIL import Image

file = io.BytesIO(sys.stdin.buffer.read())
if sys.argv[1] == "image":
    picture = Image.open(file)
    told = {"format": picture.format, "mode": picture.mode, "values": np.array(picture).tolist()}
else:
    with av.open(file) as container:
        [stream] = container.streams
        frames = list(container.decode(stream))
        told = {"codec": stream.codec_context.name}
        if sys.argv[1] == "video":
            pixels = np.array([frame.to_ndarray(format="rgb24") for frame in frames])
            told |= {"rate": float(stream.average_rate), "shape": pixels.shape}
            told["values"] = pixels.mean(axis=(1, 2, 3)).tolist()
        else:
            samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
            told |= {"rate": stream.rate, "shape": [stream.codec_context.channels]}
            told["values"] = samples.ravel().tolist()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return a service that makes any file, also for contracts that ask in JSON."""
    folder = tmp_path_factory.mktemp("studio")
    answers = {"model_type": "custom", "input_kind": "json"}
    contracts = ["sagemaker", "model-engine"]
    features = ["isolation"]  # so that each answer comes from another process
    project = render(folder / "service", answers | {"contracts": contracts, "features": features})
    put_model(project, STUDIO)
    with live(project, python(), folder / "log") as service:
        service.ready()
        yield service


def ask(service: Live, script: str, accept: str = "*/*", route: str = "/infer") -> httpx.Response:
    """Have the model make something."""
    headers = {"Accept": accept}
    return service.client.post(route, json={"script": script}, headers=headers)


def look(medium: str, file: bytes) -> dict[str, Any]:
    """Return what a decoder says of a file."""
    done = subprocess.run(
        [python(), "-c", LOOK, medium], input=file, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("Picture.of(PIXELS)", "png"),
        ("Picture.of(Image.fromarray(PIXELS))", "png"),
        ("Picture.of(PIXELS, content_type='image/webp')", "webp"),
        ("Picture.of(PIXELS, content_type='image/jpeg')", "jpeg"),
    ],
)
def test_picture(studio: Live, script: str, kind: str) -> None:
    """A picture is the body; a PNG has every pixel as it was."""
    answer = ask(studio, script).raise_for_status()
    assert answer.headers["content-type"] == f"image/{kind}"
    assert "content-disposition" not in answer.headers
    found = look("image", answer.content)
    assert (found["format"], found["mode"]) == (kind.upper(), "RGB")
    if kind == "png":
        flat = [value for row in found["values"] for pixel in row for value in pixel]
        assert flat == list(range(8 * 6 * 3))


def test_wav(studio: Live) -> None:
    """A WAV has the samples, within what 16 bits can tell; what is too loud is cut off."""
    answer = ask(studio, "Recording.of(TONE, 8000)").raise_for_status()
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        samples = array("h", file.readframes(file.getnframes()))
    assert len(samples) == 12_000
    assert all(abs(x / 32767 - math.sin(n / 20)) < 1 / 32767 for n, x in enumerate(samples))
    loud = ask(studio, "Recording.of(np.array([[2.0, 0.5], [-2.0, 0.0]]), 8000)").content
    with wave.open(io.BytesIO(loud)) as file:
        assert file.getnchannels() == 2
        assert list(array("h", file.readframes(2))) == [32767, -32767, 16384, 0]


@pytest.mark.parametrize(("samples", "channels"), [("TONE", 1), ("np.stack([TONE, -TONE])", 2)])
def test_flac(studio: Live, samples: str, channels: int) -> None:
    """A FLAC has them, too."""
    answer = ask(studio, f"Recording.of({samples}, 8000, content_type='audio/flac')")
    assert answer.raise_for_status().headers["content-type"] == "audio/flac"
    found = look("audio", answer.content)
    assert (found["codec"], found["rate"], found["shape"]) == ("flac", 8000, [channels])
    first = found["values"][::channels]
    assert len(first) == 12_000
    assert all(abs(x / 32767 - math.sin(n / 20)) < 1 / 32767 for n, x in enumerate(first))


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_clip(studio: Live, kind: str, codec: str) -> None:
    """A clip has the frames, each as bright as it was."""
    answer = ask(studio, f"Clip.of(FRAMES, 5, content_type='video/{kind}')")
    assert answer.raise_for_status().headers["content-type"] == f"video/{kind}"
    found = look("video", answer.content)
    assert (found["codec"].removeprefix("lib"), found["rate"]) == (codec, 5)
    assert found["shape"] == [10, 32, 48, 3]
    for number, brightness in enumerate(found["values"]):
        assert abs(brightness - 20 * number) < 4


@pytest.mark.parametrize("name", ["report.csv", "naïve (1).csv", 'a"b;c%20.csv', "表.csv", "..."])
def test_any_file(studio: Live, name: str) -> None:
    """Any file has its own bytes, type and name; odd letters of the name are as RFC 8187 says."""
    script = f"File(data=bytes(range(256)), content_type='text/csv; header=absent', name={name!r})"
    answer = ask(studio, script).raise_for_status()
    assert answer.content == bytes(range(256))
    assert answer.headers["content-type"] == "text/csv; header=absent"
    assert answer.headers["x-content-type-options"] == "nosniff"
    kind, _, parameter = answer.headers["content-disposition"].partition("; ")
    key, _, value = parameter.partition("=UTF-8''")
    assert (kind, key, unquote(value)) == ("inline", "filename*", name)
    assert re.fullmatch(r"[\w.%~-]+", value, re.ASCII)


JSON_FIRST = [
    "application/json",
    "application/json, */*;q=0.1",
    "image/png;q=0.5, application/json",
]
FILE_FIRST = ["*/*", "image/png", "image/*, application/json;q=0.9", "text/html, */*;q=0.8"]
FILE_FIRST += [
    "application/json;q=0, */*",
    "application/json, */*",
    "text/html",
    ";;,q=,",
    "a/b;q=x",
]


@pytest.mark.parametrize("route", ["/infer", "/invocations"])
def test_accept(studio: Live, route: str) -> None:
    """Who prefers JSON gets that, with the same content in base64; everybody else the file."""
    script = "Picture.of(PIXELS, name='ä.png')"
    file = ask(studio, script).content
    for accept in JSON_FIRST:
        answer = ask(studio, script, accept, route).raise_for_status()
        assert answer.headers["content-type"] == "application/json", accept
        told = {"content_type": "image/png", "name": "ä.png", "data": b64encode(file).decode()}
        assert answer.json() == told
    for accept in FILE_FIRST:
        answer = ask(studio, script, accept, route).raise_for_status()
        assert (answer.headers["content-type"], answer.content) == ("image/png", file), accept
    bare = httpx.Request("POST", f"{studio.url}{route}", json={"script": script})
    with httpx.Client() as client:
        assert client.send(bare).content == file  # no Accept at all


def test_contracts_of_json(studio: Live) -> None:
    """Model Engine's forwarder gets JSON always; each of JSON Lines is answered by a line."""
    file = ask(studio, "Picture.of(PIXELS)").content
    document = {"args": {"script": "Picture.of(PIXELS)"}}
    answer = studio.client.post("/predict", json=document, headers={"Accept": "*/*"})
    assert b64decode(answer.raise_for_status().json()["data"]) == file
    lines = (
        json.dumps({"script": "Picture.of(PIXELS)"})
        + "\n"
        + json.dumps({"script": "File(data=b'1')"})
    )
    headers = {"Content-Type": "application/jsonlines", "Accept": "*/*"}
    answer = studio.client.post("/invocations", content=lines, headers=headers)
    found = [json.loads(line)["data"] for line in answer.raise_for_status().text.splitlines()]
    assert list(map(b64decode, found)) == [file, b"1"]


WRONG = {
    "no file": "PIXELS",
    "bytes": "PIXELS.tobytes()",
    "another model": "item.params",
    "large numbers for pixels": "Picture.of(PIXELS.astype(np.int32))",
    "floats for pixels": "Picture.of(PIXELS / 255)",
    "transparent JPEG": "Picture.of(np.zeros((4, 4, 4), np.uint8), content_type='image/jpeg')",
    "no such format": "Picture.of(PIXELS, content_type='image/gif')",
    "whole samples": "Recording.of(np.array([1, 2]), 8000)",
    "not a number": "Recording.of(np.array([np.nan]), 8000)",
    "three channels": "Recording.of(np.zeros((3, 8)), 8000)",
    "no frames": "Clip.of([], 5)",
    "frames of two sizes": "Clip.of([*FRAMES, np.zeros((8, 8, 3), np.uint8)], 5)",
    "odd sides": "Clip.of([np.zeros((7, 5, 3), np.uint8)], 5)",
    "a header in the type": "File(data=b'', content_type='a/b\\r\\nX-Evil: 1')",
    "no type": "File(data=b'', content_type='')",
    "a path for a name": "File(data=b'', name='../a')",
    "a text, be it base64": "File(data='abcd')",
}


@pytest.mark.parametrize("script", WRONG.values(), ids=WRONG)
def test_wrong(studio: Live, script: str) -> None:
    """What the model must not return is a 500 with an id, whatever the client takes."""
    for accept in ("*/*", "application/json"):
        answer = ask(studio, script, accept)
        assert answer.status_code == 500
        assert f"Error {answer.json()['error_id']}" in studio.log


# A picture that is the answer, with numbers beside it.
PAINTER = '''"""Paints a square of one colour."""

import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from serving import Input, Picture

MODEL_NAME = os.getenv("MODEL_NAME", "painter")


class Params(BaseModel):
    """The request's body."""

    red: int = Field(default=255, ge=0, le=255)
    size: int = Field(default=4, ge=1, le=1000)


class Output(Picture):
    """The picture."""

    content_type: Literal["image/png", "image/webp"] = "image/png"
    brightness: float
    corner_colors: list[int]
    title: str


EXAMPLE: dict[str, Any] = {"red": 200}


class Model:
    """Paints."""

    def __init__(self, device: str) -> None:
        """Take the device, which is not needed."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Paint for each."""
        return [self._paint(item.params) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Paint it twice."""
        yield from self.predict([item, item])

    def _paint(self, params: Params) -> Output:
        canvas = np.zeros((params.size, params.size, 3), np.uint8)
        canvas[..., 0] = params.red
        brightness = float("nan") if params.red == 13 else params.red / 256
        colors = [params.red, 0, 0]
        title = "rød\\n“1”"
        return Output.of(canvas, brightness=brightness, corner_colors=colors, title=title)
'''
# Pictures that are fields, beside a number.
MASKS = '''"""Finds the light parts of a picture."""

import os

import numpy as np
from pydantic import BaseModel

from serving import Decoder, Input, Picture

MODEL_NAME = os.getenv("MODEL_NAME", "masks")
DECODER = Decoder(mode="L", background="white")


class Params(BaseModel):
    """Parameters beside the picture: none."""


class Output(BaseModel):
    """What is light, as a mask, with one for each half, and how much it is."""

    mask: Picture
    halves: list[Picture]
    share: float


EXAMPLE = {"file": "example.png"}


class Model:
    """Compares each pixel with a half."""

    def __init__(self, device: str) -> None:
        """Take the device, which is not needed."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the mask of each."""
        return [self._find(np.asarray(item.image) > 127) for item in inputs]

    def _find(self, light: np.ndarray) -> Output:
        pixels = light.astype(np.uint8) * 255
        mask = Picture.of(pixels, name="mask.png")
        middle = pixels.shape[1] // 2
        halves = [Picture.of(pixels[:, :middle]), Picture.of(pixels[:, middle:])]
        return Output(mask=mask, halves=halves, share=float(light.mean()))
'''
CONTRACTS_OF_ALL = ["oip-grpc", "sagemaker", "model-engine"]


@pytest.fixture(scope="module")
def painter_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service whose answer is a picture."""
    folder = tmp_path_factory.mktemp("painter") / "service"
    features = ["observability", "streaming", "batching", "openapi-export"]
    answers = {"input_kind": "json", "contracts": CONTRACTS_OF_ALL, "features": features}
    project = make(folder, **answers)
    put_model(project, PAINTER)
    (project / "tests" / "test_model.py").unlink()
    return project


@pytest.fixture(scope="module")
def painter(painter_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return it, live."""
    with started(painter_project, tmp_path_factory.mktemp("log") / "log") as service:
        yield service


def test_headers(painter: Live) -> None:
    """The further fields are headers, each as JSON in ASCII, which pages may read."""
    origin = {"Origin": "https://app.example"}
    answer = painter.client.post("/infer", json={"red": 128}, headers=origin).raise_for_status()
    assert look("image", answer.content)["values"] == [[[128, 0, 0]] * 4] * 4
    found = {
        name: json.loads(answer.headers[f"X-Output-{name}"])
        for name in ("brightness", "corner_colors", "title")
    }
    assert found == {"brightness": 0.5, "corner_colors": [128, 0, 0], "title": "rød\n“1”"}
    whole = painter.client.post("/infer", json={"red": 128}, headers={"Accept": "application/json"})
    told = {"content_type": "image/png", "name": "", "data": b64encode(answer.content).decode()}
    assert whole.json() == told | found
    assert "*" in answer.headers["access-control-expose-headers"]


def test_no_number(painter: Live) -> None:
    """A header that would be NaN is a 500, as it is in JSON."""
    for accept in ("*/*", "application/json"):
        answer = painter.client.post("/infer", json={"red": 13}, headers={"Accept": accept})
        assert answer.status_code == 500
        assert answer.json()["error_id"] in painter.log


def test_document(painter: Live) -> None:
    """The OpenAPI document has the types of the file beside JSON, and the headers."""
    document = painter.client.get("/openapi.json").json()
    for route in ("/infer", "/invocations"):
        entry = document["paths"][route]["post"]["responses"]["200"]
        kinds = ["application/json", "image/png", "image/webp"]
        assert [kind for kind in entry["content"] if kind != "text/event-stream"] == kinds
        assert entry["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Output"
        }
        assert entry["content"]["image/png"]["schema"] == {"type": "string", "format": "binary"}
        assert {"Content-Disposition", "X-Output-brightness"} < entry["headers"].keys()
    entry = document["paths"]["/predict"]["post"]["responses"]["200"]
    assert list(entry["content"]) == ["application/json"]
    fields = document["components"]["schemas"]["Output"]["properties"]
    assert fields["data"]["contentEncoding"] == "base64"
    assert fields["content_type"]["enum"] == ["image/png", "image/webp"]


def test_generated_clients(painter_project: Path, painter: Live, tmp_path: Path) -> None:
    """The documents are valid, generators take them, and a client that knows Accept gets JSON."""
    validate(export(painter_project, tmp_path))
    make_python_client(tmp_path / "openapi.json", tmp_path / "other")
    generate("openapi-generator", tmp_path / "openapi-3.0.json", tmp_path / "client")
    calls = json.dumps({"infer": {"path": {}, "body": {"red": 9}}})
    script = str(SCRIPTS / "of_openapi_generator.py")
    command = [tool("generated-client", *CLIENT), script, painter.url, calls]
    answer = json.loads(run(command, env={"PYTHONPATH": str(tmp_path / "client")}))["infer"]
    file = painter.client.post("/infer", json={"red": 9}).raise_for_status()
    assert b64decode(answer["data"]) == file.content
    assert answer["corner_colors"] == [9, 0, 0]


def test_stream(painter: Live) -> None:
    """Each part of a stream is the JSON."""
    whole = painter.client.post("/infer", json={}, headers={"Accept": "application/json"}).json()
    events = painter.client.post("/infer/stream", json={}).raise_for_status().text.split("\n\n")
    assert [json.loads(event.removeprefix("data: ")) for event in events[:2]] == [whole, whole]


def test_tensors(painter: Live) -> None:
    """Over the Open Inference Protocol the content is BYTES as they are, or base64 in JSON."""
    file = painter.client.post("/infer", json={"red": 7}).raise_for_status().content
    inputs = [tensor("red", "INT64", [1], [7])]
    found = painter.client.post(INFER, json={"inputs": inputs}).raise_for_status().json()
    tensors = {each["name"]: each for each in found["outputs"]}
    assert tensors["data"]["datatype"] == "BYTES"
    assert tensors["data"]["parameters"] == {"content_type": "base64"}
    assert b64decode(tensors["data"]["data"][0]) == file
    assert tensors["content_type"]["data"] == ["image/png"]
    assert tensors["corner_colors"]["data"] == [7, 0, 0]
    triton = driver("triton")
    address = painter.url.removeprefix("http://")
    for answer in (
        triton("http", address, "my-model-server", inputs, binary_output=True, outputs=["data"]),
        triton("grpc", f"127.0.0.1:{painter.grpc_port}", "my-model-server", inputs),
    ):
        [text] = next(x["data"] for x in answer["outputs"] if x["name"] == "data")
        assert text.encode(errors="surrogateescape") == file


def test_tensors_of_rows(painter: Live) -> None:
    """Rows have a file each."""
    inputs = [tensor("red", "INT64", [2], [7, 8])]
    found = painter.client.post(INFER, json={"inputs": inputs}).raise_for_status().json()
    [data] = [each for each in found["outputs"] if each["name"] == "data"]
    assert data["shape"] == [2]
    pictures = [look("image", b64decode(text))["values"][0][0] for text in data["data"]]
    assert pictures == [[7, 0, 0], [8, 0, 0]]


def test_conformance_of_a_file(painter_project: Path) -> None:
    """A service whose answer is a file passes all its tests, with all contracts."""
    result = own_tests(painter_project, forks="fake")
    assert result.returncode == 0, result.stdout


def test_conformance_of_fields(tmp_path: Path) -> None:
    """So does one that has files among the fields of its answer."""
    project = make(tmp_path / "service")
    put_model(project, MASKS)
    (project / "tests" / "test_model.py").unlink()
    result = own_tests(project, forks="fake")
    assert result.returncode == 0, result.stdout


def test_fields(tmp_path: Path) -> None:
    """A file in a field is base64 with its type in JSON, and tensors of its parts."""
    project = make(tmp_path / "service")
    put_model(project, MASKS)
    form = {"file": (project / "example.png").read_bytes()}
    with started(project, tmp_path / "log") as service:
        answer = service.client.post("/classify", files=form).raise_for_status()
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()
        assert list(found["mask"]) == ["content_type", "name", "data"]
        metadata = service.client.get("/v2/models/my-model-server").json()["outputs"]
        tensors = driver("triton")(
            "grpc",
            f"127.0.0.1:{service.grpc_port}",
            "my-model-server",
            [tensor("file", "BYTES", [1], [b64encode(form["file"]).decode()])],
        )["outputs"]
    assert {form["name"]: form.get("parameters") for form in metadata} == {
        "mask": {"content_type": "base64", "field": "mask.data"},
        "mask_content_type": {"field": "mask.content_type"},
        "mask_name": {"field": "mask.name"},
        "halves": {"content_type": "base64", "field": "halves.data"},
        "halves_content_type": {"field": "halves.content_type"},
        "halves_name": {"field": "halves.name"},
        "share": None,
    }
    values = {x["name"]: x["data"] for x in tensors}
    halves = [text.encode(errors="surrogateescape") for text in values["halves"]]
    assert halves == [b64decode(half["data"]) for half in found["halves"]]
    assert values["mask_name"] == ["mask.png"]
    mask = look("image", b64decode(found["mask"]["data"]))["values"]
    left, right = (look("image", half)["values"] for half in halves)
    assert mask == [[*one, *other] for one, other in zip(left, right, strict=True)]


# A picture for each picture of a batch, and a number.
FRAMED = '''"""Makes pictures smaller."""

import os

from pydantic import BaseModel

from serving import Decoder, Input, Picture

MODEL_NAME = os.getenv("MODEL_NAME", "smaller")
DECODER = Decoder()


class Params(BaseModel):
    """Parameters beside the pictures."""

    side: int = 8
    name: str = ""


class Output(Picture):
    """The smaller picture."""

    side: int


EXAMPLE = {"files": ["example.png", "example.png"]}


class Model:
    """Resizes."""

    def __init__(self, device: str) -> None:
        """Take the device, which is not needed."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Resize each."""
        return [self._resize(item) for item in inputs]

    def _resize(self, item: Input[Params]) -> Output:
        side = item.params.side
        return Output.of(item.image.resize((side, side)), name=item.params.name, side=side)
'''


# Gives back what was sent.
ECHO = '''"""Gives a recording back."""

from pydantic import BaseModel

from serving import Decoder, Input, Recording

MODEL_NAME = "echo"
DECODER = Decoder(sample_rate=8_000)


class Params(BaseModel):
    """Parameters beside the recording: none."""


Output = Recording
EXAMPLE = {"file": "example.wav"}


class Model:
    """Encodes."""

    def __init__(self, device: str) -> None:
        """Take the device, which is not needed."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return each."""
        return [Recording.of(item.samples, item.sample_rate) for item in inputs]
'''


def test_warning(tmp_path: Path) -> None:
    """What is known of the input since it is decoded is a header beside the file, too."""
    project = render(tmp_path / "service", {"model_type": "custom", "input_kind": "audio"})
    put_model(project, ECHO)
    file = (project / "example.wav").read_bytes()
    with live(project, python(), tmp_path / "log") as service:
        client = service.ready()
        answer = client.post("/transcribe", files={"file": file}).raise_for_status()
        cut = client.post("/transcribe", files={"file": file[: len(file) // 2]}).raise_for_status()
    assert "x-input-warning" not in answer.headers
    assert cut.headers["x-input-warning"]
    for found in (answer, cut):
        assert found.headers["content-type"] == "audio/wav"
        with wave.open(io.BytesIO(found.content)) as recording:
            assert recording.getframerate() == 8000
            assert recording.getnframes() > 0


def test_archive(tmp_path: Path) -> None:
    """A batch of files is JSON, or one archive for who prefers that; the suite knows both."""
    project = make(tmp_path / "service", input_kind="image-batch", contracts=["oip"])
    put_model(project, FRAMED)
    (project / "tests" / "test_model.py").unlink()
    picture = (project / "example.png").read_bytes()
    files = [("files", picture)] * 3
    with live(project, python(), tmp_path / "log") as service:
        client = service.ready()
        outputs = client.post("/classify", files=files).raise_for_status().json()["outputs"]
        for accept in ("application/zip", "application/json;q=0.5, application/zip, */*;q=0.1"):
            for name, names in {
                "": ["1.png", "2.png", "3.png"],
                "a": ["1-a", "2-a", "3-a"],
            }.items():
                headers, data = {"Accept": accept}, {"name": name}
                answer = client.post("/classify", files=files, data=data, headers=headers)
                assert answer.raise_for_status().headers["content-type"] == "application/zip"
                with ZipFile(io.BytesIO(answer.content)) as archive:
                    assert archive.namelist() == [*names, "outputs.json"]
                    found = [archive.read(each) for each in names]
                    told = json.loads(archive.read("outputs.json"))["outputs"]
                assert found == [b64decode(output["data"]) for output in outputs]
                assert told == [{"content_type": "image/png", "name": name, "side": 8}] * 3
        document = client.get("/openapi.json").json()["paths"]["/classify"]["post"]
        assert list(document["responses"]["200"]["content"]) == [
            "application/json",
            "application/zip",
        ]
    some = own_tests(project, "-k", "ms_24 or ms_52 or ms_63 or ms_68", forks="fake")
    assert some.returncode == 0, some.stdout
