"""What the model takes: the pictures of a request, decoded as inference.py declares."""

import logging
from dataclasses import dataclass
from io import BytesIO
from typing import ClassVar, Generic, Literal, TypeVar

from PIL import Image, ImageOps
from pydantic import BaseModel

from serving.errors import BadInput
from serving.settings import settings

MAX_PIXELS = settings.max_pixels
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS guards instead
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # a broken file is no error of ours

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
CONTENT_TYPES = frozenset(f"image/{name.lower()}" for name in FORMATS)

MAX_PARTS = 2000  # of a form

ParamsT = TypeVar("ParamsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded picture: `Model.predict` gets a list of these."""

    image: Image.Image  # in the decoder's mode, upright
    params: ParamsT


@dataclass(frozen=True)
class Decoder:
    """What the model wants of a picture; inference.py declares it."""

    several: ClassVar[bool] = False  # whether a request carries a list of them
    field: str = "file"  # the form field that carries the picture
    mode: Literal["RGB", "RGBA", "L"] = "RGB"  # L is grey
    background: str = "white"  # what transparency is laid on, where the mode has none: a CSS colour

    def decode(self, files: list[bytes], params: ParamsT) -> list[Input[ParamsT]]:
        """Return one `Input` for each file of the request. Raises BadInput."""
        return [Input(self._decode_image(file), params) for file in files]

    def _decode_image(self, file: bytes) -> Image.Image:
        """Return an upright picture; reject too many pixels before they cost memory."""
        try:
            image: Image.Image = Image.open(BytesIO(file), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"{image.width} x {image.height} is over {MAX_PIXELS} pixels.")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data and self.mode != "RGBA":
                picture = image.convert("RGBA")
                canvas = Image.new("RGBA", picture.size, self.background)
                image = Image.alpha_composite(canvas, picture)
            return image.convert(self.mode)
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes the decoder raise
            raise BadInput(f"No readable {', '.join(FORMATS)} image.") from error
