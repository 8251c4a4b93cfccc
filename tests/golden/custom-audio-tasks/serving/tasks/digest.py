"""Tells whether two requests ask the same."""

import hashlib
from typing import Any

from serving.requests import ParsedRequest


def digest(parsed: ParsedRequest[Any]) -> str:
    """Return what is the same for two requests that ask the same.

    The bodies themselves differ: clients separate the parts of a form by another line each time.
    """
    hashed = hashlib.sha256(parsed.params.model_dump_json().encode())
    for file in parsed.files:
        hashed.update(repr((file.name, file.content_type, len(file.content))).encode())
        hashed.update(file.content)
    return hashed.hexdigest()
