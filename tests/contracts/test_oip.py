"""The Open Inference Protocol: independent clients, every datatype, and what is refused."""

import base64
import gzip
import json
import math
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis import Config

from tests.support.clients import address_of, check, driver
from tests.support.fuzzing import exchanges
from tests.support.live import Live, live, wait_for
from tests.support.open_inference import (
    EXTENSIONS,
    HEADER,
    INFER,
    MODEL,
    binary,
    make,
    started,
    tensor,
)
from tests.support.updating import put_model, python
from tests.support.variants import choices, table

# One worker has all of them, and so one process for each client.
pytestmark = pytest.mark.xdist_group("open-inference")

# A model that answers with what it is given.
MODEL_FILE = """
import math
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel

from serving import Input

MODEL_NAME = "echo"


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Nested(BaseModel):
    name: str
    children: "list[Nested]" = []


class Params(BaseModel):
    flag: bool = False
    flags: list[bool] = []
    count: int = 0
    counts: list[int] = []
    ratio: float = 0
    ratios: list[float] = []
    matrix: list[list[float]] = []
    name: str = ""
    names: list[str] = []
    table: list[list[str]] = []
    maybe: float | None = None
    level: Level = Level.LOW
    size: Literal[1, 2] = 1
    nested: Nested = Nested(name="a")
    several: list[Nested] = []
    pair: tuple[int, str] = (1, "a")
    anything: Any = None
    timeout: int = 0


class Output(Params):
    special: list[float] = [math.nan, math.inf, -math.inf, 1.5]
    uneven: list[list[int]] = [[1], [2, 3]]


EXAMPLE: dict[str, Any] = {"name": "Ada", "counts": [1, 2]}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output(**item.params.model_dump()) for item in inputs]
"""
# field, datatype, shape, elements
NUMBERS = [
    ("flag", "BOOL", [1], [True]),
    ("flags", "BOOL", [3], [True, False, True]),
    *(
        ("counts", f"INT{bits}", [2], [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
        for bits in (8, 16, 32, 64)
    ),
    *(("counts", f"UINT{bits}", [2], [0, 2**bits - 1]) for bits in (8, 16, 32)),
    ("counts", "UINT64", [2], [0, 2**63 - 1]),
    ("count", "INT16", [1], [-7]),
    ("ratios", "FP16", [3], [0.5, -65504.0, 6.103515625e-05]),
    ("ratios", "FP32", [2], [1.5, -3.0000000054977558e38]),
    ("ratios", "FP64", [2], [0.1, 1e300]),
    ("ratios", "INT8", [2], [1, -1]),
    ("ratio", "FP64", [1], [0.25]),
    ("matrix", "FP64", [2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ("maybe", "FP32", [1], [0.5]),
    ("size", "INT64", [1], [2]),
    ("timeout", "INT64", [1], [3]),
]
# field, shape, texts
TEXTS: list[tuple[str, list[int], list[str]]] = [
    ("name", [1], ["Zoë \U0001f600"]),
    ("names", [3], ["", "a\nb", "ß"]),
    ("names", [0], []),
    ("table", [2, 2], ["a", "b", "c", "d"]),
    ("level", [1], ["high"]),
    ("nested", [1], ['{"name":"a","children":[{"name":"b","children":[]}]}']),
    ("several", [2], ['{"name":"a","children":[]}', '{"name":"b","children":[]}']),
    ("pair", [1], ['[2,"b"]']),
    ("anything", [1], ['{"a":[1,null,"x"]}']),
]


@pytest.mark.parametrize("kind", choices("input_kind"))
def test_clients(kind: str, tmp_path: Path) -> None:
    """Triton's, KServe's and MLServer's clients get what the service's own route answers."""
    project = make(tmp_path / "service", input_kind=kind)
    with started(project, tmp_path / "log") as service:
        check(service, project)
        field = table("input_kinds")[kind]["field"]
        broken = {"name": field, "shape": [1], "datatype": "BYTES", "data": ["bm8gZmlsZQ=="]}
        text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a red picture"]}
        inputs = [broken, text] if kind == "multimodal" else [broken]
        response = service.client.post(INFER, json={"inputs": inputs})
        if kind == "file":  # which any bytes are
            response.raise_for_status()
        else:
            refused(response, 400)
    assert "Traceback" not in service.log


@pytest.mark.parametrize("answers", [{"features": ["isolation", "batching", "replicas"]}])
def test_clients_of_others(answers: dict[str, Any], tmp_path: Path) -> None:
    """Likewise where the model has a process of its own, and two servers share the port."""
    project = make(tmp_path / "service", input_kind="image-params", **answers)
    with started(project, tmp_path / "log", WORKERS="2", MAX_BATCH_DELAY_MS="5") as service:
        for words in ("Model loaded", "gRPC on port"):
            wait_for(lambda words=words: service.log.count(words) == 2, seconds=60)  # type: ignore[misc]
        check(service, project)
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("kind", "datatype", "shape", "variable"),
    [
        ("image", "UINT8", [2, 5, 3], "MAX_PIXELS"),
        ("video", "UINT8", [2, 5, 1, 3], "MAX_FRAMES"),
        ("audio", "FP32", [16_000], "MAX_AUDIO_SECONDS"),
    ],
)
def test_decoded_files(
    kind: str, datatype: str, shape: list[int], variable: str, tmp_path: Path
) -> None:
    """One alone needs no dimension for several; what the decoders refuse is refused here, too."""
    project = make(tmp_path / "service", input_kind=kind, contracts=["oip"])
    limit = {"image": "10", "video": "2", "audio": "1"}[kind]
    with live(project, python(), tmp_path / "log", **{variable: limit, "WARMUP": "0"}) as service:
        service.ready()
        name = service.client.get(MODEL).json()["inputs"][1]["name"]

        def post(shape: list[int], datatype: str = datatype, item: float = 0, **more: Any) -> Any:
            data = [item] * math.prod(shape)
            return infer(service, tensor(name, datatype, shape, data, **more))

        assert post(shape).status_code == 200
        longer = [shape[0] + 1, *shape[1:]]
        refused(post(longer), 400, limit)
        refused(post([0, *shape[1:]]), 400, f"send {datatype} ")
        refused(post([1, 1, *shape]), 400, f"send {datatype} ")
        refused(post(shape, "INT16"), 400, "not INT16")
        if kind == "video":
            assert post(shape, parameters={"fps": 5}).status_code == 200
            refused(post(shape, parameters={"fps": 0}), 400, "fps has to be a number above 0")
            refused(post(shape, parameters={"fps": "a"}), 400, "fps")
        if kind == "audio":
            body = binary_request(name, datatype, shape, struct.pack("<f", math.nan) * shape[0])
            refused(service.client.post(INFER, **body), 400, "not all finite")
            assert post(shape, "FP64").status_code == 200
        file = tensor("file", "BYTES", [1], ["YQ=="])
        one = tensor(name, datatype, shape, [0] * math.prod(shape))
        refused(infer(service, file, one), 400, f"Send either of file and {name}.")
        refused(infer(service), 400, f"Send either of file and {name}.")
        refused(infer(service, tensor("file", "BYTES", [1], ["no base64"])), 400, "no base64")
        refused(infer(service, tensor("file", "BYTES", [1], [""])), 400, "Empty upload.")
        refused(infer(service, tensor("file", "UINT8", [1], [1])), 400, "send BYTES, not UINT8")
        refused(infer(service, tensor("file", "BYTES", [0], [])), 400, "file: Field required")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return a service with fields of all types."""
    folder = tmp_path_factory.mktemp("echo")
    project = make(folder / "service", input_kind="json")
    put_model(project, MODEL_FILE)
    with started(project, folder / "log", MAX_UPLOAD_MB="1", LOG_LEVEL="WARNING") as service:
        yield service
        assert service.client.get("/ready").status_code == 200
        assert "Traceback" not in service.log


def refused(response: httpx.Response, status: int, words: str = "") -> None:
    """See that an answer is an error in the protocol's form, with these words."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]
    assert len(response.json()["error"]) <= 1000


def infer(service: Live, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    """Ask for inference with these tensors."""
    return service.client.post(INFER, json={"inputs": inputs, **more})


def flat_of(answer: dict[str, Any], name: str) -> Any:
    """Return the elements of an output."""
    return next(x["data"] for x in answer["outputs"] if x["name"] == name)


@pytest.mark.parametrize("protocol", ["json", "binary", "grpc", "kserve", "kserve-grpc"])
def test_numbers(echo: Live, protocol: str) -> None:
    """Every datatype arrives as what it is, extremes included; answers are exact in binary."""
    addresses = dict.fromkeys(("grpc", "kserve-grpc"), f"127.0.0.1:{echo.grpc_port}")
    address = addresses.get(protocol, address_of(echo))
    for name, datatype, shape, data in NUMBERS:
        inputs = [{"name": name, "datatype": datatype, "shape": shape, "data": data}]
        if protocol in ("json", "binary"):
            if (datatype, protocol) == ("FP16", "json"):
                continue  # the client refuses
            options: dict[str, Any] = {"binary": protocol == "binary"}
            options |= {"binary_output": options["binary"], "outputs": [name, "special"]}
            answer = driver("triton")("http", address, "my-model-server", inputs, **options)
        elif protocol == "grpc":
            options = {"outputs": [name, "special"]}
            answer = driver("triton")("grpc", address, "my-model-server", inputs, **options)
        else:
            options = {"grpc": protocol == "kserve-grpc", "outputs": [name, "special"]}
            answer = driver("of_kserve")("infer", address, "my-model-server", inputs, **options)
        given = flat_of(answer, name)
        wanted = [json.dumps(data[0])] if name == "maybe" else data
        assert given == wanted, (name, datatype)
        not_a_number, *others = flat_of(answer, "special")
        if protocol == "json":  # which has neither
            assert math.isnan(others[0])
        else:
            assert others == [math.inf, -math.inf, 1.5]
        assert math.isnan(not_a_number)


@pytest.mark.parametrize("protocol", ["json", "binary", "grpc"])
def test_texts(echo: Live, protocol: str) -> None:
    """Texts, lists of them, enums and whatever is JSON travel as BYTES."""
    grpc = protocol == "grpc"
    address = f"127.0.0.1:{echo.grpc_port}" if grpc else address_of(echo)
    for name, shape, texts in TEXTS:
        data = [base64.b64encode(text.encode()).decode() for text in texts]
        inputs = [{"name": name, "datatype": "BYTES", "shape": shape, "data": data}]
        options = {} if grpc else {"binary": protocol == "binary", "binary_output": not grpc}
        answer = driver("triton")(
            "grpc" if grpc else "http",
            address,
            "my-model-server",
            inputs,
            outputs=[name],
            **options,
        )
        assert flat_of(answer, name) == texts, name


def test_bfloat16(echo: Live) -> None:
    """BF16, which only gRPC's client sends, arrives exactly."""
    inputs = [{"name": "ratios", "datatype": "BF16", "shape": [3], "data": [1.5, -0.0078125, 3e38]}]
    address = f"127.0.0.1:{echo.grpc_port}"
    answer = driver("triton")("grpc", address, "my-model-server", inputs, outputs=["ratios"])
    assert flat_of(answer, "ratios") == pytest.approx([1.5, -0.0078125, 3e38], rel=1e-2)
    assert flat_of(answer, "ratios")[:2] == [1.5, -0.0078125]


def test_metadata(echo: Live) -> None:
    """It tells name, datatype and shape of each tensor, and which BYTES hold JSON."""
    metadata = echo.client.get(MODEL).json()
    forms = {form["name"]: form for form in metadata["inputs"]}
    assert forms["matrix"] == {"name": "matrix", "datatype": "FP64", "shape": [-1, -1]}
    assert forms["maybe"] == {"name": "maybe", "datatype": "FP64", "shape": [1]}
    assert forms["names"] == {"name": "names", "datatype": "BYTES", "shape": [-1]}
    as_json = {"content_type": "json"}
    several = {"name": "several", "datatype": "BYTES", "shape": [-1], "parameters": as_json}
    assert forms["several"] == several
    assert {form["name"] for form in metadata["outputs"]} == {*forms, "special", "uneven"}
    assert echo.client.get(f"{MODEL}/versions/1").json() == metadata
    assert echo.client.get("/v2/").json()["extensions"] == EXTENSIONS
    paths = echo.client.get("/openapi.json").json()["paths"]
    statuses = ["200", "400", "404", "408", "413", "415", "4XX", "500", "503", "504"]
    assert sorted(paths["/v2/models/{name}/infer"]["post"]["responses"]) == statuses


def test_fields_and_parameters(echo: Live) -> None:
    """What is no tensor may be a parameter; those of other servers are not in the way."""
    one = tensor("counts", "INT64", [1, 2], [[1, 2]])
    parameters = {"name": "Ada", "timeout": 5, "priority": 1, "sequence_id": 0}
    answer = infer(echo, one, parameters=parameters, id="").json()
    assert (answer["id"], flat_of(answer, "name"), flat_of(answer, "timeout")) == ("", ["Ada"], [5])
    # A batch of one is answered by one.
    assert next(x["shape"] for x in answer["outputs"] if x["name"] == "counts") == [1, 2]
    assert "id" not in infer(echo, tensor("counts", "INT64", [2], [1, 2])).json()
    base = {"content_type": "base64"}
    answer = infer(echo, tensor("name", "BYTES", [1], ["WsO2"], parameters=base)).json()
    assert flat_of(answer, "name") == ["Zö"]


def test_outputs(echo: Live) -> None:
    """Those that are asked for come, once each and in their order, some in binary."""
    one, as_json = tensor("count", "INT64", [1], [1]), {"content_type": "json"}
    wanted = [{"name": "name"}, {"name": "count", "parameters": {"binary_data": True}}]
    response = infer(echo, one, outputs=[*wanted, {"name": "name"}])
    size = int(response.headers[HEADER])
    answer = json.loads(response.content[:size])
    assert [x["name"] for x in answer["outputs"]] == ["name", "count"]
    assert answer["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert struct.unpack("<q", response.content[size:]) == (1,)
    assert response.headers["Content-Type"] == "application/octet-stream"
    uneven = infer(echo, one, outputs=[{"name": "uneven"}]).json()["outputs"]
    assert uneven == [tensor("uneven", "BYTES", [1], ["[[1],[2,3]]"], parameters=as_json)]
    both = {"parameters": {"binary_data_output": True}}
    not_in_binary = {"name": "name", "parameters": {"binary_data": False}}
    response = infer(echo, one, outputs=[not_in_binary, {"name": "count"}], **both)
    answer = json.loads(response.content[: int(response.headers[HEADER])])
    assert ["data" in x for x in answer["outputs"]] == [True, False]


BAD_TENSORS: list[tuple[dict[str, Any], str]] = [
    (tensor("nope", "INT64", [1], [1]), "There is no input 'nope'"),
    (tensor("n" * 100_000, "INT64", [1], [1]), "There is no input 'nnn"),
    (tensor("count", "INT64", [2], [1]), "the shape [2] does not fit the 1 elements"),
    (tensor("count", "INT64", [0], []), "send 1 to 10000 rows, not 0"),
    (tensor("count", "INT64", [1, 2], [1, 2]), "send the shape [1], not [1, 2]"),
    (tensor("count", "INT64", [10_001], [1] * 10_001), "send 1 to 10000 rows, not 10001"),
    (tensor("counts", "INT64", [1, 2, 1], [1, 2]), "send the shape [-1], not [1, 2, 1]"),
    (tensor("counts", "INT64", [0, 3], []), "send 1 to 10000 rows, not 0"),
    (tensor("matrix", "FP64", [1], [1]), "send the shape [-1, -1], not [1]"),
    (tensor("counts", "INT64", [-1], [1]), "greater than or equal to 0"),
    (tensor("counts", "INT64", [1.5], [1]), "shape.0"),
    (tensor("counts", "INT64", [1] * 33, [1]), "at most 32 items"),
    (tensor("counts", "INT64", [2**70], []), "does not fit"),
    (tensor("counts", "INT64", [2**62, 4], []), "does not fit"),
    (tensor("matrix", "FP64", [2**40, 0], []), "only its first dimension may be 0"),
    (tensor("matrix", "FP64", [2**62, 0], []), "does not fit"),
    (tensor("counts", "INT65", [1], [1]), "datatype"),
    (tensor("counts", "FP32", [1], [1.5]), "send INT64, not FP32"),
    (tensor("counts", "INT64", [1], [1.5]), "not all INT64"),
    (tensor("counts", "INT64", [1], [True]), "not all INT64"),
    (tensor("counts", "INT64", [1], ["1"]), "not all INT64"),
    (tensor("counts", "INT64", [1], [None]), "not all INT64"),
    (tensor("counts", "INT64", [1], None), "send its elements"),
    (tensor("counts", "INT64", [1], {"a": 1}), "send its elements"),
    (tensor("counts", "INT64", [2], [[1], 2]), "nested unevenly"),
    (tensor("counts", "INT8", [1], [128]), "beyond what INT8 holds"),
    (tensor("counts", "UINT8", [1], [-1]), "beyond what UINT8 holds"),
    (tensor("counts", "UINT64", [1], [2**63]), "beyond what INT64 holds"),
    (tensor("counts", "INT64", [1], [2**64]), "beyond what INT64 holds"),
    (tensor("counts", "INT64", [1], [10**400]), "beyond what INT64 holds"),
    (tensor("ratios", "FP32", [1], [1e39]), "beyond what FP32 holds"),
    (tensor("ratios", "FP16", [1], [10**400]), "beyond what FP16 holds"),
    (tensor("flag", "BOOL", [1], [1]), "not all BOOL"),
    (tensor("size", "INT64", [1], [3]), "size: Input should be 1 or 2"),
    (tensor("level", "BYTES", [1], ["middling"]), "level: Input should be 'low' or 'high'"),
    (tensor("nested", "BYTES", [1], ["{"]), "an element is no JSON"),
    (tensor("nested", "BYTES", [1], ["[" * 5000]), "an element is no JSON"),
    (tensor("anything", "BYTES", [1], ["1e"]), "an element is no JSON"),
    (tensor("nested", "BYTES", [1], ["[]"]), "nested: Input should be"),
    (tensor("name", "BYTES", [1], ["ß"], parameters={"content_type": "base64"}), "no base64"),
    (tensor("name", "BYTES", [1], ["a"], parameters={"binary_data_size": -1}), "no -1 bytes"),
    (tensor("name", "BYTES", [1], ["a"], parameters={"binary_data_size": "1"}), "no 1 bytes"),
    (tensor("name", "BYTES", [1], ["a"], parameters=7), "parameters"),
]


def test_bad_tensors(echo: Live) -> None:
    """Each is a 400 that says what is wrong."""
    for bad, words in BAD_TENSORS:
        refused(infer(echo, bad), 400, words)
    one = tensor("count", "INT64", [1], [1])
    refused(infer(echo, one, one), 400, "twice")
    refused(echo.client.post(INFER, json={}), 400, "inputs: Field required")
    refused(echo.client.post(INFER, json={"inputs": None}), 400, "inputs: Input should be")
    refused(infer(echo, one, outputs=[{"name": "nope"}]), 400, "There is no output 'nope'")
    refused(infer(echo, one, outputs="all"), 400, "outputs")
    refused(infer(echo, one, id=7), 400, "id")
    big = infer(echo, one, parameters={"count": 2**63})
    assert big.status_code == 200  # the tensor's value counts
    refused(infer(echo, tensor("flag", "BOOL", [1], [True]), parameters={"count": 2**63}), 400)


def binary_request(name: str, datatype: str, shape: list[int], data: bytes) -> Any:
    """Return a request with one tensor, which is binary."""
    parameters = {"binary_data_size": len(data)}
    form = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    return binary([form], data)


def test_bad_binary_data(echo: Live) -> None:
    """Bytes that are too few, too many, or not what they should be are a 400."""

    def one(size: int, datatype: str = "INT64", name: str = "counts") -> list[dict[str, Any]]:
        parameters = {"binary_data_size": size}
        return [{"name": name, "datatype": datatype, "shape": [1], "parameters": parameters}]

    post = echo.client.post
    assert post(INFER, **binary(one(8), bytes(8))).status_code == 200
    for request, words in [
        (binary(one(8), bytes(7)), "no 8 bytes of binary data are left"),
        (binary(one(8), bytes(9)), "1 bytes behind the JSON belong to no tensor"),
        (binary(one(7), bytes(7)), "7 bytes are no whole number of INT64"),
        (binary(one(16), bytes(16)), "does not fit the 2 elements"),
        (binary(one(2**70), bytes(8)), "binary data are left"),
        (binary(one(8), bytes(8), "9" * 5000), HEADER),
        (binary(one(8), bytes(8), "100000"), HEADER),
        (binary(one(8), bytes(8), "-1"), HEADER),
        (binary(one(8), bytes(8), "1_0"), HEADER),
        (binary(one(8), bytes(8), ""), HEADER),
        (binary(one(8), bytes(8), "3"), "JSON"),
        (binary(one(3, "BYTES", "name"), b"\x01\0\0"), "in the middle of an element"),
        (binary(one(5, "BYTES", "name"), b"\xff\xff\xff\xffa"), "in the middle of an element"),
        (binary(one(5, "BYTES", "name"), b"\x01\0\0\0\xff"), "no UTF-8"),
        (binary(one(5, "BYTES", "nested"), b"\x01\0\0\0\xff"), "no JSON"),
    ]:
        refused(post(INFER, **request), 400, words)
    assert post(INFER, **binary(one(1, "BOOL", "flag"), b"\x07")).status_code == 200


def test_bad_bodies(echo: Live) -> None:
    """What is no request, or hides more than may be sent, is refused in the protocol's form."""
    post = echo.client.post
    document = json.dumps({"inputs": [tensor("count", "INT64", [1], [1])]}).encode()
    packed = gzip.compress(document)
    refused(post(INFER), 400, "JSON")
    refused(post(INFER, content=b"[]"), 400, "object")
    refused(post(INFER, content=b'{"inputs": [{"name": "\xff"}]}'), 400, "JSON")
    refused(post(INFER, content=b"[" * 8_000), 400, "JSON")
    refused(post(INFER, content=b"[" * 100_000), 413, "8192 opening brackets at most")
    deep = b'{"inputs":[{"name":"counts","datatype":"INT64","shape":[1],"data":'
    refused(post(INFER, content=deep + b"[" * 150 + b"1.5" + b"]" * 150 + b"}]}"), 400, "INT64")
    refused(post(INFER, content=deep + b"[" * 5_000 + b"]" * 5_000 + b"}]}"), 400, "JSON")
    for encoding, content, status, words in [
        ("gzip", document, 400, "no gzip"),
        ("gzip", packed[:-4], 400, "ends too early"),
        ("deflate", b"", 400, "ends too early"),
        ("br", document, 415, "gzip or deflate"),
        ("gzip", gzip.compress(bytes(50_000_000)), 413, "too large"),
        ("gzip", gzip.compress(b"[" * 8_000), 400, "JSON"),
    ]:
        response = post(INFER, content=content, headers={"Content-Encoding": encoding})
        refused(response, status, words)
    for encoding, content in [
        ("gzip", packed),
        ("GZIP", packed),
        ("identity", document),
        ("deflate", zlib.compress(document)),
    ]:
        headers = {"Content-Encoding": encoding}
        assert post(INFER, content=content, headers=headers).status_code == 200
    refused(post(INFER, content=bytes(2_000_000)), 413)
    refused(post(INFER, content=iter([bytes(1_000_000)] * 2)), 413)


def test_unknown(echo: Live) -> None:
    """Another model or version is told in the protocol's form; a path that is none as ever."""
    get, post = echo.client.get, echo.client.post
    body = {"inputs": [tensor("count", "INT64", [1], [1])]}
    for path in (
        "/v2/models/x",
        "/v2/models/x/ready",
        f"{MODEL}/versions/2",
        f"{MODEL}/versions/2/ready",
    ):
        refused(get(path), 404, "unknown model: there is my-model-server, version 1")
    refused(post("/v2/models/x/infer", json=body), 404, "my-model-server")
    refused(post(f"{MODEL}/versions/2/infer", json=body), 404, "my-model-server")
    assert post(f"{MODEL}/versions/1/infer", json=body).status_code == 200
    refused(get(INFER), 405)
    nowhere = get("/v2/repository")
    assert (nowhere.status_code, [*nowhere.json()]) == (404, ["detail"])


def test_paths_of_others(tmp_path: Path) -> None:
    """A route whose name only begins like the protocol's keeps the service's own errors."""
    project = make(tmp_path / "service", input_kind="json", endpoint="v2-of-it", contracts=["oip"])
    with live(project, python(), tmp_path / "log") as service:
        assert service.ready().post("/v2-of-it", json={}).json()["detail"][0]["type"] == "missing"
        assert not (project / "serving" / "contracts" / "oip" / "grpc_server.py").exists()
        service.process.terminate()
        assert service.process.wait(30) == 0


STRANGE: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 2**64, 1e308, -0.0, "", "a", "\0", "\ud83d\ude00", [], {},
    [[]], [[], 1], {"a": {}}, "INT64", "BYTES", "FP16", "BF16", "BOOL", "counts",
    "matrix", "nested",
]  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON with one thing in it changed."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        key = chance.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        match chance.randrange(8):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, list):
                copy.append(copy[key])
            case _:
                copy[key] = changed(copy[key], chance)
        return copy
    return chance.choice(STRANGE)


def test_fuzz_http(echo: Live) -> None:
    """No request of these is the service's fault, whatever was changed in it."""
    chance = random.Random(7)  # noqa: S311
    statuses: set[int] = set()
    for number in range(400):
        named = chance.sample(NUMBERS, 2)
        inputs = [tensor(*fields) for fields in named]
        document: Any = {"id": "1", "inputs": inputs, "outputs": [{"name": "special"}]}
        behind = chance.randbytes(chance.randrange(40)) if number % 2 else b""
        if behind:
            inputs[0]["parameters"] = {"binary_data_size": len(behind)}
        for _ in range(chance.randrange(4)):
            document = changed(document, chance)
        head = json.dumps(document).encode()
        body = head + behind
        headers = {HEADER: str(len(head))} if behind else {}
        if chance.random() < 0.2:
            place = chance.randrange(len(body))
            body = body[:place] + chance.randbytes(3) + body[place + chance.randrange(6) :]
        if chance.random() < 0.2:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body)[: chance.choice([None, None, -3])]
        response = echo.client.post(INFER, content=body, headers=headers)
        statuses.add(response.status_code)
        assert response.status_code in {200, 400}, (document, response.text)
        if response.status_code == 400:
            assert list(response.json()) == ["error"]
    assert statuses == {200, 400}


def test_fuzz_grpc(echo: Live) -> None:
    """Nor is any message over gRPC."""
    chance = random.Random(7)  # noqa: S311
    grpc, address = driver("bare_grpc"), f"127.0.0.1:{echo.grpc_port}"
    contents = {
        "BOOL": "bool",
        "INT64": "int64",
        "UINT64": "uint64",
        "FP32": "fp32",
        "FP64": "fp64",
    }
    codes: set[str] = set()
    for _ in range(300):
        inputs, raw = [], []
        for name, datatype, shape, data in chance.sample(NUMBERS, chance.randrange(3)):
            field = contents.get(datatype, "uint" if datatype[0] == "U" else "int") + "_contents"
            item: dict[str, Any] = {"name": name, "datatype": datatype}
            item["shape"] = chance.choice([shape, shape, [], [0], [-1], [2**62, 4], [1] * 40])
            if datatype != "FP16" and chance.random() < 0.9:
                item["contents"] = {chance.choice([field, field, "bool_contents"]): data}
                if "bool_contents" in item["contents"]:
                    item["contents"] = {"bool_contents": [True]}
            if chance.random() < 0.1:
                item["datatype"] = chance.choice(["", "INT65", "BYTES", "FP16", "x" * 20_000])
            inputs.append(item)
            raw.append(base64.b64encode(chance.randbytes(chance.randrange(20))).decode())
        message: dict[str, Any] = {"model_name": "my-model-server", "inputs": inputs}
        if chance.random() < 0.4:
            message["raw_input_contents"] = raw[: chance.randrange(3)]
        codes.add(grpc("infer", address, message)["code"])
        codes.add(grpc("send", address, base64.b64encode(chance.randbytes(9)).decode())["code"])
    assert "OK" in codes
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert "Error " not in echo.log


def test_described(echo: Live) -> None:
    """Schemathesis finds nothing that the protocol's description does not allow."""
    document = json.loads(Path(__file__).with_name("open_inference.json").read_text("utf-8"))
    config: dict[str, Any] = {
        "generation": {"deterministic": True, "database": "none", "max-examples": 20},
        "cache": {"enabled": False},
        "continue-on-failure": True,
        "phases": {"stateful": {"enabled": False}},
        "checks": {
            # The description is of any model: only this one knows its tensors.
            "positive_data_acceptance": {"enabled": False},
        },
    }
    schema = schemathesis.openapi.from_dict(document, config=Config.from_dict(config))
    schema.config.update(base_url=echo.url)
    asked = {(case.path, response.status_code) for case, response in exchanges(schema)}
    assert {path for path, status in asked if status == 200} == set(document["paths"])
    assert (INFER.replace("my-model-server", "{model}"), 400) in asked
