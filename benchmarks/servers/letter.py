"""The source document's pattern, call for call, with this model.

That code is in tests/support/subjects/seed_code.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from classifier import Classifier, decode
from fastapi import FastAPI, File, HTTPException, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from PIL import Image
from pydantic import BaseModel

MAX_UPLOAD_BYTES = 20 * 1024 * 1024
INFER_TIMEOUT = 60


class Output(BaseModel):
    """Which way up the line is."""

    label: str
    score: float


class Model:
    """The classifier."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def predict(self, image: Image.Image) -> Output:
        """Classify one picture."""
        label, score = self.classifier.run(image)
        return Output(label=label, score=score)


model: Model | None = None


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load before the port opens."""
    global model
    model = Model()
    yield


app = FastAPI(title="my-model-server", version="0.1.0", lifespan=lifespan)
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


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
    prepared = decode(data)
    loop = asyncio.get_event_loop()
    try:
        return await asyncio.wait_for(
            loop.run_in_executor(None, lambda: model.predict(prepared)), timeout=INFER_TIMEOUT
        )
    except asyncio.TimeoutError:
        raise HTTPException(status_code=504, detail="Inference timed out.")
    except RuntimeError as error:
        if "out of memory" in str(error).lower():
            raise HTTPException(status_code=503, detail="GPU out of memory.")
        raise


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False)
