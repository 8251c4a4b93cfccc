"""A machine-learning model behind an HTTP API.

`POST /infer` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

from serving import NUM_THREADS  # first: NumPy and the frameworks read it when they are loaded

# isort: split

import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from device import get_device
from inference import EXAMPLE, MODEL_NAME, Model, Output, Params
from serving.auth import Authorizer, check_settings, protect
from serving.batching import MAX_BATCH_DELAY_MS, MAX_BATCH_SIZE, answer_together
from serving.contracts.core import Core
from serving.contracts.model_engine import create_router as create_model_engine_router
from serving.contracts.oip.grpc_server import serve_grpc
from serving.contracts.oip.routes import create_router as create_oip_router
from serving.contracts.sagemaker import STOP_SECONDS, bootstrap, choose_port
from serving.gpu import router as gpu_router
from serving.inputs import Input, decode
from serving.isolation import ModelProcess, is_model_process
from serving.limits import RESPONSES, NotReady, env_bool, env_int, guard
from serving.observability import TELEMETRY, configure_logging, observe
from serving.replicas import run
from serving.requests import Reader
from serving.server import Door
from serving.streaming import EventStream, Streams, event_stream
from serving.threads import THREADS_LIMIT
from serving.worker import Bounds, Job, Worker, stream_each

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
    """Run the model, on its own process."""
    if model is None:
        raise NotReady
    return model.predict(inputs)


def stream(item: Input[Params]) -> Iterator[Output]:
    """Have the model answer in parts, where it can; on its own process."""
    if not isinstance(model, Streams):
        raise NotReady
    return model.stream(item)


def tell(act: Callable[[Model], None]) -> list[Input[Params]]:
    """Have the model do something else, on its own process: a job without inputs."""
    if model is None:
        raise NotReady
    act(model)
    return []


def batch_key(item: Input[Params]) -> Hashable:
    """Return what inputs of one call have in common: anything, unless the model says."""
    key = getattr(model, "batch_key", None)
    return key(item) if key else None


def encode(outputs: list[Output]) -> bytes:
    """Return the response's body: a request has one input, so one output."""
    return outputs[0].model_dump_json().encode()


def unload() -> None:
    """Release what the model holds, where it has a `close` for that."""
    global model
    if close := getattr(model, "close", None):
        close()
    model = None


answer = partial(answer_together, predict, batch_key)
parts = partial(stream_each, stream)
process = ModelProcess(load, answer, unload, parts)
worker = Worker(
    process.load,
    process.answer,
    Bounds(
        max_queue=MAX_QUEUE_SIZE,
        timeout=INFER_TIMEOUT_SECONDS,
        hang_limit=INFER_HANG_SECONDS,
        max_batch=MAX_BATCH_SIZE,
        max_delay=MAX_BATCH_DELAY_MS / 1000,
    ),
    stream=process.stream,
    kill=process.kill,
)
process.on_end = worker.lose
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
    process.close()


app = FastAPI(
    title="my-model-server",
    summary="Follows the ML Microservice Spec 1.0.0.",
    description="A machine-learning model behind an HTTP API",
    version="0.1.0",
    generate_unique_id_function=attrgetter("name"),  # the names of a generated client's methods
    lifespan=lifespan,
    telemetry=TELEMETRY,
)
app.include_router(gpu_router)
app.include_router(create_oip_router(core))
app.include_router(create_model_engine_router(core))


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
    body = await worker.run(job, gone=request.state.is_disconnected)
    return Response(body, media_type="application/json")


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
        return await event_stream(worker.stream(job, gone=request.state.is_disconnected), request)


# Your own endpoints, routers and middleware go here. What follows is outermost, so it stays last.

guard(app, max_bytes=MAX_UPLOAD_BYTES)
protect(app, authorizer)
app.add_middleware(
    CORSMiddleware, allow_origins=CORS_ORIGINS, allow_methods=["*"], allow_headers=["*"]
)
observe(app, worker)
if not is_model_process():  # which serves nothing, and runs no scripts
    bootstrap(app, core, Model, tell)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    check_settings()
    routes = {"/infer": 503, "/predict": 429}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    status = run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS, stop_within=STOP_SECONDS)
    sys.exit(status)


if __name__ == "__main__":
    serve()
