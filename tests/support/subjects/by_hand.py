"""A service written by hand that keeps the spec: it measures pictures.

Nothing of the template is in it. The conformance tests ask it with --url.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel
from starlette.datastructures import UploadFile

MAX_UPLOAD_BYTES = int(os.getenv("MAX_UPLOAD_MB", "20")) * 1024 * 1024
TYPES = {"image/png", "image/jpeg", "application/octet-stream"}
FILE = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"picture": FILE, "scale": {"type": "number"}},
                    "required": ["picture"],
                }
            },
            "image/png": {"schema": FILE},
        }
    }
}

state: dict[str, bool] = {"loaded": False}


class Size(BaseModel):
    """How large a picture is."""

    width: float
    height: float


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Be ready a little after the port is open."""

    async def load() -> None:
        await asyncio.sleep(0.3)
        state["loaded"] = True

    task = asyncio.create_task(load())
    yield
    task.cancel()


app = FastAPI(title="measure", summary="Keeps the ML Microservice Spec 1.0.0", lifespan=lifespan)


@app.middleware("http")
async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what says that it is too large."""
    if int(request.headers.get("content-length", "0")) > MAX_UPLOAD_BYTES:
        return JSONResponse({"detail": "File too large."}, 413)
    return await call_next(request)


app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
def health() -> dict[str, str]:
    """Answer always."""
    return {"status": "ok"}


@app.get("/ready")
def ready() -> dict[str, str]:
    """Answer 200 when loaded."""
    if not state["loaded"]:
        raise HTTPException(503, "Model not loaded yet.")
    return {"status": "ready"}


@app.post("/account")
def account(name: dict[str, Any]) -> dict[str, Any]:
    """Do something else: the inference route is not the only one that takes a body."""
    return name


@app.post("/measure", openapi_extra=BODY)
async def measure(request: Request, scale: Annotated[float, Query()] = 1) -> Size:
    """Return a picture's size, times a scale."""
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type == "multipart/form-data":
        form = await request.form()
        part = form.get("picture")
        if not isinstance(part, UploadFile):
            raise RequestValidationError(
                [{"loc": ("body", "picture"), "msg": "Field required", "type": "missing"}]
            )
        content_type, data = part.content_type or "", await part.read()
        scale = float(str(form.get("scale", scale)))
    else:
        data = await request.body()
        if not data:
            raise RequestValidationError(
                [{"loc": ("body", "picture"), "msg": "Field required", "type": "missing"}]
            )
    if content_type not in TYPES:
        raise HTTPException(415, "Send a PNG or a JPEG.")
    if not data:
        raise HTTPException(400, "Empty upload.")
    ready()
    return await asyncio.to_thread(size, data, scale)


def size(data: bytes, scale: float) -> Size:
    """Decode and measure."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except OSError as error:
        raise HTTPException(400, "No picture.") from error
    return Size(width=picture.width * scale, height=picture.height * scale)


if __name__ == "__main__":
    # This parser reads the body of a request that offers an upgrade; httptools does not.
    uvicorn.run(app, port=int(os.environ["PORT"]), http="h11")
