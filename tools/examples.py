"""Make the example and .onnx files that the template carries: `python tools/examples.py`.

Needs numpy, pillow, av, onnx. Run it again only to change an example; the files are committed.
"""

import wave
from pathlib import Path

import av
import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageDraw, ImageFont

TEMPLATE = Path(__file__).parents[1] / "template"
RATE = 16_000
# Name, the country of the mouth, and the length in kilometres.
RIVERS = [
    ("Rhine", "Netherlands", 1233),
    ("Danube", "Romania", 2850),
    ("Loire", "France", 1006),
    ("Elbe", "Germany", 1094),
    ("Tagus", "Portugal", 1007),
]
PROSE = (
    "Rivers have been measured along their course from the spring to the mouth. Where a delta has "
    "several arms the longest was taken. The figures of this report are rounded to kilometres. "
)


def picture(path: Path) -> None:
    """Draw a red field with a blue disc on about a quarter of it."""
    image = Image.new("RGB", (192, 128), (220, 20, 30))
    ImageDraw.Draw(image).ellipse((56, 22, 140, 106), fill=(20, 40, 220))
    image.save(path, format="PNG", optimize=True)


def report(path: Path) -> None:
    """Draw a page with a title, two paragraphs, a table and a chart, both with a caption."""
    image = Image.new("L", (612, 792), "white")
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(9)
    draw.text((306, 60), "Five rivers of Europe", 0, ImageFont.load_default(26), anchor="mm")
    for top in (110, 440):
        words = iter(10 * PROSE.split())
        for y in range(top, top + 130, 13):
            line = ""
            while small.getlength(line) < 460:
                line += next(words) + " "
            draw.text((60, y), line, 0, small)
    draw.text((306, 274), "Table 1: Lengths, in kilometres", 0, small, anchor="mm")
    for row, cells in enumerate([("River", "Mouth", "Length"), *RIVERS]):
        for column, cell in enumerate(cells):
            left, top = 126 + 120 * column, 286 + 22 * row
            draw.rectangle((left, top, left + 120, top + 22), outline=0)
            draw.text((left + 8, top + 6), str(cell), 0, small)
    for place, (*_, length) in enumerate(RIVERS):
        left = 190 + 50 * place
        draw.rectangle((left, 720 - length // 25, left + 30, 720), 90, 0)
    draw.line((170, 595, 170, 720, 440, 720), 0, 2)
    draw.text((306, 740), "Figure 1: The same lengths as bars", 0, small, anchor="mm")
    image.quantize(16).save(path, format="PNG", optimize=True)


def tone(path: Path) -> None:
    """Write one second of A4, 440 Hz."""
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def clip(path: Path) -> None:
    """Write two seconds of ten frames: still, but for a white square that jumps at 1.5 s."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(20):
            frame = np.full((96, 128, 3), 40, dtype=np.uint8)
            left = 10 if number < 15 else 86
            frame[32:64, left : left + 32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def text(path: Path) -> None:
    """Write a hundred bytes: plain text, but for a check mark, which is three of them."""
    line = "A hundred bytes: ninety-seven of ASCII text, and a check mark"
    line += " which takes three in UTF-8, here: \N{CHECK MARK}\n"
    path.write_bytes(line.encode())


def linear(path: Path, weights: np.ndarray, bias: np.ndarray) -> None:
    """Write an .onnx file that computes `logits = features @ weights + bias`."""
    features, logits = weights.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", logits])],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel()),
            helper.make_tensor("bias", TensorProto.FLOAT, bias.shape, bias),
        ],
    )
    # Old enough for any ONNX Runtime that is still in use.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


if __name__ == "__main__":
    picture(TEMPLATE / "example.png")
    report(TEMPLATE / "example-report.png")
    tone(TEMPLATE / "example.wav")
    clip(TEMPLATE / "example.mp4")
    text(TEMPLATE / "example.txt")

    colors = [
        (0, 0, 0),
        (128, 128, 128),
        (255, 255, 255),
        (255, 0, 0),
        (255, 140, 0),
        (255, 255, 0),
        (0, 160, 0),
        (0, 255, 255),
        (0, 0, 255),
        (128, 0, 160),
        (255, 160, 190),
        (120, 70, 20),
    ]
    palette = np.array(colors, dtype=np.float32) / 255
    linear(TEMPLATE / "nearest-color.onnx", 2 * palette.T, -np.square(palette).sum(axis=1))

    window, semitones = 1024, np.arange(-21, 16)
    phases = 2 * np.pi * np.outer(np.arange(window), 440 * 2.0 ** (semitones / 12)) / RATE
    notes = np.hanning(window)[:, None] * np.hstack([np.cos(phases), np.sin(phases)])
    linear(TEMPLATE / "loudest-note.onnx", notes.astype("f4"), np.zeros(74, dtype="f4"))

    linear(
        TEMPLATE / "frame-difference.onnx",
        np.array([[-1], [1]], dtype="f4"),
        np.zeros(1, dtype="f4"),
    )
    trend = np.array([[-0.5], [0], [0.5], [1]], dtype="f4")
    linear(TEMPLATE / "linear-trend.onnx", trend, np.zeros(1, dtype="f4"))

    class_of = np.full(256, 3)
    class_of[:128] = 1
    class_of[[*b"\t\n\r", *range(32, 127)]] = 2
    class_of[0] = 0
    classes = np.eye(4, dtype="f4")[class_of]
    linear(TEMPLATE / "byte-classes.onnx", classes, np.zeros(4, dtype="f4"))
