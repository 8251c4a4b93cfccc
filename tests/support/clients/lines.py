"""The frame of each driver: orders come in as lines of JSON, and so do the results go out.

A driver runs in its client's own environment and stays there, as most clients take seconds to
import. It shares nothing with the service or with the tests but the lines.
"""

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

DTYPES = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
DTYPES |= {f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)}
DTYPES |= {f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)}


def array(tensor: dict[str, Any]) -> np.ndarray:
    """Return a tensor's elements: `raw` is base64 of them all, `data` a list."""
    if tensor["datatype"] == "BYTES":
        items = np.empty(len(tensor["data"]), object)
        items[:] = [base64.b64decode(text) for text in tensor["data"]]
    elif tensor["datatype"] == "BF16":
        import ml_dtypes

        items = np.array(tensor["data"], ml_dtypes.bfloat16)
    elif "raw" in tensor:
        items = np.frombuffer(base64.b64decode(tensor["raw"]), DTYPES[tensor["datatype"]])
    else:
        items = np.array(tensor["data"], DTYPES[tensor["datatype"]])
    return items.reshape(tensor["shape"])


def plain(name: str, datatype: str, elements: np.ndarray) -> dict[str, Any]:
    """Return a tensor of an answer as a line can have it; BYTES that are no text are escaped."""
    flat = elements.ravel().tolist()
    if datatype == "BYTES":
        escaped = "surrogateescape"
        flat = [x.decode(errors=escaped) if isinstance(x, bytes) else x for x in flat]
    return {"name": name, "datatype": datatype, "shape": list(elements.shape), "data": flat}


def serve(orders: dict[str, Callable[..., Any]]) -> None:
    """Follow orders, [name, arguments, options] each, until there are none left."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a client prints
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        try:
            result = {"result": orders[name](*arguments, **options)}
        except Exception as error:  # noqa: BLE001 -- for the test to judge
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=results, flush=True)
