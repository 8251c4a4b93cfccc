"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from serving import NUM_THREADS, CannotLoad, Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(mode="RGB", background="white")

MODEL_NAME = os.getenv("MODEL_NAME", "layout_cdla")  # its weights come with the package

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
LEAST_CONFIDENCE = 0.1
OVERLAP = 0.5  # of two boxes of one kind that overlap more, the surer one counts


class Params(BaseModel):
    """Parameters beside the picture."""

    min_confidence: float = Field(
        default=0.5, ge=LEAST_CONFIDENCE, le=1, description="leave out regions below it"
    )


class Region(BaseModel):
    """One part of the page."""

    kind: str = Field(
        description="text, title, figure, figure_caption, table, table_caption, header, footer,"
        " reference or equation"
    )
    box: tuple[float, float, float, float] = Field(
        description="left, top, right and bottom in pixels"
    )
    confidence: float = Field(description="0 to 1")


class Output(BaseModel):
    """The parts of the page, from top to bottom."""

    regions: list[Region]


EXAMPLE = {"file": "example-report.png"}


class Model:
    """PaddleOCR's layout detector, a PicoDet, on ONNX Runtime."""

    def __init__(self, device: str) -> None:
        """Load the network onto the device: "cuda", "mps" or "cpu"."""
        import onnxruntime
        from rapid_layout.model_handler.pp import PPModelHandler

        if device == "cuda":
            onnxruntime.preload_dlls()
        provider = PROVIDERS[device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        weights = files("rapid_layout") / "models" / f"{MODEL_NAME}.onnx"
        # Not RapidLayout itself: it has no CoreML, and falls back to the CPU.
        session = onnxruntime.InferenceSession(str(weights), options, providers=[provider])
        if session.get_providers()[0] != provider:
            raise CannotLoad(f"{provider} did not load; set DEVICE=cpu to run without it")
        [image] = session.get_inputs()
        kinds = session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.detect: Any = PPModelHandler(
            kinds, LEAST_CONFIDENCE, OVERLAP, lambda pixels: session.run(None, {image.name: pixels})
        )

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Find the parts of each page."""
        return [self._regions(item.image, item.params.min_confidence) for item in inputs]

    def _regions(self, image: Image.Image, min_confidence: float) -> Output:
        found = self.detect(np.asarray(image)[:, :, ::-1])  # the network has learnt from BGR
        rows = zip(found.class_names, found.boxes, found.scores, strict=True)
        regions = [
            Region(kind=kind, box=np.round(box, 1).tolist(), confidence=round(score, 4))
            for kind, box, score in rows
            if score >= min_confidence
        ]
        return Output(regions=sorted(regions, key=lambda region: region.box[1]))
