"""Drives tritonclient, over HTTP and over gRPC."""

from typing import Any

import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from lines import array, plain, serve


def about(address: str, model: str, *, grpc: bool) -> dict[str, Any]:
    """Return all that the client can ask beside inference."""
    with (over_grpc if grpc else over_http).InferenceServerClient(address) as client:
        options: dict[str, Any] = {"as_json": True} if grpc else {}
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready(model, "1"),
            "server": client.get_server_metadata(**options),
            "model": client.get_model_metadata(model, **options),
        }


def infer_http(
    address: str,
    model: str,
    inputs: list[dict[str, Any]],
    *,
    binary: bool = True,
    binary_output: bool | None = None,
    outputs: list[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Ask for inference; where `binary_output` is None no outputs are named."""
    given = []
    for tensor in inputs:
        item = over_http.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        given.append(item.set_data_from_numpy(array(tensor), binary_data=binary))
    wanted = None
    if binary_output is not None:
        wanted = [
            over_http.InferRequestedOutput(name, binary_data=binary_output)
            for name in outputs or []
        ]
    with over_http.InferenceServerClient(address) as client:
        answer = client.infer(model, given, outputs=wanted, **options)
    head = answer.get_response()
    found = [plain(x["name"], x["datatype"], answer.as_numpy(x["name"])) for x in head["outputs"]]
    return {
        "id": head.get("id"),
        "outputs": found,
        "binary": ["binary_data_size" in x.get("parameters", {}) for x in head["outputs"]],
    }


def infer_grpc(
    address: str,
    model: str,
    inputs: list[dict[str, Any]],
    *,
    outputs: list[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Ask for inference."""
    given = []
    for tensor in inputs:
        item = over_grpc.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        item.set_data_from_numpy(array(tensor))
        given.append(item)
    wanted = [over_grpc.InferRequestedOutput(name) for name in outputs] if outputs else None
    with over_grpc.InferenceServerClient(address) as client:
        answer = client.infer(model, given, outputs=wanted, **options)
    head = answer.get_response()
    return {
        "id": head.id,
        "outputs": [plain(x.name, x.datatype, answer.as_numpy(x.name)) for x in head.outputs],
    }


if __name__ == "__main__":
    serve({"about": about, "http": infer_http, "grpc": infer_grpc})
