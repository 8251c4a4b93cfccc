"""Sentence embeddings by MiniLM, computed as the preset `minilm` does."""

import os

import torch
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256


class Encoder:
    """The checkpoint in the folder MODEL_NAME, on the CPU."""

    def __init__(self) -> None:
        folder = os.environ["MODEL_NAME"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype="float32").eval()

    def run(self, texts: list[str]) -> list[list[float]]:
        """Return a vector of 384 numbers for each text."""
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
            vectors = torch.nn.functional.normalize(means)
        return vectors.tolist()  # type: ignore[no-any-return]
