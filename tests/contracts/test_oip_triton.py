"""The Open Inference Protocol: what clients of Triton, MLServer and KServe ask beside inference.

And how they ask: in rows, by codecs, with the datatypes and names that a model declares.
"""

import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.clients import address_of, driver
from tests.support.live import Live
from tests.support.open_inference import binary, make, started, tensor
from tests.support.updating import put_model

pytestmark = pytest.mark.xdist_group("open-inference")

MODEL = "/v2/models/simple"
INFER = f"{MODEL}/infer"
# Adds and subtracts as the model of Triton's examples does, and gives back what else it gets.
MODEL_FILE = """
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving import BadInput, Input
from serving.contracts.oip import AsTensor

MODEL_NAME = "simple"

Numbers = Annotated[list[int], AsTensor("INT32")]


class Params(BaseModel):
    INPUT0: Numbers = []
    INPUT1: Numbers = []
    scores: Annotated[list[float], AsTensor("FP32", name="input.0")] = []
    pixels: Annotated[list[list[int]], AsTensor("UINT8")] = []
    half: Annotated[float, AsTensor("FP16")] = 0
    label: str = Field("", alias="class")
    names: list[str] = []
    weight: float = 1


class Output(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)

    OUTPUT0: Numbers
    OUTPUT1: Numbers
    scores: Annotated[list[float], AsTensor("FP32", name="output.0")]
    pixels: Annotated[list[list[int]], AsTensor("UINT8")]
    half: Annotated[float, AsTensor("FP16")]
    bfloat: Annotated[float, AsTensor("BF16")]
    unknown: Annotated[float | None, AsTensor("FP32")] = None
    label: str = Field(alias="class")
    names: list[str]
    weight: float
    together: Annotated[int, AsTensor("INT16")]


EXAMPLE: dict[str, Any] = {"INPUT0": [1, 2], "INPUT1": [3, 4]}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [self.answer(item.params, len(inputs)) for item in inputs]

    def answer(self, params: Params, together: int) -> Output:
        pairs = list(zip(params.INPUT0, params.INPUT1, strict=False))
        given = params.model_dump(exclude={"INPUT0", "INPUT1"})
        return Output(
            OUTPUT0=[one + other for one, other in pairs],
            OUTPUT1=[one - other for one, other in pairs],
            bfloat=params.half,
            together=together,
            **given,
        )
"""
ABSENT = [
    "GET /v2/systemsharedmemory/status",
    "GET /v2/systemsharedmemory/region/a/status",
    "POST /v2/systemsharedmemory/region/a/register",
    "POST /v2/systemsharedmemory/unregister",
    "GET /v2/cudasharedmemory/status",
    "POST /v2/cudasharedmemory/region/a/register",
    "POST /v2/cudasharedmemory/region/a/unregister",
    "POST /v2/repository/models/simple/load",
    "POST /v2/repository/models/simple/unload",
    "GET /v2/trace/setting",
    "POST /v2/models/simple/trace/setting",
    "GET /v2/logging",
    "POST /v2/logging",
    "POST /v2/models/simple/generate",
    "POST /v2/models/simple/versions/1/generate_stream",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return a service that is called as Triton's examples want it."""
    folder = tmp_path_factory.mktemp("triton")
    project = make(folder / "service", input_kind="json", features=["batching"])
    put_model(project, MODEL_FILE)
    names = {"OIP_MODEL_NAME": "simple", "OIP_SERVER_NAME": "triton", "OIP_MODEL_VERSION": "7"}
    with started(project, folder / "log", **names, MAX_UPLOAD_MB="1") as service:
        yield service
        assert "Traceback" not in service.log


def infer(service: Live, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    """Ask for inference with these tensors."""
    return service.client.post(INFER, json={"inputs": inputs, **more})


def outputs_of(response: httpx.Response) -> dict[str, tuple[str, list[int], Any]]:
    """Return datatype, shape and elements of each output."""
    answer = response.raise_for_status().json()
    return {x["name"]: (x["datatype"], x["shape"], x["data"]) for x in answer["outputs"]}


def refused(response: httpx.Response, words: str, status: int = 400) -> None:
    """See that an answer is an error in the protocol's form, with these words."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_examples_over_http(service: Live) -> None:
    """The calls of Triton's examples: health, metadata, infer, async, aio, statistics."""
    found = driver("triton")("examples_http", address_of(service))
    assert found == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "server": "triton",
        "model": "simple",
        "unknown": "Request for unknown model: there is simple, version 7.",
        "config": {"INPUT0": "TYPE_INT32", "OUTPUT1": "TYPE_INT32", "max_batch_size": 0},
        "index": [{"name": "simple", "version": "7", "state": "READY", "reason": ""}],
        "model_stats": [1, 1],
        "sums": [[3, 5, 7]] * 5,
        "differences": [[-1, -1, -1]] * 5,
    }


def test_examples_over_grpc(service: Live) -> None:
    """Likewise over gRPC, and with contents of their own datatypes, which are answered raw."""
    found = driver("triton")("examples_grpc", f"127.0.0.1:{service.grpc_port}")
    assert found == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "server": "triton",
        "model": "simple",
        "unknown": "Request for unknown model: there is simple, version 7.",
        "config": {"INPUT0": "TYPE_INT32", "OUTPUT1": "TYPE_INT32", "max_batch_size": 0},
        "index": [["simple", "7", "READY"]],
        "model_stats": [1, 1],
        "sums": [[3, 5, 7]] * 4,
        "differences": [[-1, -1, -1]] * 4,
        "explicit": ["INT32", [3, 5, 7]],
        "typed": [3, 5, 7],
        "no_typed": "The output 'half' can only be had in raw_output_contents.",
        "absent": ["StatusCode.UNIMPLEMENTED"] * 4,
    }


def test_statistics(service: Live) -> None:
    """They count inputs, calls of the model and failures, and say where the time went."""

    def read(path: str = f"{MODEL}/stats") -> dict[str, Any]:
        [found] = service.client.get(path).raise_for_status().json()["model_stats"]
        assert isinstance(found, dict)
        return found

    before = read()
    one = tensor("INPUT0", "INT32", [3, 1], [1, 2, 3])
    assert infer(service, one).status_code == 200
    refused(infer(service, tensor("nothing", "INT32", [1], [1])), "There is no input")
    after = read("/v2/models/stats")
    assert read(f"{MODEL}/versions/7/stats") == after
    assert (after["name"], after["version"]) == ("simple", "7")
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] == before["execution_count"] + 1
    assert after["last_inference"] > 1.7e12
    old, new = before["inference_stats"], after["inference_stats"]
    grown = {name: new[name]["count"] - old[name]["count"] for name in new}
    steps = ("queue", "compute_input", "compute_infer", "compute_output")
    assert grown == dict.fromkeys(new, 0) | dict.fromkeys(("success", "fail", *steps), 1)
    times = {name: new[name]["ns"] - old[name]["ns"] for name in new}
    assert all(times[name] > 0 for name in steps)
    assert sum(times[name] for name in steps) < times["success"]
    refused(service.client.get("/v2/models/x/stats"), "unknown model", 404)
    refused(service.client.get(f"{MODEL}/versions/1/config"), "unknown model", 404)


def test_index(service: Live) -> None:
    """KServe lists names; Triton's index has states."""
    client = service.client
    assert client.get("/v2/models").json() == {"models": ["simple"]}
    for content in ("", "{}", '{"ready": true}'):
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v2/repository/index", content=content, headers=headers)
        [found] = answer.raise_for_status().json()
        assert found["state"] == "READY"
    refused(client.post("/v2/repository/index", json={"ready": "soon"}), "ready")
    assert client.get("/v2").json()["name"] == "triton"


@pytest.mark.parametrize("call", ABSENT)
def test_absent(service: Live, call: str) -> None:
    """An extension that there is not says so in the protocol's form."""
    method, path = call.split()
    refused(service.client.request(method, path), "There is no ")


def test_absent_parameters(service: Live) -> None:
    """So do parameters that would need one."""
    one = tensor("INPUT0", "INT32", [1], [1])
    shared = {"parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 4}}
    refused(infer(service, {**one, **shared}), "no shared memory here")
    refused(infer(service, one, outputs=[{"name": "OUTPUT0", **shared}]), "no shared memory here")
    classes = [{"name": "OUTPUT0", "parameters": {"classification": 3}}]
    refused(infer(service, one, outputs=classes), "without classification")
    for number in (7, "a"):
        refused(infer(service, one, parameters={"sequence_id": number}), "no sequences here")


def test_rows(service: Live) -> None:
    """N rows are N inputs, of one call; what has no rows is the same for all of them."""
    rows = tensor("INPUT0", "INT32", [3, 2], [[1, 2], [3, 4], [5, 6]])
    more = tensor("INPUT1", "INT32", [3, 2], [[10, 10], [20, 20], [30, 30]])
    weights = tensor("weight", "FP64", [3, 1], [0.5, 1.5, 2.5])
    names = tensor("names", "BYTES", [2], ["a", "b"])
    found = outputs_of(infer(service, rows, more, weights, names, parameters={"class": "x"}))
    assert found["OUTPUT0"] == ("INT32", [3, 2], [11, 12, 23, 24, 35, 36])
    assert found["weight"] == ("FP64", [3], [0.5, 1.5, 2.5])
    assert found["names"] == ("BYTES", [3, 2], ["a", "b"] * 3)
    assert found["class"] == ("BYTES", [3], ["x"] * 3)
    assert found["together"][2] == [3] * 3
    found = outputs_of(infer(service, tensor("weight", "FP64", [2], [2, 3])))
    assert found["weight"] == ("FP64", [2], [2.0, 3.0])
    assert found["OUTPUT0"] == ("INT32", [2, 0], [])
    pixels = tensor("pixels", "UINT8", [2, 1, 3], [1, 2, 3, 4, 5, 6])
    assert outputs_of(infer(service, pixels))["pixels"][1:] == ([2, 1, 3], [1, 2, 3, 4, 5, 6])
    one = tensor("INPUT1", "INT32", [2, 2], [1] * 4)
    refused(infer(service, rows, one), "as many rows of each input; not INPUT0 3, INPUT1 2")
    names = tensor("names", "BYTES", [20_000], ["a"] * 20_000)
    many = tensor("weight", "FP64", [100], [1.0] * 100)
    refused(infer(service, names, many), "100 rows with the other fields are too many", 413)


def test_empty_matrices(service: Live) -> None:
    """A matrix of no rows is one, in JSON and in binary."""
    form = {"name": "pixels", "datatype": "UINT8", "shape": [0, 3]}
    assert outputs_of(infer(service, {**form, "data": []}))["pixels"][1:] == ([0, 0], [])
    request = binary([{**form, "parameters": {"binary_data_size": 0}}], b"")
    assert outputs_of(service.client.post(INFER, **request))["pixels"][1:] == ([0, 0], [])
    form["shape"] = [1, 0, 3]
    assert outputs_of(infer(service, {**form, "data": []}))["pixels"][1:] == ([1, 0, 0], [])
    one = tensor("INPUT0", "INT32", [0], [])
    assert outputs_of(infer(service, one))["OUTPUT0"][1:] == ([0], [])


def test_declared(service: Live) -> None:
    """Datatypes and names are as declared, in metadata, requests and answers."""
    metadata = service.client.get(MODEL).json()
    told = {x["name"]: (x["datatype"], x.get("parameters")) for x in metadata["inputs"]}
    assert told["input.0"] == ("FP32", {"field": "scores"})
    assert told["pixels"] == ("UINT8", None)
    assert told["class"] == ("BYTES", None)
    told = {x["name"]: (x["datatype"], x.get("parameters")) for x in metadata["outputs"]}
    assert told["output.0"] == ("FP32", {"field": "scores"})
    assert (told["half"][0], told["bfloat"][0], told["together"][0]) == ("FP16", "BF16", "INT16")
    assert (told["unknown"][0], told["class"][0]) == ("FP32", "BYTES")
    inputs = [tensor("input.0", "FP32", [2], [0.5, 1.5]), tensor("half", "FP16", [1], [1.5])]
    inputs += [tensor("class", "BYTES", [1], ["dog"]), tensor("pixels", "INT64", [1, 2], [0, 255])]
    found = outputs_of(infer(service, *inputs))
    assert found["output.0"] == ("FP32", [2], [0.5, 1.5])
    assert found["pixels"] == ("UINT8", [1, 2], [0, 255])
    assert found["class"] == ("BYTES", [1], ["dog"])
    assert found["unknown"] == ("FP32", [1], [None])
    names = ("output.0", "pixels", "half", "bfloat", "unknown", "together")
    parameters = {"binary_data_output": True}
    wanted = [{"name": name} for name in names]
    response = infer(service, *inputs, outputs=wanted, parameters=parameters)
    behind = response.content[int(response.headers["Inference-Header-Content-Length"]) :]
    expected = struct.pack("<2f2Be", 0.5, 1.5, 0, 255, 1.5) + struct.pack("<f", 1.5)[2:]
    assert behind[: len(expected)] == expected
    assert behind[len(expected) :] == struct.pack("<fh", float("nan"), 1)
    # A field's own name does as a parameter.
    assert outputs_of(infer(service, parameters={"scores": [2.5]}))["output.0"][2] == [2.5]


@pytest.mark.parametrize(
    ("name", "datatype", "data", "words"),
    [
        ("pixels", "INT64", [[256]], "beyond what UINT8 holds"),
        ("pixels", "INT8", [[-1]], "beyond what UINT8 holds"),
        ("pixels", "FP32", [[1.0]], "send UINT8, not FP32"),
        ("INPUT0", "INT64", [2**31], "beyond what INT32 holds"),
        ("half", "FP64", [70_000.0], "'half' would hold more than FP16 can"),
        ("scores", "FP32", [1.0], "There is no input 'scores': send INPUT0, INPUT1, input.0"),
        ("label", "BYTES", ["a"], "There is no input 'label'"),
    ],
)
def test_beyond_what_is_declared(
    service: Live, name: str, datatype: str, data: list[Any], words: str
) -> None:
    """What does not fit is refused, and never cut."""
    shape = [1, 1] if isinstance(data[0], list) else [1]
    refused(infer(service, tensor(name, datatype, shape, data)), words)


def test_sum_beyond_what_is_declared(service: Live) -> None:
    """Nor is what the model makes of it."""
    most = tensor("INPUT0", "INT32", [1], [2**31 - 1])
    refused(infer(service, most, {**most, "name": "INPUT1"}), "hold more than INT32 can")


def test_codecs(service: Live) -> None:
    """MLServer's codecs, nulls included: lists are columns, and a table's rows are inputs."""
    ask = driver("of_mlserver")
    url = service.url + INFER
    lists = {"INPUT0": [1, 2, 3], "INPUT1": [1, 1, 1], "names": ["a", "b", "c"]}
    assert ask("codecs", url, lists) == {
        "OUTPUT0": [2, 3, 4],
        "OUTPUT1": [0, 1, 2],
        "names": ["a", "b", "c"],
        "together": [1],
    }
    table = {"weight": [0.5, 1.5], "class": ["cat", "dog"]}
    assert ask("table", url, table) == {**table, "together": [2, 2]}
    assert ask("codecs", url, {"names": ["ä", "b"]}, in_base64=True)["names"] == ["ä", "b"]


def test_nulls(service: Live) -> None:
    """What is optional may be null."""
    one = {**tensor("INPUT0", "INT32", [1], [1]), "parameters": None}
    nothing = {"id": None, "parameters": None, "outputs": None}
    assert "id" not in infer(service, one, **nothing).raise_for_status().json()
    wanted = [{"name": "weight", "parameters": None}]
    assert list(outputs_of(infer(service, one, outputs=wanted))) == ["weight"]
    parameters = {"content_type": None, "headers": None, "sequence_id": None}
    assert infer(service, one, parameters=parameters).status_code == 200


def test_members(service: Live) -> None:
    """A gzip body may have several members, and zeros behind them; none is lost."""
    document = json.dumps({"inputs": [tensor("INPUT0", "INT32", [2], [1, 2])]}).encode()
    two = gzip.compress(document[:20]) + gzip.compress(document[20:])
    for body in (two, gzip.compress(b"") + two + bytes(9)):
        answer = service.client.post(INFER, content=body, headers={"Content-Encoding": "gzip"})
        assert answer.json() == infer(service, tensor("INPUT0", "INT32", [2], [1, 2])).json()
    for body, words in [
        (two[:-3], "ends too early"),
        (two + b"more", "no gzip"),
        (gzip.compress(document) + gzip.compress(b"more"), "Invalid JSON"),
    ]:
        headers = {"Content-Encoding": "gzip"}
        refused(service.client.post(INFER, content=body, headers=headers), words)
    half = gzip.compress(bytes(600_000))
    headers = {"Content-Encoding": "gzip"}
    refused(service.client.post(INFER, content=half * 2, headers=headers), "too large", 413)
