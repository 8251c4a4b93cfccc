"""Which way up a line of text is: decoding and running one picture takes about 1 ms."""

import os
from io import BytesIO

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LABELS = ("0", "180")


def decode(file: bytes) -> Image.Image:
    """Return a picture as upright RGB, as the rendered service's decoder does."""
    return ImageOps.exif_transpose(Image.open(BytesIO(file), formats=FORMATS)).convert("RGB")


class Classifier:
    """The classifier of text lines that rapidocr ships."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["CLASSIFIER"], options, providers=["CPUExecutionProvider"]
        )

    def run(self, image: Image.Image) -> tuple[str, float]:
        """Return the picture's angle, and how sure that is."""
        pixels = np.asarray(image.resize((192, 48)), dtype=np.float32)
        batch = (pixels / 127.5 - 1).transpose(2, 0, 1)[np.newaxis]
        (scores,) = self.session.run(None, {"x": batch})
        best = int(scores[0].argmax())
        return LABELS[best], round(float(scores[0, best]), 4)
