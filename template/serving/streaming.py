"""The answer in parts, as they come: `Model.stream` as server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Protocol, runtime_checkable

from fastapi import Request
from fastapi.responses import StreamingResponse

from serving.limits import describe

# Proxies that gather an answer before they pass it on would undo what this is for.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@runtime_checkable
class Streams(Protocol):
    """A model that can answer in parts."""

    def stream(self, item: Any, /) -> Iterator[Any]:
        """Yield the parts of one input's answer, each an `Output`."""


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


async def event_stream(parts: AsyncGenerator[bytes, None], request: Request) -> EventStream:
    """Return the parts as events. Until the first is there, an error has a status of its own."""
    first = await anext(parts, None)

    async def events() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield event(first.decode())
            async with aclosing(parts):
                async for part in parts:
                    yield event(part.decode())
            yield event("{}", "end")
        except Exception as error:  # noqa: BLE001 -- the status has been sent: it becomes an event
            status, body = describe(error, request.scope)
            yield event(json.dumps({"status": status, **body}), "error")

    return EventStream(events(), headers=HEADERS)


def event(data: str, name: str = "") -> str:
    """Return a server-sent event; without a name it is a part of the answer."""
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"
