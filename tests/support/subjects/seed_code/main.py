"""A service that does what the code in the source document does, call for call (sections 3 to 7).

What the document leaves open is filled in with as little as possible: the model in inference.py,
`preprocess`, `postprocess`, the values of `/gpu`, and `serve`, which starts uvicorn as its
Dockerfile means to.
"""

import asyncio
import io
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from device import get_device
from fastapi import FastAPI, File, HTTPException, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from inference import Model, Output
from PIL import Image

try:
    import pynvml

    GPU_MONITORING = True
except ImportError:
    GPU_MONITORING = False

MODEL_NAME = os.getenv("MODEL_NAME", "default-variant")
MAX_UPLOAD_BYTES = int(os.getenv("MAX_UPLOAD_MB", "20")) * 1024 * 1024
INFER_TIMEOUT = int(os.getenv("INFER_TIMEOUT_SECONDS", "60"))

model: Model | None = None


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load before the port opens."""
    global model
    device = get_device()
    model = Model(device=device)
    logging.info("Model loaded")
    yield


app = FastAPI(title="my-model-server", version="0.1.0", lifespan=lifespan)
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
def health() -> dict[str, str]:
    """Liveness."""
    return {"status": "ok"}


@app.get("/ready")
def readiness() -> dict[str, str]:
    """Readiness."""
    if model is None:
        raise HTTPException(status_code=503, detail="Model not loaded yet.")
    return {"status": "ready"}


@app.post("/infer")
async def infer(file: UploadFile = File(...)) -> Any:
    """Validate, check readiness, preprocess, infer, postprocess."""
    data = await file.read()
    if not data:
        raise HTTPException(status_code=400, detail="Empty upload.")
    if len(data) > MAX_UPLOAD_BYTES:
        raise HTTPException(status_code=413, detail="File too large.")
    if model is None:
        raise HTTPException(status_code=503, detail="Model not loaded yet.")
    prepared = preprocess(data)
    loop = asyncio.get_event_loop()
    try:
        raw = await asyncio.wait_for(
            loop.run_in_executor(None, lambda: model.predict(prepared)), timeout=INFER_TIMEOUT
        )
    except asyncio.TimeoutError:
        raise HTTPException(status_code=504, detail="Inference timed out.")
    except RuntimeError as error:
        if "out of memory" in str(error).lower():
            raise HTTPException(status_code=503, detail="GPU out of memory.")
        raise
    return postprocess(raw)


def preprocess(data: bytes) -> list[Image.Image]:
    """Decode the picture."""
    return [Image.open(io.BytesIO(data))]


def postprocess(raw: list[Output]) -> Output:
    """Return the only answer."""
    return raw[0]


if GPU_MONITORING:

    @app.get("/gpu")
    def gpu() -> dict[str, list[dict[str, Any]]]:
        """Temperatures, the hot ones logged."""
        pynvml.nvmlInit()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            if celsius > 85:
                logging.error("%s CRITICAL: %dC", name, celsius)
            elif celsius > 80:
                logging.warning("%s HIGH: %dC", name, celsius)
            gpus.append({"index": index, "name": name, "temperature": celsius})
        return {"gpus": gpus}


def serve() -> None:
    """Start as the document's CMD would, if a shell read the variable in it."""
    uvicorn.run(app, host="0.0.0.0", port=int(os.getenv("PORT", "8000")))


if __name__ == "__main__":
    serve()
