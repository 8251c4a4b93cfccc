"""Several answers that are files, as one archive."""

import json
from collections.abc import Callable
from io import BytesIO
from mimetypes import guess_extension
from typing import Any
from zipfile import ZipFile

from fastapi import Response

from serving.outputs import quality

ZIP = "application/zip"
# What the OpenAPI document says of it, beside the JSON.
DESCRIPTION: dict[int | str, dict[str, Any]] = {
    200: {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}
}


def encode_archive(
    encode: Callable[[list[Any]], bytes], accept: str, outputs: list[Any]
) -> Response:
    """Return the files as JSON, or as an archive where Accept prefers that.

    There they are numbered, 1.png or 1-NAME, and outputs.json has their other fields in the same
    order. Raises ValueError for NaN and infinity.
    """
    if quality(accept, ZIP) <= quality(accept, "application/json"):
        return Response(encode(outputs), media_type="application/json")
    rows = [file.model_dump(mode="json", exclude={"data"}) for file in outputs]
    with ZipFile(buffer := BytesIO(), "w") as archive:
        for number, file in enumerate(outputs, start=1):
            end = f"-{file.name}" if file.name else guess_extension(file.content_type) or ""
            archive.writestr(f"{number}{end}", file.data)
        archive.writestr("outputs.json", json.dumps({"outputs": rows}, allow_nan=False))
    headers = {"Content-Disposition": 'attachment; filename="outputs.zip"'}
    return Response(buffer.getvalue(), headers=headers, media_type=ZIP)
