"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import logging
import os
from pathlib import Path

from pydantic import BaseModel, Field

from serving import CannotLoad, Input

logger = logging.getLogger(__name__)

# The name of a checkpoint on the Hugging Face hub, or a folder.
MODEL_NAME = os.getenv("MODEL_NAME", "sentence-transformers/all-MiniLM-L6-v2")
MAX_TOKENS = 256  # longer texts are cut here, as sentence-transformers does for this model


class Params(BaseModel):
    """The request's body."""

    text: str = Field(min_length=1, max_length=10_000, description="the text to embed")


class Output(BaseModel):
    """What the text means, as a vector."""

    embedding: list[float] = Field(
        description="384 numbers, of length 1: the dot product of two is their cosine similarity"
    )


EXAMPLE = {"text": "A man is eating food."}


class Model:
    """MiniLM, a sentence encoder: the mean of its token vectors, normalised."""

    def __init__(self, device: str) -> None:
        """Load the checkpoint onto the device: "cuda", "mps" or "cpu"."""
        from transformers import AutoModel, AutoTokenizer

        folder = download(MODEL_NAME)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype="float32").to(device).eval()

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Embed all texts, by one forward pass."""
        vectors, _ = self.embed([item.params.text for item in inputs])
        return [Output(embedding=vector) for vector in vectors]

    def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Return the texts' vectors and the number of their tokens, for OpenAI's API as well."""
        import torch

        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            tokens = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
            vectors = torch.nn.functional.normalize(means)
        return vectors.tolist(), int(mask.sum())


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
