"""What is seen of each request: an id, a line in the log, metrics, and a trace where wanted."""

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import PROBES, Metrics, accept_id, create_router, method_of, route_of
from serving.worker import Worker, request_id

LOG_FORMAT = os.getenv("LOG_FORMAT", "text").lower()
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
# What every record has; uvicorn's have their message in colour, too.
STANDARD = {*vars(logging.makeLogRecord({})), "message", "taskName", "color_message"}


class Observe:
    """Middleware that gives each request an id, and tells of it when it is answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

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

        self.metrics.in_flight += 1
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.in_flight -= 1
            self._tell(method_of(scope), route_of(scope), status, time.perf_counter() - start)

    def _tell(self, method: str, route: str, status: int, seconds: float) -> None:
        self.metrics.requested(method, route, status, seconds)
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


class TextFormatter(logging.Formatter):
    """A line for people, with the request's id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Put the id in."""
        own_id = request_id.get()
        record.request = f" [{own_id}]" if own_id else ""
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A line for machines: one JSON object, with what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        written = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": written.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if own_id := request_id.get():
            line["request_id"] = own_id
        line |= {name: extra for name, extra in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(*, level: str) -> None:
    """Have all loggers, the server's and the libraries' included, write lines in LOG_FORMAT."""
    formatters = {"text": TextFormatter, "json": JsonFormatter}
    if LOG_FORMAT not in formatters:
        sys.exit(f"LOG_FORMAT must be text or json; not {LOG_FORMAT!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(formatters[LOG_FORMAT]())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.access").propagate = False  # this module writes one


def observe(app: FastAPI, worker: Worker) -> None:
    """Watch the requests and the worker; to be called after every other middleware is added."""
    metrics = Metrics(worker)
    app.include_router(create_router(metrics))
    app.add_middleware(Observe, metrics=metrics)
