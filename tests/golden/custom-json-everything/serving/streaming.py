"""The answer in parts, as they come: `Model.stream` as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Scope

from serving.errors import DeadlineExceeded, TooSlow, describe
from serving.runner import Job, Runner, attempt
from serving.settings import settings
from serving.worker import Call, Worker

# Proxies that gather an answer before they pass it on would undo what this is for.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MAX_AHEAD = 1000  # parts that the client has not taken yet
END = None  # of a stream
END_EVENT = "event: end\ndata: {}\n\n"
PAUSE = b""  # in place of a part that is slow to come
# What JSON leaves as it is, and many clients take for the end of a line.
LINE_ENDS = str.maketrans({"\x85": r"\u0085", "\u2028": r"\u2028", "\u2029": r"\u2029"})

T = TypeVar("T")


@runtime_checkable
class Streams(Protocol):
    """A model that can answer in parts."""

    def stream(self, item: Any, /) -> Iterator[Any]:
        """Yield the parts of one input's answer, each an `Output`."""


class StreamingRunner(Runner):
    """Answers in parts, too."""

    def stream(self, job: Job[Any]) -> Generator[Any, None, None]:
        """Yield the parts of a job's answer; last the error, where it failed."""
        parts = self.parts(job)
        try:
            while (part := attempt(partial(next, parts, END), job)) is not END:
                yield part
                if isinstance(part, Exception):
                    return
        finally:
            attempt(parts.close, job)

    def parts(self, job: Job[Any]) -> Generator[Any, None, None]:
        """Yield the parts, as they come out of the model."""
        for item in job.decode():
            for output in self.model.stream(item):
                yield job.encode([output])


@dataclass(eq=False)
class StreamCall(Call):
    """A request whose answer comes in parts; its future is done when nobody wants more of them."""

    parts: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def resolve(self, answer: Any) -> None:
        """Put the next part, the error in its place, or the end."""
        self.parts.put_nowait(answer)


class StreamingWorker(Worker):
    """A worker that answers in parts, too; such a request is a batch by itself."""

    runner: StreamingRunner

    async def stream(
        self, job: Job[T], is_disconnected: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[T, None]:
        """Yield the parts of an answer as they come; who stops asking stops the model too.

        Raises as `run` does. The deadline is for each part, and the place is taken until the end.
        PAUSE comes while a part takes longer than STREAM_COMMENT_SECONDS.
        """
        call = self._enqueue(StreamCall, job, is_disconnected)
        now = asyncio.get_running_loop().time
        deadline = now() + settings.infer_timeout_seconds
        try:
            while (part := await self._next_part(call, now(), deadline)) is not END:
                yield part
                if part != PAUSE:
                    deadline = now() + settings.infer_timeout_seconds
        finally:
            call.future.cancel()
            self._withdraw(call)

    async def _next_part(self, call: StreamCall, now: float, deadline: float) -> Any:
        pause = now + settings.stream_comment_seconds
        try:
            async with asyncio.timeout_at(min(pause, deadline)):
                part = await call.parts.get()
        except TimeoutError:
            if pause < deadline:
                return PAUSE
            raise DeadlineExceeded from None
        if isinstance(part, Exception):
            raise part
        return part

    def _ask(self, calls: list[Call]) -> list[Any]:
        call = calls[0]
        return [self._ask_in_parts(call)] if isinstance(call, StreamCall) else super()._ask(calls)

    def _ask_in_parts(self, call: StreamCall) -> Exception | None:
        """Hand out the parts as they come; return the end, or the error that ended them."""
        with closing(self.runner.stream(call.job)) as parts:
            for part in parts:
                if isinstance(part, Exception):
                    return part
                if call.future.done():
                    break
                if call.parts.qsize() > MAX_AHEAD:
                    return TooSlow("The stream is not read as fast as it comes.")
                self._call_soon(call.resolve, part)
                call.started = time.monotonic()
                call.deadline = call.started + settings.infer_timeout_seconds
        return END


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


def describe_failure(error: Exception, scope: Scope) -> str:
    """Return the event in place of the end, where a stream has failed."""
    status, body = describe(error, scope)
    return event(json.dumps({"status": status, **body}), "error")


async def event_stream(
    parts: AsyncGenerator[bytes, None],
    request: Request,
    *,
    end: str = END_EVENT,
    fail: Callable[[Exception, Scope], str] = describe_failure,
) -> Response:
    """Return the parts as events. Until the first is there, an error has a status of its own."""
    while (first := await anext(parts, None)) == PAUSE:
        pass

    async def events() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield event(first.decode())
            async with aclosing(parts):
                async for part in parts:
                    yield event(part.decode()) if part else ": keep-alive\n\n"
            yield end
        except Exception as error:  # noqa: BLE001 -- the status has been sent: it becomes an event
            yield fail(error, request.scope)

    if request.scope["http_version"] == "1.0":  # which has no chunks: all at once
        text = "".join([part async for part in events()])
        return Response(text, headers=HEADERS, media_type=EventStream.media_type)
    return EventStream(events(), headers=HEADERS)


def event(data: str, name: str = "") -> str:
    """Return a server-sent event; without a name it is a part of the answer."""
    data = data.translate(LINE_ENDS)
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"
