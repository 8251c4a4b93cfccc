"""Inputs of extreme shapes: thin pictures, recordings of a few samples, clips of one frame."""

import struct
import wave
from io import BytesIO
from pathlib import Path
from textwrap import indent

import pytest
from PIL import Image

from tests.support.code_blocks import blocks
from tests.support.environments import environment, run
from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import change
from tests.support.variants import ROOT, table

PAGE = ROOT / "docs" / "how-to" / "wrap-a-model.md"
CLIP = """
import sys
import av
import numpy as np

with av.open(sys.argv[1], "w") as clip:
    stream = clip.add_stream("mpeg4", rate=10, width=64, height=2, pix_fmt="yuv420p")
    frame = av.VideoFrame.from_ndarray(np.zeros((2, 64, 3), dtype=np.uint8), format="rgb24")
    for packet in [*stream.encode(frame), *stream.encode(None)]:
        clip.mux(packet)
"""


def picture(width: int, height: int) -> bytes:
    """Return a picture of this size."""
    file = BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format="PNG")
    return file.getvalue()


def recording(samples: int, rate: int = 16_000) -> bytes:
    """Return a recording of so many samples."""
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, samples, "NONE", ""))
        writer.writeframes(struct.pack("<h", 1000) * samples)
    return file.getvalue()


PICTURES = [(picture(20_000, 1), 200), (picture(1, 20_000), 200), (picture(1, 1), 200)]
RECORDINGS = [(recording(3), 200), (recording(1), 200), (recording(0), 400)]
RECORDINGS += [(recording(3, 48_000), 200)]  # one sample at 16,000 Hz


@pytest.mark.parametrize(
    ("answers", "files"),
    [
        ({"model_type": "custom", "input_kind": "image"}, PICTURES),
        ({"model_type": "custom", "input_kind": "image-params"}, PICTURES),
        ({"model_type": "custom", "input_kind": "audio"}, RECORDINGS),
        ({"preset": "silero-vad"}, RECORDINGS),
    ],
    ids=["image", "image-params", "audio", "silero-vad"],
)
def test_stock_models(
    answers: dict[str, str], files: list[tuple[bytes, int]], tmp_path: Path
) -> None:
    """Each stock model answers what is decoded, whatever its shape; nothing is a 500."""
    project = render(tmp_path / "service", answers | {"endpoint": endpoint(answers)})
    python = environment(answers.get("preset", "custom")) / "bin" / "python"
    with live(project, str(python), tmp_path / "log", DEVICE="cpu") as service:
        client = service.ready()
        for file, status in files:
            response = client.post(f"/{endpoint(answers)}", files={"file": file})
            assert response.status_code == status, response.text


def endpoint(answers: dict[str, str]) -> str:
    """Return the route of a service with these answers."""
    preset = answers.get("preset")
    row = table("presets")[preset] if preset else table("input_kinds")[answers["input_kind"]]
    return str(row["endpoint"])


def test_clip_of_one_frame(tmp_path: Path) -> None:
    """The stock model for clips answers one of a single, flat frame."""
    project = render(tmp_path / "service", {"model_type": "custom", "input_kind": "video"})
    python = str(environment("custom") / "bin" / "python")
    clip = tmp_path / "clip.mp4"
    run([python, "-c", CLIP, str(clip)])
    with live(project, python, tmp_path / "log", DEVICE="cpu") as service:
        response = service.ready().post("/describe", files={"file": clip.read_bytes()})
        assert response.status_code == 200, response.text


def test_documented_check(tmp_path: Path) -> None:
    """The check that the documents show rejects thin pictures, and no others."""
    [check] = [
        block.text
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        if block.mark.endswith("test_extreme_shapes.py::test_documented_check")
    ]
    project = render(tmp_path / "service", {"model_type": "custom", "input_kind": "image"})
    model = project / "inference.py"
    change(model, "from serving import ", "from serving import BadInput, ")
    start = "        shares = self._shares(image)\n"
    change(model, start, indent(check, " " * 8) + start)
    python = str(environment("custom") / "bin" / "python")
    with live(project, python, tmp_path / "log", DEVICE="cpu") as service:
        client = service.ready()
        for size, status in {(20, 1): 400, (1, 20_000): 400, (19, 1): 200}.items():
            response = client.post("/classify", files={"file": picture(*size)})
            assert response.status_code == status, response.text
