"""Tells whether two requests ask the same."""

import hashlib
from typing import Any

from serving.requests import ParsedRequest


def digest(parsed: ParsedRequest[Any]) -> str:
    """Return what is the same for two requests that ask the same.

    Spaces and the order of fields make no difference.
    """
    return hashlib.sha256(parsed.params.model_dump_json().encode()).hexdigest()
