"""What inference.py declares of its decoder holds: the model gets what it asked for."""

import math
import struct
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.live import START_SECONDS, Live, live
from tests.support.rendering import render
from tests.support.updating import put_model, python
from tests.support.variants import ROOT, example_of

# A model that tells what it got.
MODEL = '''"""Tells what it got."""

import numpy as np
from pydantic import BaseModel

from serving import Decoder, Input

DECODER = {decoder}
MODEL_NAME = "tells"


class Params(BaseModel):
    """None."""


class Output(BaseModel):
    """What came."""

    about: str
    shape: list[int]
    values: list[float]


EXAMPLE = {{{field}: "{example}"}}


class Model:
    """Tells."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Tell of each."""
        return [self._tell(item) for item in inputs]

    def _tell(self, item: Input[Params]) -> Output:
{tell}
        return Output(about=about, shape=list(array.shape), values=values)
'''
TELL = {
    "image": """\
        about, array = item.image.mode, np.asarray(item.image)
        values = array[0, 0].reshape(-1).tolist()""",
    "audio": """\
        about, array = str(item.sample_rate), item.samples
        values = np.abs(np.atleast_2d(array)).max(axis=1).tolist()""",
    "video": """\
        about, array = str(np.diff(item.times).mean()), item.frames
        values = array[:, 0, 0, 0].tolist()""",
}
MODEL_PATH = "/v2/models/my-model-server"
GREEN, WHITE = [0, 255, 0], [255, 255, 255]
RATE = 16_000


def make(folder: Path, kind: str, decoder: str, field: str = "DECODER.field") -> Path:
    """Render a service whose inference.py declares this decoder."""
    answers: dict[str, Any] = {"model_type": "custom", "input_kind": kind, "endpoint": "infer"}
    answers["contracts"] = ["oip"]
    project = render(folder, answers)
    example = example_of(kind)
    model = MODEL.format(decoder=decoder, tell=TELL[kind], field=field, example=example)
    put_model(project, model)
    return project


Start = Callable[[str, str], Live]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts the service with a decoder, once."""
    with ExitStack() as stack:

        @cache
        def started(kind: str, decoder: str) -> Live:
            folder = tmp_path_factory.mktemp(kind)
            project = make(folder / "service", kind, decoder)
            service = stack.enter_context(live(project, python(), folder / "log"))
            service.ready()
            return service

        yield started


def send(service: Live, file: bytes, field: str = "file") -> dict[str, Any]:
    """Send a file, and return what the model got."""
    answer = service.client.post("/infer", files={field: file})
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def tensors(service: Live) -> dict[str, list[int]]:
    """Return the shapes of the tensors that the service takes, by name."""
    inputs = service.client.get(MODEL_PATH).raise_for_status().json()["inputs"]
    return {form["name"]: form["shape"] for form in inputs}


def infer(service: Live, name: str, datatype: str, shape: list[int]) -> httpx.Response:
    """Send what is decoded already: zeros."""
    data = [0] * math.prod(shape)
    item = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return service.client.post(f"{MODEL_PATH}/infer", json={"inputs": [item]})


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# Red where nothing is seen of it.
TRANSPARENT = {
    "png": encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "PNG"),
    "webp": encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True),
    "tiff": encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "TIFF"),
    "gray-and-alpha": encoded(Image.new("LA", (3, 2), (7, 0)), "PNG"),
    "gif": encoded(Image.new("P", (3, 2), 0), "GIF", transparency=0),
    "palette": encoded(Image.new("P", (3, 2), 0), "PNG", transparency=0),
    "one-color": encoded(Image.new("RGB", (3, 2), (255, 0, 0)), "PNG", transparency=(255, 0, 0)),
    "one-gray": encoded(Image.new("L", (3, 2), 7), "PNG", transparency=7),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize(
    ("decoder", "mode", "pixel"),
    [
        ("Decoder()", "RGB", WHITE),
        ('Decoder(background="#00ff00")', "RGB", GREEN),
        ('Decoder(field="picture", mode="L")', "L", [255]),
        ('Decoder(mode="RGBA", background="#00ff00")', "RGBA", None),
    ],
    ids=["default", "background", "gray", "alpha"],
)
def test_transparent_picture(
    start: Start, decoder: str, mode: str, pixel: list[int] | None, name: str
) -> None:
    """What is transparent has the background's colour, or stays so in the mode RGBA."""
    service = start("image", decoder)
    found = send(service, TRANSPARENT[name], "picture" if "picture" in decoder else "file")
    assert (found["about"], found["shape"][:2]) == (mode, [2, 3])
    if pixel:
        assert found["values"] == pixel
    else:
        assert found["values"][3] == 0


def test_opaque_and_half(start: Start) -> None:
    """What is opaque keeps its colour; what is half transparent is mixed."""
    service = start("image", 'Decoder(background="#00ff00")')
    opaque = encoded(Image.new("RGBA", (3, 2), (200, 100, 50, 255)), "PNG")
    assert send(service, opaque)["values"] == [200, 100, 50]
    half = encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 128)), "PNG")
    assert send(service, half)["values"] == [128, 127, 0]


def test_name_of_the_field(start: Start) -> None:
    """The form's field has the declared name, in the document and for the contracts as well."""
    service = start("image", 'Decoder(field="picture", mode="L")')
    picture = encoded(Image.new("RGB", (3, 2), "white"), "PNG")
    assert send(service, picture, "picture") == {"about": "L", "shape": [2, 3], "values": [255]}
    other = service.client.post("/infer", files={"file": picture})
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["body", "picture"]
    document = service.client.get("/openapi.json").json()["paths"]["/infer"]["post"]
    form = document["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert (list(form["properties"]), form["required"]) == (["picture"], ["picture"])
    assert tensors(service) == {"picture": [-1], "image": [-1, -1, -1, 1]}
    assert infer(service, "image", "UINT8", [1, 2, 3, 1]).status_code == 200
    assert infer(service, "image", "UINT8", [1, 2, 3, 3]).status_code == 400


def test_channels_of_a_picture(start: Start) -> None:
    """The tensor has as many channels as the mode."""
    service = start("image", 'Decoder(mode="RGBA", background="#00ff00")')
    assert tensors(service)["image"] == [-1, -1, -1, 4]
    assert infer(service, "image", "UINT8", [1, 2, 3, 4]).status_code == 200
    assert infer(service, "image", "UINT8", [1, 2, 3, 3]).status_code == 400
    assert tensors(start("image", "Decoder()"))["image"] == [-1, -1, -1, 3]


def sound(*loudness: float, rate: int = RATE) -> bytes:
    """Return one second of a tone: one channel for each loudness."""
    tone = [math.sin(2 * math.pi * 440 * time / rate) for time in range(rate)]
    samples = [round(32767 * part * value) for value in tone for part in loudness]
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(len(loudness))
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue()


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_sample_rate(start: Start, rate: int) -> None:
    """The model gets the samples at its own rate, whatever the file's is."""
    found = send(start("audio", "Decoder(sample_rate=8_000)"), sound(0.5, rate=rate))
    assert found["about"] == "8000"
    assert found["shape"] == [pytest.approx(8_000, abs=8)]
    assert found["values"] == [pytest.approx(0.5, abs=0.02)]
    assert tensors(start("audio", "Decoder(sample_rate=8_000)"))["samples"] == [-1, -1]


@pytest.mark.parametrize(("loudness", "mixed"), [((0.9, 0.9), 0.9), ((0.5, 0), 0.25)])
def test_mono(start: Start, loudness: tuple[float, float], mixed: float) -> None:
    """Two channels become their mean, which is not louder than they are."""
    found = send(start("audio", "Decoder(sample_rate=8_000)"), sound(*loudness))
    assert found["values"] == [pytest.approx(mixed, abs=0.02)]


def test_stereo(start: Start) -> None:
    """Two channels stay apart; a recording of one has it twice."""
    service = start("audio", "Decoder(sample_rate=16_000, channels=2)")
    left = send(service, sound(0.5, 0.0))
    assert (left["about"], left["shape"]) == ("16000", [2, RATE])
    assert left["values"] == [pytest.approx(0.5, abs=0.01), pytest.approx(0, abs=0.001)]
    mono = send(service, sound(0.5))
    assert mono["shape"] == [2, RATE]
    assert mono["values"] == [pytest.approx(0.5, abs=0.01)] * 2
    assert tensors(service)["samples"] == [-1, 2, -1]
    assert infer(service, "samples", "FP32", [1, 2, 100]).status_code == 200
    assert infer(service, "samples", "FP32", [1, 1, 100]).status_code == 400


def test_frames(start: Start) -> None:
    """The example's two seconds of ten frames each, in the rate and the size that are declared."""
    file = (ROOT / "template" / "example.mp4").read_bytes()
    whole = send(start("video", "Decoder()"), file)
    assert whole["shape"] == [20, 96, 128, 3]
    assert float(whole["about"]) == pytest.approx(0.1)
    slow = send(start("video", "Decoder(fps=2)"), file)
    assert slow["shape"] == [4, 96, 128, 3]
    assert float(slow["about"]) == pytest.approx(0.5)
    assert send(start("video", "Decoder(fps=2, max_side=64)"), file)["shape"] == [4, 48, 64, 3]
    small = start("video", "Decoder(fps=5, size=(32, 16))")
    found = send(small, file)
    assert found["shape"] == [10, 16, 32, 3]
    assert float(found["about"]) == pytest.approx(0.2)
    assert tensors(small)["frames"] == [-1, 16, 32, 3]
    assert infer(small, "frames", "UINT8", [2, 16, 32, 3]).status_code == 200
    assert infer(small, "frames", "UINT8", [2, 16, 16, 3]).status_code == 400


@pytest.mark.parametrize("kind", TELL)
def test_example_without_the_field(kind: str, tmp_path: Path) -> None:
    """An EXAMPLE that lacks the decoder's field ends the start with one line."""
    project = make(tmp_path / "service", kind, 'Decoder(field="clip")', '"file"')
    with live(project, python(), tmp_path / "log") as service:
        assert service.process.wait(START_SECONDS) == 1
    [line] = [line for line in service.log.splitlines() if "CRITICAL" in line]
    assert "EXAMPLE in inference.py has no 'clip', DECODER's field" in line
    assert "Traceback" not in service.log
