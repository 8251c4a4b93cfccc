"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from pydantic import BaseModel, Field

from serving import NUM_THREADS, CannotLoad, Decoder, Input

# Which files are taken.
DECODER = Decoder(content_types=("*/*",))

MODEL_NAME = os.getenv("MODEL_NAME", "byte-classes.onnx")

CLASSES = ["zero", "control", "text", "high"]
BLOCK = 1024 * 1024  # bytes that are counted at a time
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


class Params(BaseModel):
    """Parameters beside the file: none."""


class Output(BaseModel):
    """What a file consists of; shares are from 0 to 1."""

    size: int = Field(description="bytes")
    zero: float = Field(description="share of the bytes that are 0")
    control: float = Field(description="share of control characters of ASCII")
    text: float = Field(description="share of printable ASCII, tabs and line ends")
    high: float = Field(description="share of the bytes from 128 on")
    most: str = Field(description="which of these is the greatest share")


EXAMPLE = {"file": "example.txt"}


class Model:
    """Counts the bytes of a file by their classes, by one linear layer over a histogram."""

    def __init__(self, device: str) -> None:
        """Load the .onnx file MODEL_NAME onto the device: "cuda", "mps" or "cpu"."""
        import onnxruntime

        if device == "cuda":
            onnxruntime.preload_dlls()
        provider = PROVIDERS[device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        self.session = onnxruntime.InferenceSession(MODEL_NAME, options, providers=[provider])
        # ONNX Runtime falls back to the CPU with no more than a warning.
        if self.session.get_providers()[0] != provider:
            raise CannotLoad(f"{provider} did not load; set DEVICE=cpu to run without it")

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the model: float32 (n, features) in, float32 (n, logits) out."""
        return np.asarray(self.session.run(["logits"], {"features": features})[0])

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return what each file consists of."""
        return [self._shares(item.file.content) for item in inputs]

    def _shares(self, content: bytes) -> Output:
        values = np.frombuffer(content, dtype=np.uint8)
        counts = np.zeros(256)
        for block in np.array_split(values, len(values) // BLOCK + 1):
            counts += np.bincount(block, minlength=256)
        histogram = (counts / len(values)).astype(np.float32)
        zero, control, text, high = (
            round(float(share), 4) for share in self._logits(histogram[None])[0]
        )
        most = CLASSES[int(np.argmax([zero, control, text, high]))]
        return Output(
            size=len(content), zero=zero, control=control, text=text, high=high, most=most
        )
