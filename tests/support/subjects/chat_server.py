"""A server that speaks OpenAI's API: the last message of a conversation says what it does."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

WORDS = ["Good", " day", ", Ann\u2028a", "."]
PAUSE = 3  # seconds
MANY = 2_000

app = FastAPI()
asked: list[dict[str, Any]] = []
keys: list[str] = []
ended: list[int] = []  # how many parts of each endless stream were made


def failed(status: int, message: str) -> JSONResponse:
    """Return an error in OpenAI's form."""
    return JSONResponse({"error": {"message": message, "code": status}}, status)


FAILURES = {
    "too long": failed(400, "This model's maximum context length is 8 tokens."),
    "flat error": JSONResponse({"object": "error", "message": "Too long."}, 400),
    "busy": failed(429, "Too many."),
    "down": failed(503, "Loading."),
    "unknown": failed(404, "No such model: secret-name"),
    "no JSON": Response("<html>"),
}


@app.get("/ready")
def ready() -> str:
    """Say that it is there."""
    return "yes"


@app.get("/noted")
def noted() -> dict[str, Any]:
    """Return what was asked."""
    return {"asked": asked, "keys": keys, "ended": ended}


@app.get("/v1/models")
def models() -> dict[str, Any]:
    """Name the models."""
    return {"object": "list", "data": [{"id": "talker", "object": "model"}]}


@app.post("/v1/chat/completions")
def chat(request: Request, body: dict[str, Any]) -> Response:
    """Answer, whole or in parts, or fail as it is told."""
    asked.append(body)
    keys.append(request.headers["authorization"])
    wish = body["messages"][-1]["content"]
    if wish in FAILURES:
        return FAILURES[wish]
    if wish == "slow":
        time.sleep(PAUSE)
    if body["stream"]:
        return StreamingResponse(parts(wish), media_type="text/event-stream")
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({"object": "chat.completion", "choices": [choice]})


async def parts(wish: str) -> AsyncIterator[str]:
    """Yield the lines of a stream."""
    yield ": comment\n\n"
    yield chunk({"role": "assistant", "content": None})
    if wish == "endless":
        async for part in endless():
            yield part
    for word in WORDS:
        yield chunk({"content": word})
        if wish == "hangs in the middle":
            await asyncio.sleep(PAUSE)
    if wish == "fails in the middle":
        yield 'data: {"error": {"message": "CUDA error"}}\n\n'
    elif wish != "ends in the middle":
        yield chunk({}, "stop")
        yield 'data: {"choices": [], "usage": {"total_tokens": 9}}\n\n'
        yield "data: [DONE]\n\n"


async def endless() -> AsyncIterator[str]:
    """Yield parts for half a minute, and note how many were taken."""
    made = 0
    try:
        for made in range(MANY):  # noqa: B007 -- it is noted below
            yield chunk({"content": "word "})
            await asyncio.sleep(0.015)
    finally:
        ended.append(made)


def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
    """Return a part of an answer in OpenAI's form."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]))
