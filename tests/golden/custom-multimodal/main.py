"""A machine-learning model behind an HTTP API.

`POST /match` answers requests; `GET /health` and `GET /ready` tell how the service is.
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

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from PIL import Image
from pydantic import BaseModel, Field

from device import get_device
from gpu import router as gpu_router
from inputs import CONTENT_TYPES, Input, decode
from limits import RESPONSES, BadInput, NotReady, direct, env_bool, env_int, guard
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

MODEL_NAME = os.getenv("MODEL_NAME", "nearest-color")

COLORS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "orange": (255, 140, 0),
    "yellow": (255, 255, 0),
    "green": (0, 160, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (128, 0, 160),
    "pink": (255, 160, 190),
    "brown": (120, 70, 20),
}
PALETTE = np.array(list(COLORS.values()), dtype=np.float32) / 255
# The colour c nearest to a pixel p is the one with the greatest 2 p·c - |c|²: one linear layer.
WEIGHTS = 2 * PALETTE.T
BIAS = -np.square(PALETTE).sum(axis=1)


class Params(BaseModel):
    """The text beside the picture."""

    text: str = Field(min_length=1, max_length=1000, description="names one colour or several")


class Output(BaseModel):
    """How well the text fits the picture."""

    score: float = Field(description="part of the picture in the colours named, 0 to 1")


EXAMPLE = {"file": "example.png", "text": "a red picture"}


class Model:
    """Gives every pixel the name of its nearest colour, by one linear layer."""

    def __init__(self, device: str) -> None:
        """Load the model onto the device: "cuda", "mps" or "cpu"."""
        # NumPy computes on the CPU; hand the device to your own library.
        self.device = device
        self.weights = WEIGHTS
        self.bias = BIAS

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the model: float32 (n, features) in, float32 (n, logits) out."""
        return np.asarray(features @ self.weights + self.bias)

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return how much of each picture is in the colours that its text names."""
        return [self._match(item.image, item.params.text) for item in inputs]

    def _match(self, image: Image.Image, text: str) -> Output:
        words = set(text.lower().split())
        named = [name in words for name in COLORS]
        if not any(named):
            raise BadInput(f"The text names no colour. Name one or several of {', '.join(COLORS)}.")
        return Output(score=round(float(self._shares(image)[named].sum()), 3))

    def _shares(self, image: Image.Image) -> np.ndarray:
        """Return the part of the picture, 0 to 1, that each of COLORS takes up."""
        pixels = np.asarray(image.resize((64, 64)), dtype=np.float32).reshape(-1, 3) / 255
        nearest = self._logits(pixels).argmax(axis=1)
        return np.bincount(nearest, minlength=len(COLORS)) / len(nearest)


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
    "/match",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one picture and a text about it."""
    worker.admit()
    upload = await read(request)
    job = Job(partial(decode, upload), encode)
    body = await worker.run(job, gone=request.is_disconnected)
    return Response(body, media_type="application/json")


direct(app, infer)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    routes = {"/match": 503}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    sys.exit(run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS))


if __name__ == "__main__":
    serve()
