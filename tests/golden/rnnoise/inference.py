"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from serving import Decoder, Input, Recording

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(sample_rate=48_000, channels=1)

MODEL_NAME = os.getenv("MODEL_NAME", "rnnoise")  # its weights come with the package

FRAME = 480  # samples, which are 10 ms
DELAY = 2  # frames: so much later does RNNoise return what it has heard
LEVEL = 0.5  # room for speech that gets louder: beyond 16 bits, samples would wrap around
LEAST_PROBABILITY = 0.5


class Params(BaseModel):
    """Parameters beside the recording: none."""


class Output(Recording):
    """The recording without its noise, mono at 48 kHz, and how much of it is speech."""

    content_type: Literal["audio/wav"] = "audio/wav"
    speech: float = Field(description="part of the recording in which somebody speaks, 0 to 1")


EXAMPLE = {"file": "example-speech.wav"}


class Model:
    """RNNoise, a recurrent network that tells speech from noise in each frame."""

    def __init__(self, device: str) -> None:
        """Load the library, which has the weights in it and computes on the CPU."""
        from pyrnnoise import RNNoise

        self.denoiser = RNNoise

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Clean each recording."""
        return [self._clean(item.samples) for item in inputs]

    def _clean(self, samples: np.ndarray) -> Output:
        # A denoiser remembers what it has heard, so each recording gets one of its own.
        denoiser = self.denoiser(sample_rate=DECODER.sample_rate)
        chunk = np.pad(samples, (0, DELAY * FRAME)) * np.float32(LEVEL)
        heard = list(denoiser.denoise_chunk(chunk, partial=True))
        probabilities, frames = zip(*heard[DELAY:], strict=True)
        cleaned = np.concatenate(frames, axis=1)[0] / (LEVEL * 2**15)
        speech = float(np.mean(np.array(probabilities) > LEAST_PROBABILITY))
        return Output.of(cleaned, DECODER.sample_rate, name="clean.wav", speech=round(speech, 3))
