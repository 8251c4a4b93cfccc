"""The Open Inference Protocol: what small requests may inflate to, in memory and in time."""

import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from tests.support.clients import driver
from tests.support.live import Live
from tests.support.open_inference import INFER, binary, make, started, tensor
from tests.support.updating import put_model

pytestmark = pytest.mark.xdist_group("open-inference")

CALLS = 4
MOST_MB = 250  # beyond what the process had in use before
MB = 2**20
FULL = 20 * MB - 1000  # bytes that MAX_UPLOAD_MB allows, its JSON aside
HEALTH_SECONDS = 5  # generous: on an idle machine it is under half a second
TIGHT = {"MAX_BODIES_MB": "12"}

MODEL = """
from typing import Any

from pydantic import BaseModel, Field

from serving import Input

MODEL_NAME = "counter"


class Params(BaseModel):
    values: list[float] = []
    counts: list[int] = []
    name: str = ""
    names: list[str] = []
    matrix: list[list[float]] = []
    few: list[float] = Field(default=[], max_length=10)
    anything: Any = None


class Output(BaseModel):
    count: int


EXAMPLE: dict[str, Any] = {"values": [1.0]}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output(count=len(item.params.values)) for item in inputs]


"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service that counts what it is given."""
    project = make(tmp_path_factory.mktemp("memory") / "service", input_kind="json")
    put_model(project, MODEL)
    return project


@pytest.fixture(scope="module")
def service(project: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    """Return it, started with the variables that the test is marked with."""
    variables = getattr(request, "param", {})
    with started(project, project.with_name(f"log{len(variables)}"), **variables) as service:
        yield service
        assert "Traceback" not in service.log


def forget_peak(service: Live) -> float:
    """Have the kernel count the process's most memory anew, and return what it has in use now."""
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5", encoding="ascii")
    return peak_mb(service)


def peak_mb(service: Live) -> float:
    """Return the most memory that the service's process has had in use since."""
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@contextmanager
def watched(service: Live) -> Iterator[None]:
    """See that the service stays small, and alive, meanwhile."""
    over = Event()
    before = forget_peak(service)

    def ask() -> float:
        slowest = 0.0
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not over.is_set():
                start = time.monotonic()
                assert client.get("/health").status_code == 200
                slowest = max(slowest, time.monotonic() - start)
                time.sleep(0.02)
        return slowest

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
    grown = peak_mb(service) - before
    print(f"{grown:.0f} MB more, slowest /health {asked.result():.2f} s")
    assert grown < MOST_MB
    assert asked.result() < HEALTH_SECONDS


def crowd(service: Live, request: dict[str, Any], encoding: str = "gzip") -> list[httpx.Response]:
    """Send a request by many clients at once."""
    headers = {"Content-Encoding": encoding, **request.get("headers", {})}
    content = request["content"]
    content = gzip.compress(content) if encoding == "gzip" else zlib.compress(content)

    def send(_: int) -> httpx.Response:
        return httpx.post(service.url + INFER, content=content, headers=headers, timeout=60)

    with watched(service), ThreadPoolExecutor(CALLS) as pool:
        return list(pool.map(send, range(CALLS)))


def zeros(name: str, datatype: str, shape: list[int], size: int = FULL) -> dict[str, Any]:
    """Return a request with a tensor of zeros, in binary."""
    form = {"name": name, "datatype": datatype, "shape": shape}
    found: dict[str, Any] = binary([form | {"parameters": {"binary_data_size": size}}], bytes(size))
    return found


def listed(name: str, datatype: str, shape: list[int], element: str, count: int) -> dict[str, Any]:
    """Return a request with a tensor of equal elements, as JSON."""
    text = json.dumps({"inputs": [tensor(name, datatype, shape, [])]})
    data = element + f",{element}" * (count - 1)
    return {"content": text.replace('"data": []', f'"data": [{data}]').encode()}


def no_text() -> dict[str, Any]:
    """Return a request with a text that is none."""
    binary_request = zeros("name", "BYTES", [1])
    content = binary_request["content"][:-FULL] + struct.pack("<I", FULL - 4) + b"\xff" * (FULL - 4)
    return binary_request | {"content": content}


MOST = 20 * MB // 32
SOME = MOST - 100  # beside the commas of the request itself
WORDS = f"elements are too many, send {MOST} at most"
COMMAS = f"JSON may have {MOST} commas and {MOST // 4} opening brackets at most"
HALF, EIGHTH, FOURTH = FULL // 2, FULL // 8, FULL // 4
REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "halves": (zeros("values", "FP16", [HALF], HALF * 2), 413, WORDS),
    "doubles": (zeros("values", "FP64", [EIGHTH], EIGHTH * 8), 413, WORDS),
    "unsigned": (zeros("counts", "UINT64", [EIGHTH], EIGHTH * 8), 413, WORDS),
    "matrix": (zeros("matrix", "FP16", [HALF, 1], HALF * 2), 413, WORDS),
    "empty texts": (zeros("names", "BYTES", [FOURTH], FOURTH * 4), 413, WORDS),
    "more texts": (zeros("names", "BYTES", [5], FOURTH * 4), 400, "more than 5 elements"),
    "rows": (zeros("matrix", "FP16", [MOST, 1], MOST * 2), 413, "rows are too many"),
    "no text": (no_text(), 400, "an element is no UTF-8"),
    "as many": (zeros("values", "FP16", [MOST], MOST * 2), 200, ""),
    "as many doubles": (zeros("values", "FP64", [MOST], MOST * 8), 200, ""),
    "as many rows": (zeros("matrix", "FP16", [MOST // 4, 4], MOST * 2), 200, ""),
    "as many texts": (zeros("names", "BYTES", [MOST], MOST * 4), 200, ""),
    "a list": (listed("values", "FP64", [HALF - 100], "0", HALF - 100), 413, COMMAS),
    "a list of integers": (listed("counts", "INT64", [FOURTH], "-99", FOURTH), 413, COMMAS),
    "a long list": (listed("values", "FP64", [SOME], "0.123456789012", SOME), 200, ""),
    "a list of texts": (listed("names", "BYTES", [SOME], '"abcdef"', SOME), 200, ""),
    "lists": (listed("matrix", "FP64", [FOURTH, 0], "[]", FOURTH), 413, COMMAS),
    "a lie": (zeros("values", "FP64", [10**9], 8), 400, "does not fit the 1 elements"),
    "a lie of texts": (zeros("names", "BYTES", [10**9], 8), 400, "does not fit the 8 bytes"),
    "over its maximum": (zeros("few", "FP16", [MOST], MOST * 2), 400, "few: List should have"),
    "many inputs": (
        {
            "content": b'{"inputs":[%s{}]}'
            % (b'{"name":"a","shape":[1],"datatype":"BOOL"},' * 450_000)
        },
        413,
        COMMAS,
    ),
    "many small inputs": (
        {
            "content": b'{"inputs":[%s{}]}'
            % (b'{"name":"a","shape":[1],"datatype":"BOOL"},' * 80_000)
        },
        400,
        "at most 1000 items",
    ),
    "many parameters": (
        {
            "content": b'{"inputs":[],"parameters":{%s}}'
            % b",".join(b'"%d":0' % n for n in range(1_800_000))
        },
        413,
        COMMAS,
    ),
    "JSON in JSON": (
        listed("anything", "BYTES", [1], f'"[{"[]," * (FULL // 3 - 100)}0]"', 1),
        413,
        COMMAS,
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_inflated(service: Live, name: str) -> None:
    """Many requests that inflate are refused or answered, and take little memory."""
    request, status, words = REQUESTS[name]
    for response in crowd(service, request):
        assert response.status_code == status, response.text
        assert words in response.text
    assert service.client.get("/ready").status_code == 200


def test_deflated(service: Live) -> None:
    """Likewise with the other compression."""
    request, status, words = REQUESTS["halves"]
    for response in crowd(service, request, "deflate"):
        assert response.status_code == status, response.text
        assert words in response.text


@pytest.mark.parametrize("service", [TIGHT], indirect=True)
def test_inflated_bodies_count(service: Live) -> None:
    """What bodies inflate to counts for MAX_BODIES_MB; then there is room again."""
    request = zeros("values", "FP64", [MOST], MOST * 8)
    responses = crowd(service, request)
    assert {response.status_code for response in responses} == {200, 503}
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.json() == {"error": "Too many large requests are here."}
    assert refused.headers["Retry-After"] == "1"
    assert service.client.post(INFER, **request).status_code == 200
    assert service.client.post(INFER, **request).status_code == 200


def raw(name: str, datatype: str, shape: list[int], size: int = FULL) -> dict[str, Any]:
    """Return a tensor of zeros in a message's raw_input_contents."""
    return {"name": name, "datatype": datatype, "shape": shape, "raw": size}


def typed(name: str, datatype: str, count: int, field: str) -> dict[str, Any]:
    """Return a tensor of zeros in a message's field for its datatype."""
    return {"name": name, "datatype": datatype, "shape": [count], "contents": {field: count}}


FIELDS = f"A request may have {MOST} fields at most"
NUMBERS = f"A request may have {20 * MB // 4} whole numbers at most"
MESSAGES: dict[str, tuple[list[dict[str, Any]], int, str, str]] = {
    "halves": ([raw("values", "FP16", [HALF], HALF * 2)], 1, "RESOURCE_EXHAUSTED", WORDS),
    "unsigned": ([raw("counts", "UINT64", [EIGHTH], EIGHTH * 8)], 1, "RESOURCE_EXHAUSTED", WORDS),
    "texts": ([raw("names", "BYTES", [FOURTH], FOURTH * 4)], 1, "RESOURCE_EXHAUSTED", WORDS),
    "a lie": ([raw("values", "FP64", [10**9], 8)], 1, "INVALID_ARGUMENT", "does not fit"),
    "as many": ([raw("values", "FP64", [MOST], MOST * 8)], 1, "OK", ""),
    "integers": (
        [typed("counts", "INT64", FULL, "int64_contents")],
        1,
        "RESOURCE_EXHAUSTED",
        NUMBERS,
    ),
    "bytes": (
        [typed("names", "BYTES", MOST * 2, "bytes_contents")],
        1,
        "RESOURCE_EXHAUSTED",
        FIELDS,
    ),
    "doubles": ([typed("values", "FP64", MOST, "fp64_contents")], 1, "OK", ""),
    "many inputs": (
        [{"name": "", "datatype": "", "shape": []}],
        700_000,
        "RESOURCE_EXHAUSTED",
        FIELDS,
    ),
    "inputs": ([raw("values", "FP64", [0], 0)], 20_000, "INVALID_ARGUMENT", "send 1000 at most"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(service: Live, name: str) -> None:
    """The same over gRPC."""
    inputs, repeat, code, words = MESSAGES[name]
    with watched(service):
        address = f"127.0.0.1:{service.grpc_port}"
        outcomes = driver("bare_grpc")("crowd", address, inputs, CALLS, repeat=repeat)
    for outcome in outcomes:
        assert outcome["code"] == code, outcome
        assert words in outcome.get("words", "")


@pytest.mark.parametrize("service", [TIGHT], indirect=True)
def test_messages_count(service: Live) -> None:
    """What messages take counts for MAX_BODIES_MB."""
    address = f"127.0.0.1:{service.grpc_port}"
    message = [raw("values", "FP64", [MOST], MOST * 8)]
    outcomes = driver("bare_grpc")("crowd", address, message, CALLS)
    assert {outcome["code"] for outcome in outcomes} == {"OK", "UNAVAILABLE"}
    words = {outcome["words"] for outcome in outcomes if outcome["code"] != "OK"}
    assert words == {"Too many large requests are here."}
    [outcome] = driver("bare_grpc")("crowd", address, message, 1)
    assert outcome["code"] == "OK"
