"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

import numpy as np
from pydantic import BaseModel, Field

from serving import Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(sample_rate=16_000, channels=1)

MODEL_NAME = os.getenv("MODEL_NAME", "loudest-note")

WINDOW = 1024  # samples
A4 = 440.0  # Hz
NOTES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
SEMITONES = np.arange(-21, 16)  # from A4: C3 to C6
FREQUENCIES = A4 * 2.0 ** (SEMITONES / 12)
# One Fourier coefficient a note, its cosine and sine parts side by side: one linear layer.
PHASES = 2 * np.pi * np.outer(np.arange(WINDOW), FREQUENCIES) / DECODER.sample_rate
WEIGHTS = (np.hanning(WINDOW)[:, None] * np.hstack([np.cos(PHASES), np.sin(PHASES)])).astype("f4")
BIAS = np.zeros(WEIGHTS.shape[1], dtype=np.float32)


class Params(BaseModel):
    """Parameters beside the recording: none."""


class Output(BaseModel):
    """The note that is loudest over the whole recording, from C3 to C6."""

    note: str = Field(description="its name, e.g. A4")
    frequency: float = Field(description="its pitch in Hz")


EXAMPLE = {"file": "example.wav"}


class Model:
    """Measures how loud each note is, by one linear layer over windows of samples."""

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
        """Return the loudest note of each recording."""
        return [self._loudest_note(item.samples) for item in inputs]

    def _loudest_note(self, samples: np.ndarray) -> Output:
        padded = np.pad(samples, (0, -len(samples) % WINDOW))
        cosine, sine = np.hsplit(self._logits(padded.reshape(-1, WINDOW)), 2)
        loudest = int((cosine**2 + sine**2).sum(axis=0).argmax())
        octave, step = divmod(int(SEMITONES[loudest]) + 9, 12)
        return Output(
            note=f"{NOTES[step]}{octave + 4}", frequency=round(float(FREQUENCIES[loudest]), 1)
        )
