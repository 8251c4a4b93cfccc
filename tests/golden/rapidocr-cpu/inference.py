"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import logging
import os
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field

from serving import NUM_THREADS, BadInput, CannotLoad, Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(mode="RGB", background="white")

MODEL_NAME = os.getenv("MODEL_NAME", "PP-OCRv6")  # its weights come with the package

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

# RapidOCR enlarges a thin picture until its short side has hundreds of pixels: 70 bytes of PNG,
# 2000 x 1 pixels, would take tens of gigabytes.
MAX_WIDTH = 100  # times the height: a line of text is wide
MAX_HEIGHT = 10  # times the width


class Params(BaseModel):
    """Parameters beside the picture."""

    min_confidence: float = Field(default=0.5, ge=0, le=1, description="leave out lines below it")


class Line(BaseModel):
    """One line of text."""

    text: str
    box: list[tuple[float, float]] = Field(
        description="four corners (x, y) in pixels, clockwise from the top left"
    )
    confidence: float = Field(description="0 to 1")


class Output(BaseModel):
    """The lines of text in the picture, from top to bottom."""

    lines: list[Line]


EXAMPLE = {"file": "example-page.png"}


class Model:
    """RapidOCR: a text detector, an orientation classifier and a recognizer on ONNX Runtime."""

    def __init__(self, device: str) -> None:
        """Load the three networks onto the device: "cuda", "mps" or "cpu"."""
        import onnxruntime
        from rapidocr import OCRVersion, RapidOCR

        # RapidOCR gives its logger a handler of its own, which would print every line twice.
        logging.getLogger("RapidOCR").handlers.clear()
        logging.getLogger("RapidOCR").propagate = True
        if device == "cuda":
            onnxruntime.preload_dlls()
        self.engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Cls.cls_thresh": 0.95,  # at the default, 0.9, some upright lines are turned over
                "Det.ocr_version": OCRVersion(MODEL_NAME),
                "Rec.ocr_version": OCRVersion(MODEL_NAME),
                "EngineConfig.onnxruntime.intra_op_num_threads": NUM_THREADS,
                "EngineConfig.onnxruntime.use_cuda": device == "cuda",
                "EngineConfig.onnxruntime.use_coreml": device == "mps",
            }
        )
        self._load_networks(PROVIDERS[device])

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Read each picture."""
        return [self._read(item.image, item.params.min_confidence) for item in inputs]

    def _read(self, image: Image.Image, min_confidence: float) -> Output:
        if image.width > MAX_WIDTH * image.height or image.height > MAX_HEIGHT * image.width:
            raise BadInput(f"{image.width} x {image.height} pixels are too thin a picture.")
        found = self.engine(image, text_score=min_confidence)
        if not len(found):
            return Output(lines=[])
        rows = zip(found.txts, found.boxes.tolist(), found.scores, strict=True)
        return Output(
            lines=[
                Line(text=text, box=box, confidence=round(float(score), 4))
                for text, box, score in rows
            ]
        )

    def _load_networks(self, provider: str) -> None:
        """Load what RapidOCR would load in its first call, and see that it uses the device."""
        blank = Image.new("RGB", (64, 64))
        self.engine(blank, use_det=False)
        self.engine(blank, use_det=True)
        for network in (self.engine.text_det, self.engine.text_cls, self.engine.text_rec):
            # RapidOCR falls back to the CPU with no more than a warning.
            if network.session.session.get_providers()[0] != provider:
                raise CannotLoad(f"{provider} did not load; set DEVICE=cpu to run without it")
