"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

from pydantic import BaseModel, Field

from serving import Decoder, Input

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(sample_rate=16_000, channels=1)

MODEL_NAME = os.getenv("MODEL_NAME", "silero-vad")  # its weights come with the package


class Params(BaseModel):
    """Parameters beside the recording."""

    threshold: float = Field(
        default=0.5, ge=0, le=1, description="how sure the model must be that somebody speaks"
    )


class Segment(BaseModel):
    """A stretch of speech."""

    start: float = Field(description="seconds from the start of the recording")
    end: float


class Output(BaseModel):
    """When somebody speaks."""

    segments: list[Segment]


EXAMPLE = {"file": "example-speech.wav", "threshold": 0.5}


class Model:
    """Silero VAD, a voice activity detector."""

    def __init__(self, device: str) -> None:
        """Load the network onto the device: "cuda", "mps" or "cpu"."""
        from silero_vad import load_silero_vad

        self.device = device
        self.network = load_silero_vad().to(device)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Find the speech in each recording."""
        # One by one: the network hears a recording in order, and keeps a state.
        return [self._segments(item) for item in inputs]

    def _segments(self, item: Input[Params]) -> Output:
        import torch
        from silero_vad import get_speech_timestamps

        segments = get_speech_timestamps(
            torch.tensor(item.samples, device=self.device),
            self.network,
            threshold=item.params.threshold,
            sampling_rate=item.sample_rate,
            return_seconds=True,
            time_resolution=2,
        )
        return Output(segments=[Segment(**segment) for segment in segments])
