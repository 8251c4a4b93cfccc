"""Drives tritonclient, over HTTP and over gRPC."""

import asyncio
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as aio_grpc
import tritonclient.http as over_http
import tritonclient.http.aio as aio_http
from lines import array, plain, serve
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException


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


# The calls of Triton's own examples (src/python/examples), for their model "simple": it adds and
# subtracts. What an example insists on is what the test compares with.
ONE = np.array([[1, 2, 3]], np.int32)
OTHER = np.array([[2, 3, 4]], np.int32)


def numbers(module: Any, **options: Any) -> list[Any]:
    """Return the two inputs of the model; the first is JSON where there is a choice."""
    inputs = []
    for place, values in enumerate((ONE, OTHER)):
        item = module.InferInput(f"INPUT{place}", [1, 3], "INT32")
        binary = {"binary_data": bool(place)} if options else {}
        inputs.append(item.set_data_from_numpy(values, **binary))
    return inputs


def results(answers: list[Any]) -> dict[str, list[Any]]:
    """Return what the model has made of them, each time."""
    names = {"sums": "OUTPUT0", "differences": "OUTPUT1"}
    return {key: [x.as_numpy(name)[0].tolist() for x in answers] for key, name in names.items()}


def message_of(function: Any, *arguments: Any, **options: Any) -> str:
    """Return what a call is refused with."""
    try:
        function(*arguments, **options)
    except InferenceServerException as error:
        return str(error.message())
    return "not refused"


def about_simple(client: Any, **options: Any) -> dict[str, Any]:
    """Return what the health and metadata examples ask."""
    config = client.get_model_config("simple", **options)
    config = config.get("config", config)
    kinds = {x["name"]: x["data_type"] for x in config["input"] + config["output"]}
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("simple"),
        "server": client.get_server_metadata(**options)["name"],
        "model": client.get_model_metadata("simple", **options)["name"],
        "unknown": message_of(client.get_model_metadata, "wrong_model_name"),
        "config": {
            "INPUT0": kinds["INPUT0"],
            "OUTPUT1": kinds["OUTPUT1"],
            "max_batch_size": config.get("max_batch_size", 0),
        },
    }


def examples_http(address: str) -> dict[str, Any]:
    """Return what the examples over HTTP see."""
    wanted = [
        over_http.InferRequestedOutput("OUTPUT0", binary_data=True),
        over_http.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]
    inputs = numbers(over_http, binary=True)
    query = {"query_params": {"test_1": 1, "test_2": 2}}
    with over_http.InferenceServerClient(address, concurrency=2) as client:
        found = about_simple(client)
        answers = [
            client.infer("simple", inputs, outputs=wanted, **query),
            client.infer("simple", inputs),
            client.infer(
                "simple",
                inputs,
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            ),
            client.async_infer("simple", inputs, outputs=wanted).get_result(),
            asyncio.run(infer_aio(aio_http, address, inputs)),
        ]
        found["index"] = client.get_model_repository_index()
        stats = [client.get_inference_statistics(name) for name in ("simple", "")]
        found["model_stats"] = [len(x["model_stats"]) for x in stats]
    return found | results(answers)


async def infer_aio(module: Any, address: str, inputs: list[Any]) -> Any:
    """Return what the client for asyncio is answered."""
    async with module.InferenceServerClient(address) as client:
        return await client.infer("simple", inputs)


def examples_grpc(address: str) -> dict[str, Any]:
    """Return what the examples over gRPC see."""
    inputs = numbers(over_grpc)
    with over_grpc.InferenceServerClient(address) as client:
        found = about_simple(client, as_json=True)
        waiting: SimpleQueue[Any] = SimpleQueue()
        client.async_infer("simple", inputs, lambda result, error: waiting.put(result or error))
        wanted = [over_grpc.InferRequestedOutput(f"OUTPUT{place}") for place in (0, 1)]
        answers = [
            client.infer("simple", inputs, outputs=wanted, client_timeout=10),
            client.infer("simple", inputs, headers={"test": "1"}, compression_algorithm="gzip"),
            waiting.get(timeout=10),
            asyncio.run(infer_aio(aio_grpc, address, inputs)),
        ]
        index = client.get_model_repository_index().models
        found["index"] = [[x.name, x.version, x.state] for x in index]
        stats = [client.get_inference_statistics(name) for name in ("simple", "")]
        found["model_stats"] = [len(x.model_stats) for x in stats]
    return found | results(answers) | explicit_contents(address)


def explicit_contents(address: str) -> dict[str, Any]:
    """Return what the examples with contents of their own datatypes see, and who asks for those."""
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="simple")
        for place, values in enumerate((ONE, OTHER)):
            item = request.inputs.add(name=f"INPUT{place}", datatype="INT32", shape=[1, 3])
            item.contents.int_contents[:] = values[0].tolist()
        request.outputs.add(name="OUTPUT0")
        raw = stub.ModelInfer(request)
        request.parameters["binary_data_output"].bool_param = False
        typed = stub.ModelInfer(request)
        request.outputs.add(name="half")
        told = {}
        try:
            stub.ModelInfer(request)
        except grpc.RpcError as error:
            told = {"no_typed": error.details()}
        codes = []
        for call, message in [
            (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            (stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest()),
            (stub.LogSettings, service_pb2.LogSettingsRequest()),
            (lambda each: next(stub.ModelStreamInfer(iter([each]))), request),
        ]:
            try:
                call(message)
            except grpc.RpcError as error:
                codes.append(str(error.code()) if error.details() else "no words")
    values = np.frombuffer(raw.raw_output_contents[0], np.int32).tolist()
    return told | {
        "explicit": [raw.outputs[0].datatype, values],
        "typed": list(typed.outputs[0].contents.int_contents),
        "absent": codes,
    }


if __name__ == "__main__":
    serve(
        {
            "about": about,
            "http": infer_http,
            "grpc": infer_grpc,
            "examples_http": examples_http,
            "examples_grpc": examples_grpc,
        }
    )
