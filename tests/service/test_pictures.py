"""Pictures of every kind get the right answer, or a sentence that says what is wrong with them."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from tests.support.code_blocks import blocks
from tests.support.environments import run, uv
from tests.support.live import Live, live
from tests.support.malformed import PNG, chunk
from tests.support.rendering import render
from tests.support.updating import change, put_model, python
from tests.support.variants import ROOT

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("pictures")

CASES = ROOT / "tests" / "support" / "cases" / "image"
# A model that tells what it got.
MODEL = '''"""Tells what it got."""

from pydantic import BaseModel

from serving import Decoder, Input

DECODER = Decoder()
MODEL_NAME = "tells"


class Params(BaseModel):
    """None."""


class Output(BaseModel):
    """What came."""

    size: tuple[int, int]
    first: tuple[int, int, int]
    last: tuple[int, int, int]


EXAMPLE = {"files": ["example.png"]}


class Model:
    """Tells."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Tell of each."""
        return [self._tell(item.image) for item in inputs]

    def _tell(self, image) -> Output:
        first, last = image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))
        return Output(size=image.size, first=first, last=last)
'''
TURNED = Image.Exif()
TURNED[274] = 6


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Start a service that takes several pictures, and tells of each."""
    folder = tmp_path_factory.mktemp("pictures")
    answers = {"model_type": "custom", "input_kind": "image-batch", "endpoint": "tell"}
    project = render(folder / "service", answers)
    put_model(project, MODEL)
    with live(project, python(), folder / "log", MAX_PIXELS="1000000") as started:
        started.ready()
        yield started


def tell(service: Live, *files: bytes) -> list[dict[str, Any]]:
    """Return what the model got."""
    sent = [("files", ("picture", file)) for file in files]
    answer = service.client.post("/tell", files=sent)
    assert answer.status_code == 200, answer.text
    outputs: list[dict[str, Any]] = answer.json()["outputs"]
    return outputs


def complaint(service: Live, *files: bytes) -> str:
    """Return what the service says of a file that it cannot read."""
    sent = [("files", ("picture", file)) for file in files]
    answer = service.client.post("/tell", files=sent)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["detail"])


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(depth: int, color: int, row: bytes, *chunks: bytes, width: int = 2) -> bytes:
    """Return a PNG file of one row."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, 1, depth, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"".join((PNG, header, *chunks, pixels, chunk(b"IEND", b"")))


def tiff(
    code: str, pixels: list[float], sample: int, *, bits: int = 0, photometric: int = 1
) -> bytes:
    """Return a TIFF file of one row: grey, with samples of this type."""
    data = struct.pack(f"<{len(pixels)}{code}", *pixels)
    bits = bits or 8 * struct.calcsize(f"<{code}")
    width = 8 * len(data) // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags |= {279: len(data), 339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def key(*values: int) -> bytes:
    """Return the part of a PNG file that makes one colour transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


UNSIGNED, SIGNED, FLOAT = 1, 2, 3
GREY_16 = Image.new("I;16", (3, 2), 32768)
NAN, INFINITY = float("nan"), float("inf")
TONES: dict[str, tuple[bytes, int, int]] = {  # the first pixel, and the last
    "png-16": (png(16, 0, struct.pack(">2H", 65535, 12000)), 255, 47),
    "png-16-and-alpha": (png(16, 4, struct.pack(">4H", 32768, 65535, 12000, 65535)), 128, 46),
    "png-16-rgb": (png(16, 2, struct.pack(">6H", *[32768] * 3, *[12000] * 3)), 128, 46),
    "midgray": ((CASES / "midgray16.png").read_bytes(), 128, 128),
    "tiff-16": (encoded(GREY_16, "TIFF"), 128, 128),
    "tiff-16-lzw": (encoded(GREY_16, "TIFF", compression="tiff_lzw"), 128, 128),
    "tiff-16-inverted": (tiff("H", [65535, 0], UNSIGNED, photometric=0), 0, 255),
    "tiff-16-signed": (tiff("h", [-100, 100], SIGNED), 0, 255),
    "tiff-12": (tiff("3s", [b"\xff\xf0\x00"], UNSIGNED, bits=12), 255, 0),  # type: ignore[list-item]
    "tiff-32": (tiff("I", [2**32 - 1, 2**31], UNSIGNED), 255, 128),
    "tiff-32-of-16-bits": (tiff("i", [60000, 12000], SIGNED), 233, 47),
    "tiff-32-of-10-bits": (tiff("i", [1023, 0], SIGNED), 255, 0),
    "tiff-32-of-8-bits": (tiff("i", [128, 7], SIGNED), 128, 7),
    "tiff-32-negative": (tiff("i", [-(2**31), 2**31 - 1], SIGNED), 0, 255),
    "float": (tiff("f", [0.5, 1.0], FLOAT), 128, 255),
    "float-beyond-1": (tiff("f", [1.02, 0.5], FLOAT), 255, 128),
    "float-of-8-bits": (tiff("f", [200.0, 128.0], FLOAT), 200, 128),
    "float-of-16-bits": (tiff("f", [65535.0, 32768.0], FLOAT), 255, 128),
    "float-negative": (tiff("f", [-1.0, 0.0], FLOAT), 0, 255),
    "float-huge": (tiff("f", [2.0**127, 0.0], FLOAT), 128, 0),
    "float-flat": (tiff("f", [-3.0, -3.0], FLOAT), 0, 0),
    "float-not-a-number": (tiff("f", [NAN, 0.5], FLOAT), 0, 128),
    "float-infinite": (tiff("f", [0.5, INFINITY], FLOAT), 128, 0),
}


@pytest.mark.parametrize("name", TONES)
def test_tones(service: Live, name: str) -> None:
    """Grey of more than 8 bits keeps its tones: none is clipped."""
    file, first, last = TONES[name]
    [found] = tell(service, file)
    assert (found["first"], found["last"]) == ([first] * 3, [last] * 3)


WHITE, BLACK = [255] * 3, [0] * 3
ALPHA = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
ALPHA.putpixel((1, 0), (0, 0, 255, 255))
MASKS = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
BMP = struct.pack("<2sIHHI", b"BM", 130, 0, 0, 122)
BMP += struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + MASKS + bytes(52)
TRANSPARENT = {  # all but the last pixel
    "rgba": (encoded(ALPHA, "PNG"), [0, 0, 255]),
    "webp": (encoded(ALPHA, "WEBP", lossless=True, exact=True), [0, 0, 255]),
    "tiff": (encoded(ALPHA, "TIFF"), [0, 0, 255]),
    "avif": (encoded(ALPHA.resize((64, 64), 0), "AVIF", quality=100), None),
    "bmp": (BMP + bytes([0, 0, 255, 0, 255, 0, 0, 255]), [0, 0, 255]),
    "gif": (encoded(ALPHA, "GIF"), [0, 0, 255]),
    "key-of-1-bit": (png(1, 0, b"\x40", key(0)), WHITE),
    "key-of-2-bits": (png(2, 0, b"\x40", key(1)), BLACK),
    "key-of-4-bits": (png(4, 0, b"\x50", key(5)), BLACK),
    "key-of-8-bits": (png(8, 0, b"\x05\x06", key(5)), [6] * 3),
    "key-of-16-bits": (png(16, 0, b"\x12\x34\x12\x35", key(0x1234)), [0x12] * 3),
    "key-of-rgb": (png(8, 2, bytes([1, 2, 3, 1, 2, 4]), key(1, 2, 3)), [1, 2, 4]),
    "key-of-rgb-16": (png(16, 2, bytes(range(12)), key(1, 0x203, 0x405)), [6, 8, 10]),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency(service: Live, name: str) -> None:
    """What is transparent is white, and nothing else: a key is of the depth that the file has."""
    file, last = TRANSPARENT[name]
    [found] = tell(service, file)
    assert found["first"] == WHITE
    if last:
        assert found["last"] == last


ORIENTED = [("RGB", form) for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
ORIENTED += [("I;16", form) for form in ("PNG", "TIFF")]


@pytest.mark.parametrize(("mode", "form"), ORIENTED)
def test_orientation(service: Live, mode: str, form: str) -> None:
    """A picture is turned as its EXIF data say, in every format that has some."""
    exif = Image.Exif()
    exif[274] = 6
    [found] = tell(service, encoded(Image.new(mode, (4, 2)), form, exif=exif))
    assert found["size"] == [2, 4]


SOURCE = Image.radial_gradient("L").convert("RGB").resize((90, 60))
TEXTS = PngImagePlugin.PngInfo()
TEXTS.add_text("plain", "x" * 100)
TEXTS.add_text("packed", "x" * 5_000_000, zip=True)
INTACT = encoded(SOURCE, "PNG", exif=TURNED)
NOISE = Image.effect_noise((256, 256), 99).tobytes() * 40


def damaged(file: bytes, name: bytes) -> bytes:
    """Return a PNG file with a wrong checksum in this part of it."""
    at = file.index(name) - 4
    end = at + 12 + int.from_bytes(file[at : at + 4])
    return file[: end - 1] + bytes([file[end - 1] ^ 1]) + file[end:]


WHOLE = {
    "png-large-text": encoded(SOURCE, "PNG", pnginfo=TEXTS, exif=TURNED),
    "png-large-profile": encoded(SOURCE, "PNG", icc_profile=NOISE, exif=TURNED),
    "png-damaged-text": damaged(encoded(SOURCE, "PNG", pnginfo=TEXTS, exif=TURNED), b"tEXt"),
    "png-damaged-time": damaged(INTACT[:33] + chunk(b"tIME", bytes(7)) + INTACT[33:], b"tIME"),
    "png-without-end": INTACT[:-12],
    "png-without-half-the-end": INTACT[:-5],
}


@pytest.mark.parametrize("name", WHOLE)
def test_png_whose_pixels_are_there(service: Live, name: str) -> None:
    """A PNG is read where what is broken or large is none of its pixels; it is upright, too."""
    [found, intact] = tell(service, WHOLE[name], INTACT)
    assert found == intact
    assert found["size"] == [60, 90]


JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fine": {"quality": 95, "subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_jpeg_that_breaks_off(service: Live, options: dict[str, Any]) -> None:
    """A JPEG that lacks its end marker is read, one that lacks pixels is rejected."""
    file = encoded(SOURCE, "JPEG", exif=TURNED, **options)
    whole, *read = tell(service, file, file[:-1], file[:-2], file + b"\0" * 99)
    assert read == [whole] * 3
    start = file.index(b"\xff\xda")
    ends = [scan.start() for scan in re.finditer(b"\xff\xda", file)][1:]
    for end in [*ends, *range(start + 20, len(file) - 12, 97), len(file) - 12, len(file) - 6]:
        assert "cut off" in complaint(service, file[:end]), end
    zeros = file[: len(file) // 2] + bytes(len(file) // 2)
    assert "cut off" in complaint(service, zeros)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_cut_off(service: Live, form: str) -> None:
    """A file that lacks lines of pixels is said to be cut off, by the name of its format."""
    file = encoded(SOURCE, form)
    for end in (20, len(file) // 2, len(file) - len(file) // 10):
        sentence = complaint(service, file[:end])
        assert f"This {form} cannot be read" in sentence
        assert "cut off" in sentence
        assert " object at " not in sentence


def test_what_is_wrong(service: Live) -> None:
    """The sentence says what is wrong, with which of several files."""
    sentence = complaint(service, INTACT, damaged(INTACT, b"IHDR"))
    assert sentence.startswith("File 2 of 2: This PNG cannot be read")
    assert "checksum in b'IHDR'" in sentence
    assert "eXIf" in complaint(service, damaged(INTACT, b"eXIf"))  # it may be to be turned
    assert "No readable PNG, JPEG" in complaint(service, b"%PDF-1.7")
    double = tiff("d", [0.5], FLOAT)
    assert "This TIFF cannot be read" in complaint(service, double)


def test_damaged_and_too_large(service: Live) -> None:
    """The limit holds for what is mended, too."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    header = chunk(b"IHDR", struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = PNG + header + damaged(chunk(b"tEXt", b"a\0b"), b"tEXt") + pixels
    assert "More than 1000000 pixels" in complaint(service, bomb)
    large = encoded(Image.new("L", (1001, 1000)), "JPEG")
    assert "More than 1000000 pixels" in complaint(service, large[:-2])


def test_first_of_several(service: Live) -> None:
    """Of several pages or frames the first is taken."""
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "lime")]
    for form in ("GIF", "TIFF", "PNG", "WEBP", "AVIF"):
        file = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        [found] = tell(service, file)
        red, green, blue = found["last"]
        assert red > 200, form
        assert max(green, blue) < 60, form


def test_heic(service: Live) -> None:
    """HEIC is rejected by its name, and the way to have it read is said."""
    file = (CASES / "red.heic").read_bytes()
    for content in (file, file.replace(b"ftypheic", b"ftypmif1")):
        assert "HEIC is not read here" in complaint(service, content)
        assert "pi-heif" in complaint(service, content)


def test_heic_is_read(tmp_path: Path) -> None:
    """HEIC is read by the package and the lines that the documents name."""
    page = (ROOT / "docs" / "how-to" / "wrap-a-model.md").read_text(encoding="utf-8")
    [lines] = [block.text for block in blocks(page) if block.mark.endswith("::test_heic_is_read")]
    project = render(tmp_path / "service", {"model_type": "custom", "input_kind": "image"})
    change(project / "inference.py", "from serving import", f"{lines}\nfrom serving import")
    packages = str(tmp_path / "packages")
    options = ["--quiet", "--python", python(), "--target", packages, "--no-deps"]
    run([uv(), "pip", "install", *options, "pi-heif"])
    with live(project, python(), tmp_path / "log", DEVICE="cpu", PYTHONPATH=packages) as started:
        for file in (CASES / "red.heic", project / "example.png"):
            answer = started.ready().post("/classify", files={"file": file.read_bytes()})
            assert answer.json()["color"] == "red", answer.text


POSSIBLE = [
    "image/jpg",
    "image/pjpeg",
    "image/x-png",
    "image/x-ms-bmp",
    "image/*",
    "*/*",
    "image/png",
]
POSSIBLE += ["application/octet-stream", "binary/octet-stream", "image/png; charset=binary"]
IMPOSSIBLE = ["text/plain", "application/json", "video/mp4", "application/x-www-form-urlencoded"]


def test_content_types(service: Live) -> None:
    """The content decides, whatever kind of picture its type names; what names none is 415."""
    picture = encoded(SOURCE, "PNG")
    post = service.client.post
    for name, status in {**dict.fromkeys(POSSIBLE, 200), **dict.fromkeys(IMPOSSIBLE, 415)}.items():
        form = post("/tell", files={"files": ("picture", picture, name)})
        raw = post("/tell", content=picture, headers={"Content-Type": name})
        assert (form.status_code, raw.status_code) == (status, status), (name, form.text, raw.text)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    untyped = post("/tell", content=head + picture + b"\r\n--x--\r\n", headers=boundary)
    assert untyped.status_code == 200


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], str]]:
    """Start the service that reads text in pictures, and return what reads one."""
    folder = tmp_path_factory.mktemp("rapidocr")
    project = render(folder / "service", {"preset": "rapidocr", "accelerator": "cpu"})
    with live(project, python("onnxruntime"), folder / "log", DEVICE="cpu") as started:
        client = started.ready()

        def text(file: bytes) -> str:
            answer = client.post("/ocr", files={"file": file})
            assert answer.status_code == 200, answer.text
            return " ".join(line["text"] for line in answer.json()["lines"])

        yield text


# The detector may see "Invoice 2" and "2048" in the picture that all others are made from.
INVOICE = re.compile("Invoice( 2)?  ?2048")
NAMES = ["ref.png", "gray16.png", "rgba_black_on_transparent.png", "p_trns.png", "no_eoi.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_text_is_read(read: Callable[[bytes], str], name: str) -> None:
    """The same text is read from each of these files."""
    assert INVOICE.fullmatch(read((CASES / name).read_bytes()))


def test_text_of_floats(read: Callable[[bytes], str]) -> None:
    """Text is read whose tones are floats from 0 to 1."""
    page = Image.open(CASES / "ref.png").convert("F").point(lambda tone: tone * (1 / 255) + 0)
    assert INVOICE.fullmatch(read(encoded(page, "TIFF")))
