"""A machine-learning model behind an HTTP API.

`POST /ocr` answers requests; `GET /health` and `GET /ready` tell how the service is.
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
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from PIL import Image
from pydantic import BaseModel, Field

from device import get_device
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

MODEL_NAME = os.getenv("MODEL_NAME", "PP-OCRv6")  # its weights come with the package

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

# RapidOCR enlarges a thin picture until its short side has hundreds of pixels: 70 bytes of PNG,
# 2000 x 1 pixels, would take tens of gigabytes.
MAX_WIDTH = 100  # times the height: a line of text is wide
MAX_HEIGHT = 10  # times the width


class Params(BaseModel):
    """Parameters beside the picture."""

    min_confidence: float = Field(default=0.5, ge=0, le=1, description="leave out lines below it")


class Line(BaseModel):
    """One line of text."""

    text: str
    box: list[tuple[float, float]] = Field(
        description="four corners (x, y) in pixels, clockwise from the top left"
    )
    confidence: float = Field(description="0 to 1")


class Output(BaseModel):
    """The lines of text in the picture, from top to bottom."""

    lines: list[Line]


EXAMPLE = {"file": "example.png"}


class Model:
    """RapidOCR: a text detector, an orientation classifier and a recognizer on ONNX Runtime."""

    def __init__(self, device: str) -> None:
        """Load the three networks onto the device: "cuda", "mps" or "cpu"."""
        import onnxruntime
        from rapidocr import OCRVersion, RapidOCR

        # RapidOCR gives its logger a handler of its own, which would print every line twice.
        logging.getLogger("RapidOCR").handlers.clear()
        logging.getLogger("RapidOCR").propagate = True
        if device == "cuda":
            onnxruntime.preload_dlls()
        self.engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Cls.cls_thresh": 0.95,  # at the default, 0.9, some upright lines are turned over
                "Det.ocr_version": OCRVersion(MODEL_NAME),
                "Rec.ocr_version": OCRVersion(MODEL_NAME),
                "EngineConfig.onnxruntime.intra_op_num_threads": NUM_THREADS,
                "EngineConfig.onnxruntime.use_cuda": device == "cuda",
                "EngineConfig.onnxruntime.use_coreml": device == "mps",
            }
        )
        self._load_networks(PROVIDERS[device])

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Read each picture."""
        return [self._read(item.image, item.params.min_confidence) for item in inputs]

    def _read(self, image: Image.Image, min_confidence: float) -> Output:
        if image.width > MAX_WIDTH * image.height or image.height > MAX_HEIGHT * image.width:
            raise BadInput(f"{image.width} x {image.height} pixels are too thin a picture.")
        found = self.engine(image, text_score=min_confidence)
        if not len(found):
            return Output(lines=[])
        rows = zip(found.txts, found.boxes.tolist(), found.scores, strict=True)
        return Output(
            lines=[
                Line(text=text, box=box, confidence=round(float(score), 4))
                for text, box, score in rows
            ]
        )

    def _load_networks(self, provider: str) -> None:
        """Load what RapidOCR would load in its first call, and see that it uses the device."""
        blank = Image.new("RGB", (64, 64))
        self.engine(blank, use_det=False)
        self.engine(blank, use_det=True)
        for network in (self.engine.text_det, self.engine.text_cls, self.engine.text_rec):
            # RapidOCR falls back to the CPU with no more than a warning.
            if network.session.session.get_providers()[0] != provider:
                raise CannotLoad(f"{provider} did not load; set DEVICE=cpu to run without it")


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
    "/ocr",
    response_model=Output,
    responses=RESPONSES,
    openapi_extra=read.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one picture."""
    worker.admit()
    upload = await read(request)
    job = Job(partial(decode, upload), encode)
    body = await worker.run(job, gone=request.is_disconnected)
    return Response(body, media_type="application/json")


direct(app, infer)


def serve() -> None:
    """Serve until SIGTERM, then exit with 0; with 1 where the model made it impossible to go on."""
    routes = {"/ocr": 503}
    door = Door(worker, routes, max_bytes=MAX_UPLOAD_BYTES)
    sys.exit(run(app, door, port=PORT, timeout=INFER_TIMEOUT_SECONDS))


if __name__ == "__main__":
    serve()
