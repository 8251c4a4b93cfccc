"""What the model takes: the pictures of a request, decoded."""

import logging
from dataclasses import dataclass
from io import BytesIO
from typing import Generic

from PIL import Image, ImageOps

from limits import BadInput, env_int
from uploads import ParamsT, Upload

MAX_PIXELS = env_int("MAX_PIXELS", 50_000_000, minimum=1)
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS guards instead
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # a broken file is no error of ours

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
CONTENT_TYPES = frozenset(f"image/{name.lower()}" for name in FORMATS)


@dataclass(frozen=True, slots=True)
class Input(Generic[ParamsT]):
    """One decoded picture: `Model.predict` gets a list of these."""

    image: Image.Image  # RGB, upright
    params: ParamsT


def decode(upload: Upload[ParamsT]) -> list[Input[ParamsT]]:
    """Return one `Input` for each file of the request. Raises BadInput."""
    return [Input(decode_image(file), upload.params) for file in upload.files]


def decode_image(file: bytes) -> Image.Image:
    """Return a picture as upright RGB; refuse too many pixels before they cost memory."""
    try:
        image = Image.open(BytesIO(file), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadInput(f"{image.width} x {image.height} is over {MAX_PIXELS} pixels.")
        return ImageOps.exif_transpose(image).convert("RGB")
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # whatever a broken file makes the decoder raise
        raise BadInput(f"No readable {', '.join(FORMATS)} image.") from error
