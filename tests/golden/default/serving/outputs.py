"""Answers that are no JSON: `Output` in inference.py is one of these types, or has such fields."""

import json
import re
from base64 import b64encode
from importlib import import_module
from io import BytesIO
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import quote

from fastapi import Response
from pydantic import BaseModel, Field, PlainSerializer, Strict, WithJsonSchema


class File(BaseModel, val_json_bytes="base64"):
    """A file: the answer itself, with its further fields as headers, or a field of the answer."""

    content_type: str = Field("application/octet-stream", pattern="^[!-~]+/[ -~]+$")
    name: str = Field("", pattern=r"^[^/\\\x00-\x1f]*$")
    data: Annotated[
        bytes,
        Strict(),  # a text is base64 in JSON only
        PlainSerializer(lambda x: b64encode(x).decode(), when_used="json"),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ]


class Picture(File):
    """A picture."""

    content_type: Literal["image/png", "image/jpeg", "image/webp"] = "image/png"

    @classmethod
    def of(cls, image: Any, **fields: Any) -> Self:
        """Encode a PIL image, or uint8 of (height, width) or (height, width, 3 or 4); by pillow."""
        kind = fields.get("content_type", cls.model_fields["content_type"].default)
        if not hasattr(image, "save"):
            image = import_module("PIL.Image").fromarray(image.astype("uint8", casting="no"))
        image.save(buffer := BytesIO(), kind.removeprefix("image/"))
        return cls(data=buffer.getvalue(), **fields)


def describe_file(output: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of an answer that is a file, beside its JSON."""
    types = get_args(output.model_fields["content_type"].annotation) or ["*/*"]
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}
    others = [f"X-Output-{name}" for name in output.model_fields if name not in File.model_fields]
    headers = {name: {"schema": {"type": "string"}} for name in ["Content-Disposition", *others]}
    return {200: {"content": content, "headers": headers}}


def encode_file(accept: str, outputs: list[Any]) -> Response:
    """Return the file, or its JSON where Accept prefers that. Raises ValueError for NaN."""
    [file] = outputs
    others = file.model_dump(mode="json", exclude={*File.model_fields})
    headers = {f"X-Output-{name}": json.dumps(x, allow_nan=False) for name, x in others.items()}
    if quality(accept, "application/json") > quality(accept, file.content_type):
        return Response(file.model_dump_json(), media_type="application/json")
    if file.name:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(file.name, safe='')}"
    fixed = {"Content-Type": file.content_type, "X-Content-Type-Options": "nosniff"}
    return Response(file.data, headers=fixed | headers)


def quality(accept: str, content_type: str) -> float:
    """Return how much a client wants a content type, 0 to 1, by its Accept header."""
    items = [item.partition(";") for item in accept.lower().replace(" ", "").split(",")]
    weights = {kind: re.findall(r"q=([01]\.?\d*)", rest) or ["1"] for kind, _, rest in items}
    ranges = (content_type, f"{content_type.partition('/')[0]}/*", "*/*")
    return next((float(weights[kind][0]) for kind in ranges if kind in weights), 0)
