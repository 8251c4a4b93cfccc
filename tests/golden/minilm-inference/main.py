"""A machine-learning model behind an HTTP API.

`POST /embed` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware

from device import get_device
from gpu import router as gpu_router
from inference import EXAMPLE, MODEL_NAME, Model, Output, Params
from inputs import decode
from limits import RESPONSES, NotReady, env_bool, env_int, guard
from observability import TELEMETRY, configure_logging, observe
from uploads import Reader, Upload
from worker import Worker

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

model: Model | None = None
worker = Worker(
    max_queue=MAX_QUEUE_SIZE, timeout=INFER_TIMEOUT_SECONDS, hang_limit=INFER_HANG_SECONDS
)
read = Reader(Params, max_bytes=MAX_UPLOAD_BYTES)


def load() -> None:
    """Load the model and run it once, so that the first user does not pay for that."""
    global model
    start = time.perf_counter()
    device = get_device()
    logger.info("Loading %s on %s", MODEL_NAME, device)
    loaded = Model(device)
    if WARMUP:
        answer(loaded, read.example(EXAMPLE))
    model = loaded
    logger.info("Model loaded in %.1f s", time.perf_counter() - start)


def answer(loaded: Model, upload: Upload[Params]) -> bytes:
    """Decode, predict and encode one request: what the worker runs off the event loop."""
    inputs = decode(upload)
    outputs = loaded.predict(inputs)
    if len(outputs) != len(inputs):
        raise RuntimeError(f"predict returned {len(outputs)} outputs for {len(inputs)} inputs")
    return outputs[0].model_dump_json().encode()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load in the background, so that /health answers meanwhile; release the model at the end."""
    global model
    worker.start(load)
    yield
    worker.stop()
    if close := getattr(model, "close", None):  # for models that hold more than memory
        close()
    model = None


app = FastAPI(
    title="my-model-server",
    summary="Follows the ML Microservice Spec 1.0.0.",
    description="A machine-learning model behind an HTTP API",
    version="0.1.0",
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
    if model is None:
        raise NotReady
    worker.check()
    return {"status": "ready"}


@app.post(
    "/embed",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
    dependencies=[Depends(worker.admit)],
)
async def infer(upload: Annotated[Upload[Params], Depends(read)]) -> Response:
    """Answer for one JSON document."""
    if model is None:
        raise NotReady
    body = await worker.run(partial(answer, model, upload))
    return Response(body, media_type="application/json")


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    # uvicorn raises the signal that stopped it once more, which would make another exit status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    uvicorn.run(
        app,
        host="0.0.0.0",  # noqa: S104 -- a container is reached from outside
        port=PORT,
        log_config=None,
        access_log=False,  # observability.py writes one
        timeout_graceful_shutdown=INFER_TIMEOUT_SECONDS,
    )
    sys.exit(1 if worker.failed else 0)


if __name__ == "__main__":
    serve()
