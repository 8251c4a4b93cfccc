"""How lines of the log look: for people, or for machines; each with its request's id."""

import logging

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from serving.runner import request_id
from serving.settings import settings

TEXT = "%(asctime)s %(levelname)s %(name)s%(tag)s: %(message)s"
FIELDS = {"levelname": "level", "name": "logger", "exc_info": "exception"}
# uvicorn's records have their message in colour, too.
LEFT_OUT = [*RESERVED_ATTRS, "tag", "color_message"]


def add_request_id(record: logging.LogRecord) -> bool:
    """Note which request a record is about; a filter of the handler."""
    own_id = request_id.get()
    record.tag = f" [{own_id}]" if own_id else ""
    if own_id:
        record.request_id = own_id
    return True


def configure_logging() -> None:
    """Have all loggers, the server's and the libraries' included, write lines in LOG_FORMAT."""
    handler = logging.StreamHandler()
    handler.addFilter(add_request_id)
    handler.setFormatter(logging.Formatter(TEXT))
    if settings.log_format == "json":
        form = "%(levelname)s %(name)s %(message)s"
        handler.setFormatter(
            JsonFormatter(form, rename_fields=FIELDS, reserved_attrs=LEFT_OUT, timestamp="time")
        )
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.access").propagate = False  # observability.py writes one
