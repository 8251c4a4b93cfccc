"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from pydantic import BaseModel, Field

from serving import NUM_THREADS, CannotLoad, Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(fps=None, max_side=128)  # every frame, but a small one

MODEL_NAME = os.getenv("MODEL_NAME", "frame-difference.onnx")

GRID = 64  # points along each side of a frame that are looked at
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


class Params(BaseModel):
    """Parameters beside the clip: none."""


class Output(BaseModel):
    """How much moves in the clip."""

    motion: float = Field(description="mean change of brightness between frames, 0 to 1")
    busiest_second: float = Field(description="when the picture changes most, from the start")


EXAMPLE = {"file": "example.mp4"}


class Model:
    """Measures the change from frame to frame, by one linear layer over pairs of pixels."""

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
        """Return the motion in each clip."""
        return [self._motion(item.frames, item.times) for item in inputs]

    def _motion(self, frames: np.ndarray, times: np.ndarray) -> Output:
        if len(frames) == 1:
            return Output(motion=0.0, busiest_second=0.0)
        rows, columns = (np.linspace(0, side - 1, GRID).astype(int) for side in frames.shape[1:3])
        points = frames[:, rows[:, None], columns].mean(axis=3, dtype=np.float32) / 255
        pairs = np.stack([points[:-1], points[1:]], axis=-1).reshape(-1, 2)
        changes = np.abs(self._logits(pairs)).reshape(len(frames) - 1, -1).mean(axis=1)
        busiest = float(times[int(changes.argmax()) + 1])
        return Output(motion=round(float(changes.mean()), 4), busiest_second=round(busiest, 2))
