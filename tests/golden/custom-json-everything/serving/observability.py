"""What is seen of each request: an id, a line in the log, metrics, and a trace where wanted."""

import logging
import re
import time
from random import getrandbits

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import find_route
from serving.metrics import DURATIONS, IN_FLIGHT, REQUESTS, router
from serving.runner import request_id

PROBES = frozenset({"/health", "/ready", "/metrics", "/ping", "/readyz"})  # of contracts, too
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"  # a method or path of the client's own making, of which there is no end
# Where OpenTelemetry's variables say where to, and its packages are there: `uv sync --extra otel`.
TELEMETRY: TelemetryConfig = {
    "auto_configure": True,
    "metrics": False,
    "logs": False,
    "exclude": lambda scope: scope.get("path") in PROBES,
}

OK = 200
CLIENT_LEFT = 499  # no answer was sent; nginx calls it so

access = logging.getLogger("access")


class Observe:
    """Middleware that gives each request an id, and tells of it when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its id goes into the answer's headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        own_id = accept_id(scope["headers"])
        request_id.set(own_id)
        span = get_current_span()
        if span.is_recording():
            span.set_attribute("http.response.header.x-request-id", [own_id])
            if scope["query_string"]:
                span.set_attribute("url.query", "")  # parameters may stand in it
        status = CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", own_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            with IN_FLIGHT.track_inprogress():
                await self.app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            record(scope, status, time.perf_counter() - start)


def record(scope: Scope, status: int, seconds: float) -> None:
    """Count a request, and write its line of the log."""
    method = scope["method"] if scope["method"] in METHODS else OTHER
    route = str(getattr(find_route(scope), "path", OTHER))
    REQUESTS.labels(method, route, status).inc()
    DURATIONS.labels(method, route, status).observe(seconds)
    # Probes come every few seconds: they are worth a line when they fail.
    level = logging.DEBUG if route in PROBES and status == OK else logging.INFO
    if access.isEnabledFor(level):
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
        }
        access.log(level, "%s %s %d %s ms", *fields.values(), extra=fields)


def accept_id(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the request's X-Request-ID where it is fit to be logged, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and re.fullmatch(rb"[!-~]{1,128}", value):
            return str(value, "ascii")
    return f"{getrandbits(128):032x}"  # no secret; the system's would let go of the GIL


def install_observability(app: FastAPI) -> None:
    """Watch an app's requests; to be called after every other middleware is added."""
    app.include_router(router)
    app.add_middleware(Observe)
