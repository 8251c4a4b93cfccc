"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import logging
import os
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from serving import BadInput, CannotLoad, Decoder, Input

logger = logging.getLogger(__name__)

# What serving/inputs.py makes of a file before the model gets it.
DECODER = Decoder(sample_rate=16_000, channels=1)

# The name of a checkpoint on the Hugging Face hub, or a folder.
MODEL_NAME = os.getenv("MODEL_NAME", "facebook/wav2vec2-base-960h")
MIN_SAMPLES = 400  # what the model's first layers span: 25 ms


class Params(BaseModel):
    """Parameters beside the recording: none."""


class Output(BaseModel):
    """What was said."""

    text: str


EXAMPLE = {"file": "example-speech.wav"}


class Model:
    """A speech recogniser that is trained with CTC."""

    def __init__(self, device: str) -> None:
        """Load the checkpoint onto the device: "cuda", "mps" or "cpu"."""
        from transformers import AutoModelForCTC, AutoProcessor

        folder = download(MODEL_NAME)
        self.processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForCTC.from_pretrained(folder, dtype="float32")
        self.model = model.to(device).eval()

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Transcribe each recording."""
        # One by one: trained without a mask, this model would hear the padding of a batch.
        return [self._transcribe(item.samples, item.sample_rate) for item in inputs]

    def _transcribe(self, samples: np.ndarray, sample_rate: int) -> Output:
        import torch

        if len(samples) < MIN_SAMPLES:
            raise BadInput("The recording is too short to transcribe.")
        batch = self.processor(samples, sampling_rate=sample_rate, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**batch.to(self.model.device)).logits
        return Output(text=self.processor.batch_decode(logits.argmax(dim=-1))[0])


def download(name: str) -> str:
    """Return a model's folder, fetched from the hub (with a progress bar) unless it is local."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return name
    logger.info("Downloading %s, unless it is in the cache", name)
    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"])
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise CannotLoad(f"MODEL_NAME={name}: no such folder, and no hub gives it") from error
