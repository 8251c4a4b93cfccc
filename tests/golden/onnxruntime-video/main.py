"""A machine-learning model behind an HTTP API.

`POST /describe` answers requests; `GET /health` and `GET /ready` tell how the service is.
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
from pydantic import BaseModel, Field

from device import get_device
from gpu import router as gpu_router
from inputs import CONTENT_TYPES, Input, decode
from limits import RESPONSES, CannotLoad, NotReady, direct, env_bool, env_int, guard
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

MODEL_NAME = os.getenv("MODEL_NAME", "model.onnx")

GRID = 64  # points along each side of a frame that are looked at
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


class Params(BaseModel):
    """Parameters beside the clip: none."""


class Output(BaseModel):
    """How much moves in the clip."""

    motion: float = Field(description="mean change of brightness between frames, 0 to 1")
    busiest_second: float = Field(description="when the picture changes most, from the start")


EXAMPLE = {"file": "example.mp4"}


class Model:
    """Measures the change from frame to frame, by one linear layer over pairs of pixels."""

    def __init__(self, device: str) -> None:
        """Load the .onnx file MODEL_NAME onto the device: "cuda", "mps" or "cpu"."""
        import onnxruntime

        if device == "cuda":
            onnxruntime.preload_dlls()
        provider = PROVIDERS[device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = NUM_THREADS
        self.session = onnxruntime.InferenceSession(MODEL_NAME, options, providers=[provider])
        # ONNX Runtime falls back to the CPU with no more than a warning.
        if self.session.get_providers()[0] != provider:
            raise CannotLoad(f"{provider} did not load; set DEVICE=cpu to run without it")

    def _logits(self, features: np.ndarray) -> np.ndarray:
        """Run the model: float32 (n, features) in, float32 (n, logits) out."""
        return np.asarray(self.session.run(["logits"], {"features": features})[0])

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the motion in each clip."""
        return [self._motion(item.frames, item.fps) for item in inputs]

    def _motion(self, frames: np.ndarray, fps: float) -> Output:
        if len(frames) == 1:
            return Output(motion=0.0, busiest_second=0.0)
        rows, columns = (np.linspace(0, side - 1, GRID).astype(int) for side in frames.shape[1:3])
        points = frames[:, rows[:, None], columns].mean(axis=3, dtype=np.float32) / 255
        pairs = np.stack([points[:-1], points[1:]], axis=-1).reshape(-1, 2)
        changes = np.abs(self._logits(pairs)).reshape(len(frames) - 1, -1).mean(axis=1)
        busiest = (int(changes.argmax()) + 1) / fps
        return Output(motion=round(float(changes.mean()), 4), busiest_second=round(busiest, 2))


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
    "/describe",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one clip."""
    worker.admit()
    upload = await read(request)
    job = Job(partial(decode, upload), encode)
    body = await worker.run(job, gone=request.is_disconnected)
    return Response(body, media_type="application/json")


direct(app, infer)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    routes = {"/describe": 503}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    sys.exit(run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS))


if __name__ == "__main__":
    serve()
