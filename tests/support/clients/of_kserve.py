"""Drives the two clients of KServe's SDK, for HTTP and for gRPC."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import kserve
import kubernetes.client
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from lines import array, plain, serve

# Without TLS there is nothing to verify; the certificates alone would take 0.1 s for each client.
CONFIG = RESTConfig(protocol="v2", verify=False)


def request(
    model: str,
    inputs: list[dict[str, Any]],
    *,
    binary: bool,
    id: str | None,  # noqa: A002 -- the protocol's name
    parameters: dict[str, Any] | None,
    outputs: list[str],
) -> InferRequest:
    """Return the client's own form of a request."""
    given = []
    for tensor in inputs:
        item = InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        item.set_data_from_numpy(array(tensor), binary_data=binary)
        given.append(item)
    wanted = [RequestedOutput(name, {"binary_data": binary}) for name in outputs]
    return InferRequest(model, given, id, parameters=parameters, request_outputs=wanted or None)


def infer(
    address: str,
    model: str,
    inputs: list[dict[str, Any]],
    *,
    grpc: bool = False,
    binary: bool = True,
    id: str | None = None,  # noqa: A002 -- the protocol's name
    parameters: dict[str, Any] | None = None,
    outputs: list[str] | None = None,
) -> dict[str, Any]:
    """Ask for inference."""

    async def ask() -> Any:
        asked = request(
            model, inputs, binary=binary, id=id, parameters=parameters, outputs=outputs or []
        )
        if grpc:
            async with InferenceGRPCClient(address) as client:
                return await client.infer(asked)
        async with InferenceRESTClient(CONFIG) as client:
            return await client.infer(f"http://{address}", asked, model_name=model)

    answer = asyncio.run(ask())
    return {
        "id": answer.id,
        "outputs": [plain(x.name, x.datatype, x.as_numpy()) for x in answer.outputs],
    }


def about(address: str, model: str, *, grpc: bool) -> dict[str, bool]:
    """Return all that the client can ask beside inference."""

    async def ask() -> dict[str, bool]:
        client: Any
        if grpc:
            async with InferenceGRPCClient(address) as client:
                return {
                    "live": await client.is_server_live(),
                    "ready": await client.is_server_ready(),
                    "model_ready": await client.is_model_ready(model),
                }
        async with InferenceRESTClient(CONFIG) as client:
            url = f"http://{address}"
            return {
                "live": await client.is_server_live(url),
                "ready": await client.is_server_ready(url),
                "model_ready": await client.is_model_ready(url, model),
            }

    return asyncio.run(ask())


def unknown(document: dict[str, Any]) -> list[str]:
    """Return the keys of an InferenceService that its models, and Kubernetes', do not have."""
    return list(find_unknown(document, "V1beta1InferenceService", ""))


def find_unknown(value: Any, kind: str, path: str) -> Iterator[str]:
    """Yield what is wrong in a value of a kind as OpenAPI Generator names it."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for number, item in enumerate(value):
            yield from find_unknown(item, inner[1], f"{path}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for key, item in value.items():
            yield from find_unknown(item, inner[1], f"{path}.{key}")
    elif model := getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None):
        names = {key: name for name, key in model.attribute_map.items()}
        for key, item in value.items():
            where = f"{path}.{key}".removeprefix(".")
            if key in names:
                yield from find_unknown(item, model.openapi_types[names[key]], where)
            else:
                yield f"{where}: no key of {kind}"


if __name__ == "__main__":
    serve({"about": about, "infer": infer, "unknown": unknown})
