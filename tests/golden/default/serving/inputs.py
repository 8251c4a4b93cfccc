"""What the model takes: the pictures of a request, decoded as inference.py declares."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from mimetypes import guess_extension
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings

MAX_PIXELS = settings.max_pixels
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS guards instead
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # a broken file is no error of ours

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HEIC = re.compile(rb".{4}ftyp.{0,60}(heic|heix|hevc)", re.DOTALL)

# What Pillow needs of a PNG. It limits and checks all else as well, such as texts and profiles.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
# Two ends for a JPEG that has none. Where pixels are missing they are read from what comes before
# the end marker, with restart markers or without, so the two make different pictures.
NOISE = b"\xa5\x5a" * 50
RESTARTS = b"".join(b"\xff%c%s" % (0xD0 + number, NOISE) for number in range(8))
JPEG_ENDS = (b"\xff\xd9", NOISE + RESTARTS + b"\xff\xd9")

MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it was sent."""

    content: bytes
    name: str | None = None  # without folders; None where the sender says none
    content_type: str | None = None  # as it was sent, such as "text/plain; charset=utf-8"

    @classmethod
    def sent(cls, content: bytes, name: str | None, content_type: str | None) -> "Upload":
        """Return a file of which a header's bytes say the name, in UTF-8."""
        utf_8 = (name or "").encode("latin-1").decode(errors="replace")
        base = Path(utf_8).name
        return cls(content, None if base in ("", "..") else base, content_type or None)

    @contextmanager
    def path(self) -> Iterator[Path]:
        """Yield the path of a copy, whose suffix is the file's; the copy is gone afterwards."""
        found = re.search(r"(\.\w{1,16}){1,2}\Z", self.name or "", re.ASCII)
        essence = (self.content_type or "").partition(";")[0].strip()
        suffix = found[0] if found else guess_extension(essence) or ""
        with TemporaryDirectory() as folder:
            copy = Path(folder, f"file{suffix}")
            copy.write_bytes(self.content)
            yield copy


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded picture: `Model.predict` gets a list of these."""

    image: Image.Image  # in the decoder's mode, upright
    params: ParamsT
    sent: Upload | None = None  # None where a tensor came

    @property
    def file(self) -> Upload:
        """The file as it was sent. Raises BadInput where a tensor came."""
        if self.sent is None:
            raise BadInput("Send the file itself: the model reads it, and takes no tensor.")
        return self.sent


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a picture; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    content_types = frozenset(f"image/{name.lower()}" for name in FORMATS)
    # Whose content is looked at: image/jpg and image/* too, and what SageMaker calls any picture.
    media_types = ("image/", "application/x-image")
    field: str = "file"  # the form field that carries the picture
    mode: Literal["RGB", "RGBA", "L"] = "RGB"  # L is grey
    background: str = "white"  # what transparency is laid on, where the mode has none: a CSS colour

    def decode(self, files: list[Upload], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [Input(self._decode_image(file.content), params, file) for file in files]

    def _decode_image(self, file: bytes) -> Image.Image:
        """Return an upright picture; reject too many pixels before they cost memory."""
        name = format_of(file)
        try:
            loaded = load(file, name)
            image = ImageOps.exif_transpose(loaded)
            if image.mode[0] in "IF":
                image = to_8_bits(image, getattr(loaded, "tag_v2", {}))
            if image.has_transparency_data and self.mode != "RGBA":
                picture = image.convert("RGBA")
                canvas = Image.new("RGBA", picture.size, self.background)
                image = Image.alpha_composite(canvas, picture)
            return image.convert(self.mode)
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            reason = str(error).strip() or type(error).__name__
            raise BadInput(
                f"This {name} cannot be read, it may be damaged or cut off: {reason}."
            ) from error


def format_of(file: bytes) -> str:
    """Return the format that a file has by its first bytes. Raises BadInput."""
    Image.init()
    if HEIC.match(file):
        if "HEIF" in Image.OPEN:  # inference.py has registered a package that reads it
            return "HEIF"
        raise BadInput("HEIC is not read here: send a JPEG, or add pi-heif to the service.")
    for name in FORMATS:
        _, accept = Image.OPEN[name]
        if accept and accept(file[:16]):
            return name
    raise BadInput(f"No readable {', '.join(FORMATS)} image.")


def load(file: bytes, name: str) -> Image.Image:
    """Return a picture of this format, also where what is broken is none of its pixels."""
    try:
        return load_intact(file, name)
    except (BadInput, MemoryError):
        raise
    except Exception:
        if name == "PNG":
            return load_intact(without_extras(file), name)
        if name == "JPEG" and not file.endswith(bytes(16)):  # zeros where nothing was written yet
            data = file.rstrip(b"\xff")
            one, other = (load_intact(data + end, name) for end in JPEG_ENDS)
            if one == other and not lacks_scans(data):
                return one
        raise


def load_intact(file: bytes, name: str) -> Image.Image:
    """Return a picture of this format, its first where there are several."""
    open_file, _ = Image.OPEN[name]  # unlike Image.open, it says what is wrong with a file
    image: Image.Image = open_file(BytesIO(file), "")
    if image.width * image.height > MAX_PIXELS:
        raise BadInput(f"{image.width} x {image.height} is over {MAX_PIXELS} pixels.")
    image.load()
    key = image.info.get("transparency")
    if name == "PNG" and key is not None:  # Pillow brings the pixels to 8 bits, but not the key
        depth = file[24]
        if image.mode == "L":
            image.info["transparency"] = key * 255 // (2**depth - 1)
        elif image.mode == "RGB":
            image.info["transparency"] = tuple(value >> (depth - 8) for value in key)
    return image


def without_extras(png: bytes) -> bytes:
    """Return a PNG without what its picture does not need."""
    kept, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def lacks_scans(jpeg: bytes) -> bool:
    """Tell whether a progressive JPEG has not all bits of all coefficients: it is only blurred."""
    if b"\xff\xc2" not in jpeg:
        return False
    start = jpeg.rindex(b"\xff\xc2") + 9
    missing = set(product(jpeg[start + 1 : start + 1 + 3 * jpeg[start] : 3], range(64)))
    for scan in re.finditer(b"\xff\xda", jpeg):
        header = scan.end() + 3
        end = header + 2 * jpeg[header - 1]
        first, last, bits = jpeg[end : end + 3]
        if start < header and bits & 15 == 0:  # the last bit
            missing -= set(product(jpeg[header:end:2], range(first, last + 1)))
    return bool(missing)


def to_8_bits(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    """Return a grey picture of more bits in 8, where `convert` would clip it; `tags` are a TIFF's.

    Of integers, white is the greatest number of their 16 bits; or, of 32, of as many as are used.
    """
    values = np.asarray(image)
    if image.mode == "I" and tags.get(ExifTags.Base.SampleFormat) == (1,):
        values = values.view(np.uint32)  # as the file has it: Pillow has signed ones only
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    black, white = 0.0, float(values.max())
    if image.mode.startswith("I;16"):
        white = 2.0 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
    elif values.min() < 0:
        black = float(values.min())
    elif image.mode == "F" and round(white) <= 1:  # filters go a little beyond it
        white = 1.0
    else:
        white = 2.0 ** max(8, int(white).bit_length()) - 1
    scaled = (values.astype(np.float32) - black) * (255 / (white - black or 1))
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # black is the greatest
        scaled = 255 - scaled
    grey = Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(values != image.info["transparency"]))
    return grey
