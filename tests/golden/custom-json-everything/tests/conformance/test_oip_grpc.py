"""MS-64: the Open Inference Protocol over gRPC, asked of a process that the tests have started."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from conformance.fake_model import NUMBER
from conformance.plugin import PATIENCE_SECONDS, Launcher, Service
from conformance.samples import Samples
from conformance.test_conformance import (
    HELD,
    ask_together,
    assert_tells_nothing,
    failing,
    is_alike,
)
from conformance.test_oip import (
    describe,
    expect,
    is_base64,
    make_question,
    nested,
    pack,
    unpack,
)

SERVICE = "inference.GRPCInferenceService"
# What an HTTP client shows of itself, it shows over gRPC, too.
CREDENTIALS = ("authorization", "x-api-key")


class Client:
    """Speaks the protocol with one service."""

    def __init__(self, service: Service, messages: Any, services: Any) -> None:
        """Take what the protocol's messages are made of, too."""
        if service.grpc_port is None:
            pytest.skip("the port of the deployment's gRPC is not known")
        self.messages = messages
        self.channel = grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}")
        self.stub = services.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        headers = service.client.headers
        self.metadata = [(name, headers[name]) for name in CREDENTIALS if name in headers]

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method, which waits until the server is there."""
        request = getattr(self.messages, f"{method}Request")(**fields)
        options = {"timeout": PATIENCE_SECONDS, "wait_for_ready": True, "metadata": self.metadata}
        return getattr(self.stub, method)(request, **options)

    def status(self, method: str, **fields: Any) -> Any:
        """Return the status with which a method refuses."""
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, **fields)
        return refused.value.code()

    def serves(self) -> bool:
        """Tell whether the health is SERVING."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = self.health.Check(request, timeout=PATIENCE_SECONDS, wait_for_ready=True)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture(scope="module")
def protocol() -> tuple[Any, Any]:
    """Return the protocol's messages and services."""
    messages, services = grpc.protos_and_services("serving/contracts/oip/open_inference.proto")
    return messages, services


@pytest.fixture(scope="module")
def client(service: Service, protocol: tuple[Any, Any]) -> Iterator[Client]:
    """Return a client for the service."""
    client = Client(service, *protocol)
    yield client
    client.channel.close()


@pytest.fixture(scope="module")
def metadata(service: Service) -> dict[str, Any]:
    """Return what the service tells of its model over HTTP."""
    return describe(service)


@pytest.fixture(scope="module")
def question(metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return EXAMPLE as the fields of a message."""
    return make_message(metadata, samples)


def make_message(metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return the valid request as the fields of a message."""
    found = make_question(metadata, samples)
    inputs, raw = [], []
    for tensor in found["inputs"]:
        raw.append(pack(tensor, in_base64=bool(samples.field)))
        del tensor["data"]
        inputs.append(tensor)
    parameters = {name: {choice(x): x} for name, x in found["parameters"].items() if choice(x)}
    message = {"model_name": metadata["name"], "inputs": inputs, "parameters": parameters}
    return message | {"raw_input_contents": raw}


def choice(value: Any) -> str:
    """Return the field of a parameter that takes a value; none takes lists or objects."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return kinds.get(type(value), "")


def test_ms_64_same_answer(
    client: Client,
    service: Service,
    metadata: dict[str, Any],
    question: dict[str, Any],
    samples: Samples,
) -> None:
    """EXAMPLE as tensors is answered as it is at the service's own route."""
    answer = client.call("ModelInfer", id="of a test", **question)
    assert (answer.model_name, answer.id) == (metadata["name"], "of a test")
    outputs = {}
    encoded = {form["name"] for form in metadata["outputs"] if is_base64(form)}
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        flat = list(unpack(tensor.datatype, raw, in_base64=tensor.name in encoded))
        parameters = {name: value.string_param for name, value in tensor.parameters.items()}
        outputs[tensor.name] = nested({"shape": tensor.shape, "parameters": parameters}, flat)
    assert is_alike(outputs, expect(service, metadata, samples))


def test_ms_64_metadata(client: Client, service: Service, metadata: dict[str, Any]) -> None:
    """Server and model describe themselves as they do over HTTP."""
    model = client.call("ModelMetadata", name=metadata["name"])
    for column in ("inputs", "outputs"):
        told = [(x.name, x.datatype, list(x.shape)) for x in getattr(model, column)]
        assert told == [(x["name"], x["datatype"], x["shape"]) for x in metadata[column]]
    assert client.call("ServerMetadata").name == service.client.get("/v2").json()["name"]
    config = client.call("ModelConfig", name=metadata["name"]).config
    assert [x.name for x in config.input] == [x["name"] for x in metadata["inputs"]]
    [stats] = client.call("ModelStatistics").model_stats
    [index] = client.call("RepositoryIndex").models
    assert stats.name == index.name == metadata["name"]
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    assert client.call("ModelReady", name=metadata["name"]).ready


def test_ms_64_refused(client: Client, metadata: dict[str, Any], question: dict[str, Any]) -> None:
    """What cannot be answered has a status of gRPC's that says so."""
    wrong = {"name": metadata["inputs"][0]["name"], "datatype": "NUMBER", "shape": [1]}
    other = question | {"model_name": "no-such"}
    assert client.status("ModelInfer", **other) == grpc.StatusCode.NOT_FOUND
    assert client.status("ModelReady", name="no-such") == grpc.StatusCode.NOT_FOUND
    bad = question | {"inputs": [wrong]}
    assert client.status("ModelInfer", **bad) == grpc.StatusCode.INVALID_ARGUMENT


def test_ms_64_health_and_reflection(client: Client) -> None:
    """The service is listed, and its health is known to probes and load balancers."""
    assert SERVICE in ProtoReflectionDescriptorDatabase(client.channel).get_services()
    assert client.serves()


def test_ms_64_not_ready(
    launcher: Launcher,
    protocol: tuple[Any, Any],
    metadata: dict[str, Any],
    question: dict[str, Any],
) -> None:
    """Until the model is loaded nothing is served; SIGTERM ends the server cleanly."""
    loading = launcher.start_fake("{}", load=HELD)
    client = Client(loading, *protocol)
    assert not client.serves()
    assert not client.call("ServerReady").ready
    assert not client.call("ModelReady", name=metadata["name"]).ready
    assert client.call("ServerLive").live
    assert client.status("ModelInfer", **question) == grpc.StatusCode.UNAVAILABLE
    watch = client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert loading.stop() == 0


@pytest.fixture(scope="module")
def numbering_client(numbering: Service, protocol: tuple[Any, Any]) -> Iterator[Client]:
    """Return a client for the service whose model answers with the number of the request."""
    client = Client(numbering, *protocol)
    yield client
    client.channel.close()


def test_ms_68_over_grpc(numbering: Service, numbering_client: Client, samples: Samples) -> None:
    """Calls that wait together get each its own tensors."""
    metadata = describe(numbering)

    def ask_one(number: int) -> set[int]:
        message = make_message(metadata, replace(samples, valid=samples.numbered(number)))
        answer = numbering_client.call("ModelInfer", **message)
        place = [tensor.name for tensor in answer.outputs].index(NUMBER)
        return set(unpack("INT64", answer.raw_output_contents[place]))

    assert ask_together(numbering, samples, ask_one) == [{number} for number in range(1, 9)]


def test_ms_70_over_grpc(
    numbering: Service, numbering_client: Client, question: dict[str, Any]
) -> None:
    """What the model fails with is not in a status."""
    for _ in failing(numbering):
        with pytest.raises(grpc.RpcError) as failed:
            numbering_client.call("ModelInfer", **question)
        assert_tells_nothing(f"{failed.value.details()}{failed.value.trailing_metadata()}")
