"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "linear-trend")

WINDOW = 4  # values
# The least-squares line through WINDOW values, one step further on: one linear layer.
WEIGHTS = np.array([[-0.5], [0.0], [0.5], [1.0]], dtype=np.float32)
BIAS = np.zeros(1, dtype=np.float32)


class Params(BaseModel):
    """The request's body."""

    values: list[Annotated[float, Field(ge=-1e30, le=1e30)]] = Field(
        min_length=WINDOW, max_length=10_000, description="a series, oldest value first"
    )


class Output(BaseModel):
    """What comes next."""

    next: float = Field(description="the next value, if the trend of the last four goes on")


EXAMPLE = {"values": [1.0, 2.0, 3.0, 4.0]}


class Model:
    """Continues a series along its trend, by one linear layer."""

    def __init__(self, device: str) -> None:
        """Load the model onto the device: "cuda", "mps" or "cpu"."""
        # NumPy computes on the CPU; hand the device to your own library.
        self.device = device
        self.weights = WEIGHTS
        self.bias = BIAS

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the model: float32 (n, features) in, float32 (n, logits) out."""
        return np.asarray(features @ self.weights + self.bias)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the next value of each series."""
        windows = np.array([item.params.values[-WINDOW:] for item in inputs], dtype=np.float32)
        return [Output(next=round(float(value), 4)) for value in self._logits(windows)[:, 0]]
