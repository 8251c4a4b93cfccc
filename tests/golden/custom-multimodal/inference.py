"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from serving import BadInput, Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(mode="RGB", background="white")

MODEL_NAME = os.getenv("MODEL_NAME", "nearest-color")

COLORS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "orange": (255, 140, 0),
    "yellow": (255, 255, 0),
    "green": (0, 160, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (128, 0, 160),
    "pink": (255, 160, 190),
    "brown": (120, 70, 20),
}
PALETTE = np.array(list(COLORS.values()), dtype=np.float32) / 255
# The colour c nearest to a pixel p is the one with the greatest 2 p·c - |c|²: one linear layer.
WEIGHTS = 2 * PALETTE.T
BIAS = -np.square(PALETTE).sum(axis=1)


class Params(BaseModel):
    """The text beside the picture."""

    text: str = Field(min_length=1, max_length=1000, description="names one colour or several")


class Output(BaseModel):
    """How well the text fits the picture."""

    score: float = Field(description="part of the picture in the colours named, 0 to 1")


EXAMPLE = {"file": "example.png", "text": "a red picture"}


class Model:
    """Gives every pixel the name of its nearest colour, by one linear layer."""

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
        """Return how much of each picture is in the colours that its text names."""
        return [self._match(item.image, item.params.text) for item in inputs]

    def _match(self, image: Image.Image, text: str) -> Output:
        words = set(text.lower().split())
        named = [name in words for name in COLORS]
        if not any(named):
            raise BadInput(f"The text names no colour. Name one or several of {', '.join(COLORS)}.")
        return Output(score=round(float(self._shares(image)[named].sum()), 3))

    def _shares(self, image: Image.Image) -> np.ndarray:
        """Return the part of the picture, 0 to 1, that each of COLORS takes up."""
        pixels = np.asarray(image.resize((64, 64)), dtype=np.float32).reshape(-1, 3) / 255
        nearest = self._logits(pixels).argmax(axis=1)
        return np.bincount(nearest, minlength=len(COLORS)) / len(nearest)
