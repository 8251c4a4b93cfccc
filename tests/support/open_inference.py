"""Services with the Open Inference Protocol, and parts of requests to them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.updating import python

MODEL = "/v2/models/my-model-server"
INFER = f"{MODEL}/infer"
HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]


def make(folder: Path, **answers: Any) -> Path:
    """Render a service that needs no framework."""
    axes = {"model_type": "custom", "accelerator": "cpu", "contracts": ["oip-grpc"]}
    return render(folder, axes | answers)


@contextmanager
def started(project: Path, log: Path, **env: str) -> Iterator[Live]:
    """Run a service, and wait until it answers in both protocols."""

    def is_open() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", service.grpc_port), timeout=5).close()
            return True
        return False

    with live(project, python(), log, **env) as service:
        service.ready()
        wait_for(is_open, seconds=60, complaint=lambda: service.log)
        yield service


def tensor(name: str, datatype: str, shape: list[Any], data: Any, **more: Any) -> dict[str, Any]:
    """Return a tensor of a request."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data} | more


def binary(inputs: list[dict[str, Any]], behind: bytes, length: str | None = None) -> Any:
    """Return a request with these bytes behind its JSON."""
    head = json.dumps({"inputs": inputs}).encode()
    length = str(len(head)) if length is None else length
    return {"content": head + behind, "headers": {HEADER: length}}
