"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

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
    """Parameters beside the pictures: none."""


class Output(BaseModel):
    """One picture's dominant colour."""

    color: str = Field(description="the colour that most pixels are nearest to")
    share: float = Field(description="part of the picture that it takes up, 0 to 1")


EXAMPLE = {"files": ["example.png", "example.png"]}


class Model:
    """Gives every pixel the name of its nearest colour, by one linear layer."""

    def __init__(self, device: str) -> None:
        """Put the weights on the device: "cuda", "mps" or "cpu"."""
        import torch

        self.device = torch.device(device)
        self.layer = torch.nn.Linear(*WEIGHTS.shape)
        state = {"weight": torch.tensor(WEIGHTS.T), "bias": torch.tensor(BIAS)}
        self.layer.load_state_dict(state)
        self.layer.to(self.device).eval()

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the layer: float32 (n, features) in, float32 (n, logits) out."""
        import torch

        with torch.inference_mode():
            logits = self.layer(torch.from_numpy(features).to(self.device))
        return np.asarray(logits.cpu())

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the dominant colour of each picture."""
        return [self._dominant(item.image) for item in inputs]

    def _dominant(self, image: Image.Image) -> Output:
        shares = self._shares(image)
        top = int(shares.argmax())
        return Output(color=list(COLORS)[top], share=round(float(shares[top]), 3))

    def _shares(self, image: Image.Image) -> np.ndarray:
        """Return the part of the picture, 0 to 1, that each of COLORS takes up."""
        pixels = np.asarray(image.resize((64, 64)), dtype=np.float32).reshape(-1, 3) / 255
        nearest = self._logits(pixels).argmax(axis=1)
        return np.bincount(nearest, minlength=len(COLORS)) / len(nearest)
