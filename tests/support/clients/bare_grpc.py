"""Makes calls over gRPC that no client makes: broken, cut off, left open."""

import base64
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from lines import serve
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"
PATIENCE_SECONDS = 180

pool = ThreadPoolExecutor(32)
numbers = count()
begun: dict[int, Any] = {}
seen: dict[int, list[str]] = {}
channels: dict[str, grpc.Channel] = {}


def channel_to(address: str) -> grpc.Channel:
    """Return the one channel to an address."""
    if address not in channels:
        channels[address] = grpc.insecure_channel(address)
    return channels[address]


def ask(address: str, body: bytes, seconds: float = PATIENCE_SECONDS) -> Any:
    """Begin a call with the bytes of a message."""
    method = channel_to(address).unary_unary(METHOD)
    return method.future(body, timeout=seconds)


def outcome(call: Any) -> dict[str, Any]:
    """Return how a call ended."""
    try:
        body = call.result()
    except grpc.RpcError as error:
        return {"code": error.code().name, "words": error.details()}
    except grpc.FutureCancelledError:
        return {"code": "CANCELLED", "words": ""}
    message = service_pb2.ModelInferResponse.FromString(body)
    return {"code": "OK", "message": MessageToDict(message, preserving_proto_field_name=True)}


def infer(address: str, message: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Send a message, and return how the call ended."""
    body = ParseDict(message, service_pb2.ModelInferRequest()).SerializeToString()
    return outcome(ask(address, body, **options))


def send(address: str, body: str) -> dict[str, Any]:
    """Send these bytes, which are in base64, and return how the call ended."""
    return outcome(ask(address, base64.b64decode(body)))


def crowd(
    address: str, inputs: list[dict[str, Any]], calls: int, *, repeat: int = 1
) -> list[dict[str, Any]]:
    """Make calls at once, compressed, with tensors of zeros, and return how each ended.

    A tensor has so many bytes in `raw`, or so many elements in `contents`.
    """
    message = service_pb2.ModelInferRequest(model_name="my-model-server")
    for item in inputs * repeat:
        form = {key: item[key] for key in ("name", "datatype", "shape")}
        tensor = message.inputs.add(**form)
        if "raw" in item:
            message.raw_input_contents.append(bytes(item["raw"]))
        for name, size in item.get("contents", {}).items():
            zero = b"" if name == "bytes_contents" else 0
            getattr(tensor.contents, name).extend([zero] * size)
    body = message.SerializeToString()
    method = channel_to(address).unary_unary(METHOD)
    options = {"timeout": PATIENCE_SECONDS, "compression": grpc.Compression.Gzip}
    return [outcome(call) for call in [method.future(body, **options) for _ in range(calls)]]


def begin(address: str, message: dict[str, Any], **options: Any) -> int:
    """Send a message, and return the number of the call."""
    body = ParseDict(message, service_pb2.ModelInferRequest()).SerializeToString()
    number = next(numbers)
    begun[number] = ask(address, body, **options)
    return number


def cancel(number: int) -> None:
    """Cancel a call."""
    begun[number].cancel()


def end(number: int) -> dict[str, Any]:
    """Wait until a call has ended, and return how."""
    return outcome(begun.pop(number))


def health(address: str, service: str = "") -> dict[str, Any]:
    """Return what the health service says of a service."""
    stub = health_pb2_grpc.HealthStub(channel_to(address))
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = stub.Check(request, timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        return {"code": error.code().name, "words": error.details()}
    statuses = health_pb2.HealthCheckResponse.ServingStatus
    return {"code": "OK", "status": statuses.Name(answer.status)}


def watch(address: str, service: str = "") -> int:
    """Begin to watch the health, and return the number of the call."""
    number = next(numbers)
    seen[number] = []
    stub = health_pb2_grpc.HealthStub(channel_to(address))
    updates = stub.Watch(health_pb2.HealthCheckRequest(service=service))

    def listen() -> None:
        try:
            for update in updates:
                name = health_pb2.HealthCheckResponse.ServingStatus.Name(update.status)
                seen[number].append(name)
            seen[number].append("end")
        except grpc.RpcError as error:
            seen[number].append(error.code().name)

    pool.submit(listen)
    return number


def watched(number: int) -> list[str]:
    """Return what was seen so far."""
    return seen[number]


def services(address: str) -> list[str]:
    """Return the services that reflection lists."""
    return sorted(ProtoReflectionDescriptorDatabase(channel_to(address)).get_services())


if __name__ == "__main__":
    orders = [infer, send, crowd, begin, cancel, end, health, watch, watched, services]
    serve({order.__name__: order for order in orders})
