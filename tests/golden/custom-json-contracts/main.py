"""A machine-learning model behind an HTTP API.

`POST /infer` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

from threads import NUM_THREADS, THREADS_LIMIT  # first: it tells NumPy how many

# isort: split

import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field

from auth import Authorizer, check_settings, protect
from core import Core
from device import get_device
from forwarder import create_router as create_forwarder_router
from gpu import router as gpu_router
from inputs import Input, decode
from limits import RESPONSES, NotReady, direct, env_bool, env_int, guard
from observability import TELEMETRY, configure_logging, observe
from oip import create_router as create_oip_router
from oip_grpc import serve_grpc
from replicas import run
from sagemaker_contract import STOP_SECONDS, bootstrap, choose_port
from server import Door
from streaming import EventStream, Streams, event_stream
from uploads import Reader
from worker import Bounds, Job, Worker, answer_each, stream_each

PORT = choose_port(default=8000)
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

MODEL_NAME = os.getenv("MODEL_NAME", "linear-trend")

WINDOW = 4  # values
# The least-squares line through WINDOW values, one step further on: one linear layer.
WEIGHTS = np.array([[-0.5], [0.0], [0.5], [1.0]], dtype=np.float32)
BIAS = np.zeros(1, dtype=np.float32)


class Params(BaseModel):
    """The request's body."""

    values: list[Annotated[float, Field(ge=-1e30, le=1e30)]] = Field(
        min_length=WINDOW, max_length=10_000, description="a series, oldest value first"
    )


class Output(BaseModel):
    """What comes next."""

    next: float = Field(description="the next value, if the trend of the last four goes on")


EXAMPLE = {"values": [1.0, 2.0, 3.0, 4.0]}


class Model:
    """Continues a series along its trend, by one linear layer."""

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
        """Return the next value of each series."""
        windows = np.array([item.params.values[-WINDOW:] for item in inputs], dtype=np.float32)
        return [Output(next=round(float(value), 4)) for value in self._logits(windows)[:, 0]]


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


def tell(act: Callable[[Model], None]) -> list[Input[Params]]:
    """Have the model do something else, on its own thread: a job without inputs."""
    if model is None:
        raise NotReady
    act(model)
    return []


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
authorizer = Authorizer()
core = Core(
    name="my-model-server",
    version="0.1.0",
    read=read,
    encode=encode,
    output=Output,
    body=Output,
    worker=worker,
    streams=issubclass(Model, Streams),
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load in the background, so that /health answers meanwhile; release the model at the end."""
    worker.start()
    async with authorizer, serve_grpc(core, authorizer):
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
protect(app, authorizer)
app.add_middleware(
    CORSMiddleware, allow_origins=CORS_ORIGINS, allow_methods=["*"], allow_headers=["*"]
)
observe(app, worker)
app.include_router(gpu_router)
app.include_router(create_oip_router(core))
app.include_router(create_forwarder_router(core))


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

bootstrap(app, core, Model, tell)  # last: its middleware is the innermost


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    check_settings()
    routes = {"/infer": 503, "/predict": 429}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    status = run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS, stop_within=STOP_SECONDS)
    sys.exit(status)


if __name__ == "__main__":
    serve()
