"""How lines of the log look: for people, or for machines; each with its request's id."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from serving.runner import request_id
from serving.settings import settings

# What every record has; uvicorn's have their message in colour, too.
STANDARD = {*vars(logging.makeLogRecord({})), "message", "taskName", "color_message"}


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


def configure_logging() -> None:
    """Have all loggers, the server's and the libraries' included, write lines in LOG_FORMAT."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.access").propagate = False  # observability.py writes one
