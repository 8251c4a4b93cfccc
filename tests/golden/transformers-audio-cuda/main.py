"""A machine-learning model behind an HTTP API.

`POST /transcribe` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

from threads import NUM_THREADS, THREADS_LIMIT  # first: it tells NumPy how many

# isort: split

import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel

from device import get_device
from gpu import router as gpu_router
from inputs import CONTENT_TYPES, Input, decode
from limits import RESPONSES, BadInput, CannotLoad, NotReady, direct, env_bool, env_int, guard
from observability import TELEMETRY, configure_logging, observe
from replicas import run
from server import Door
from uploads import Reader
from worker import Bounds, Job, Worker, answer_each

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

# The name of a checkpoint on the Hugging Face hub, or a folder.
MODEL_NAME = os.getenv("MODEL_NAME", "facebook/wav2vec2-base-960h")
MIN_SAMPLES = 400  # what the model's first layers span: 25 ms


class Params(BaseModel):
    """Parameters beside the recording: none."""


class Output(BaseModel):
    """What was said."""

    text: str


EXAMPLE = {"file": "example.wav"}


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


# Your model ends here.

model: Model | None = None
read = Reader(Params, field="file", content_types=CONTENT_TYPES, max_bytes=MAX_UPLOAD_BYTES)


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
worker = Worker(
    load,
    answer,
    Bounds(
        max_queue=MAX_QUEUE_SIZE,
        timeout=INFER_TIMEOUT_SECONDS,
        hang_limit=INFER_HANG_SECONDS,
    ),
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
app.include_router(gpu_router)


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
    "/transcribe",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one recording."""
    worker.admit()
    upload = await read(request)
    job = Job(partial(decode, upload), encode)
    body = await worker.run(job, gone=request.is_disconnected)
    return Response(body, media_type="application/json")


direct(app, infer)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    routes = {"/transcribe": 503}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    sys.exit(run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS))


if __name__ == "__main__":
    serve()
