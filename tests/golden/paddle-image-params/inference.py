"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from device import import_paddle
from serving import Decoder, Input

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
    """Parameters beside the picture."""

    top_k: int = Field(default=3, ge=1, le=len(COLORS), description="colours to return at most")


class Share(BaseModel):
    """One colour of the picture."""

    color: str
    share: float = Field(description="part of the picture that it takes up, 0 to 1")


class Output(BaseModel):
    """The picture's colours, the most common one first."""

    colors: list[Share]


EXAMPLE = {"file": "example.png", "top_k": 2}


class Model:
    """Gives every pixel the name of its nearest colour, by one linear layer."""

    def __init__(self, device: str) -> None:
        """Put the weights on the device: "cuda" or "cpu"."""
        paddle = import_paddle()
        paddle.set_device("gpu" if device == "cuda" else device)
        self.layer = paddle.nn.Linear(*WEIGHTS.shape)
        self.layer.set_state_dict({"weight": WEIGHTS, "bias": BIAS})
        self.layer.eval()

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the layer: float32 (n, features) in, float32 (n, logits) out."""
        paddle = import_paddle()
        with paddle.no_grad():
            return np.asarray(self.layer(paddle.to_tensor(features)))

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the most common colours of each picture."""
        return [self._colors(item.image, item.params.top_k) for item in inputs]

    def _colors(self, image: Image.Image, top_k: int) -> Output:
        shares = self._shares(image)
        order = np.argsort(-shares, kind="stable")[:top_k]
        names = list(COLORS)
        return Output(
            colors=[
                Share(color=names[index], share=round(float(shares[index]), 3))
                for index in order
                if shares[index] > 0
            ]
        )

    def _shares(self, image: Image.Image) -> np.ndarray:
        """Return the part of the picture, 0 to 1, that each of COLORS takes up."""
        pixels = np.asarray(image.resize((64, 64)), dtype=np.float32).reshape(-1, 3) / 255
        nearest = self._logits(pixels).argmax(axis=1)
        return np.bincount(nearest, minlength=len(COLORS)) / len(nearest)
