"""MS-63: the Open Inference Protocol over HTTP, asked of a live process."""

import base64
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import httpx
import pytest

from conformance.fake_model import NUMBER
from conformance.plugin import Launcher, Service
from conformance.samples import Samples
from conformance.test_conformance import (
    HELD,
    ask,
    ask_together,
    assert_tells_nothing,
    failing,
    is_alike,
)

HEADER = "Inference-Header-Content-Length"
# As `struct` has them; of BF16 there is the upper half of a FP32.
FORMATS = {"BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B"}
FORMATS |= {"UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d"}


@pytest.fixture(scope="module")
def metadata(service: Service) -> dict[str, Any]:
    """Return what the service tells of its model."""
    return describe(service)


@pytest.fixture(scope="module")
def question(metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return EXAMPLE in the protocol's words."""
    return make_question(metadata, samples)


@pytest.fixture(scope="module")
def expected(service: Service, metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return the outputs that the service's own route gives for EXAMPLE."""
    return expect(service, metadata, samples)


def describe(service: Service) -> dict[str, Any]:
    """Return what a service tells of its model."""
    [name] = service.client.get("/v2/models").raise_for_status().json()["models"]
    found: dict[str, Any] = service.client.get(f"/v2/models/{name}").raise_for_status().json()
    return found


def make_question(metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return EXAMPLE in the protocol's words: tensors, and parameters for what makes none."""
    if samples.field:
        files = [base64.b64encode(file).decode() for _, (_, file, _) in samples.valid["files"]]
        form = {"name": samples.field, "datatype": "BYTES", "shape": [len(files)], "data": files}
        return {"inputs": [form], "parameters": samples.valid["data"]}
    document = dict(samples.valid["json"])
    inputs = []
    for form in metadata["inputs"]:
        value = document.get(field_of(form))
        if value is not None and (tensor := make_tensor(form, value)):
            inputs.append(tensor)
            del document[field_of(form)]
    return {"inputs": inputs, "parameters": document}


def field_of(form: dict[str, Any]) -> str:
    """Return the name that a tensor's field has at the service's own route."""
    return str(form.get("parameters", {}).get("field", form["name"]))


def is_json(form: dict[str, Any]) -> bool:
    """Tell whether a tensor's elements hold JSON."""
    return bool(form.get("parameters", {}).get("content_type") == "json")


def is_base64(form: dict[str, Any]) -> bool:
    """Tell whether a tensor's elements are base64 in JSON."""
    return bool(form.get("parameters", {}).get("content_type") == "base64")


def make_tensor(form: dict[str, Any], value: Any) -> dict[str, Any] | None:
    """Return a field's tensor; None where its lists differ in length."""
    shape: list[int] = []
    flat: list[Any] = [[value]] if form["shape"] == [1] else [value]
    for _ in form["shape"]:
        sizes = {len(row) for row in flat} or {0}
        if len(sizes) > 1:
            return None
        shape += sizes
        flat = list(chain.from_iterable(flat))
    if is_json(form):
        flat = [json.dumps(item) for item in flat]
    return {"name": form["name"], "datatype": form["datatype"], "shape": shape, "data": flat}


def expect(service: Service, metadata: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Return each output as the service's own route has it: lists in lists."""
    answer = ask(service, samples.valid).raise_for_status().json()
    rows = answer["outputs"] if samples.several else [answer]
    values: dict[str, Any] = {}
    for form in metadata["outputs"]:
        values[form["name"]] = [pick(row, form) for row in rows]
        if not samples.field and form["shape"] != [1]:
            [values[form["name"]]] = values[form["name"]]
    return values


def pick(row: dict[str, Any], form: dict[str, Any]) -> Any:
    """Return a tensor's value in an answer of the own route; a file is several tensors."""
    name = field_of(form)
    if name in row:
        return row[name]
    name, _, part = name.partition(".")
    value = row[name]
    return [file[part] for file in value] if isinstance(value, list) else value[part]


def nested(form: dict[str, Any], flat: list[Any]) -> Any:
    """Return a tensor's elements as lists in lists."""
    rows = [json.loads(item) for item in flat] if is_json(form) else list(map(as_json, flat))
    for size in reversed(form["shape"][1:]):
        rows = [rows[start : start + size] for start in range(0, len(rows), size or 1)]
    return rows


def as_json(element: Any) -> Any:
    """Return an element as JSON has it, where NaN is null."""
    return None if isinstance(element, float) and math.isnan(element) else element


def outputs_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of an answer in JSON, by their names."""
    return {tensor["name"]: nested(tensor, tensor["data"]) for tensor in answer["outputs"]}


def pack(tensor: dict[str, Any], *, in_base64: bool) -> bytes:
    """Return a tensor's elements in binary."""
    if tensor["datatype"] == "BF16":
        singles = struct.pack(f"<{len(tensor['data'])}f", *tensor["data"])
        return b"".join(singles[at + 2 : at + 4] for at in range(0, len(singles), 4))
    if tensor["datatype"] != "BYTES":
        return struct.pack(f"<{len(tensor['data'])}{FORMATS[tensor['datatype']]}", *tensor["data"])
    items = [base64.b64decode(x) if in_base64 else x.encode() for x in tensor["data"]]
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def unpack(datatype: str, data: bytes, *, in_base64: bool = False) -> Iterator[Any]:
    """Yield the elements that are there in binary, as JSON has them."""
    if datatype == "BF16":
        halves = struct.iter_unpack("<H", data)
        data, datatype = b"".join(struct.pack("<HH", 0, half) for (half,) in halves), "FP32"
    if datatype != "BYTES":
        yield from (item for (item,) in struct.iter_unpack(f"<{FORMATS[datatype]}", data))
        return
    while data:
        end = 4 + struct.unpack_from("<I", data)[0]
        yield base64.b64encode(data[4:end]).decode() if in_base64 else data[4:end].decode()
        data = data[end:]


def error(response: httpx.Response) -> str:
    """Return what an error says; it says nothing else."""
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


def test_ms_63_same_answer(
    service: Service,
    metadata: dict[str, Any],
    question: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """EXAMPLE as tensors is answered as it is at the service's own route."""
    name, version = metadata["name"], metadata["versions"][0]
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
        response = service.client.post(f"{path}/infer", json=question | {"id": "of a test"})
        answer = response.raise_for_status().json()
        assert (answer["model_name"], answer["id"]) == (name, "of a test")
        assert is_alike(outputs_of(answer), expected)


def test_ms_63_requested_outputs(
    service: Service, metadata: dict[str, Any], question: dict[str, Any]
) -> None:
    """Of the outputs those come that are asked for; there are no others."""
    url, name = f"/v2/models/{metadata['name']}/infer", metadata["outputs"][-1]["name"]
    response = service.client.post(url, json=question | {"outputs": [{"name": name}]})
    assert [tensor["name"] for tensor in response.raise_for_status().json()["outputs"]] == [name]
    response = service.client.post(url, json=question | {"outputs": [{"name": "no-such"}]})
    assert response.status_code == 400
    assert "'no-such'" in error(response)


def test_ms_63_binary(
    service: Service,
    metadata: dict[str, Any],
    question: dict[str, Any],
    expected: dict[str, Any],
    samples: Samples,
) -> None:
    """So it is with binary data both ways."""
    head: dict[str, Any] = {"inputs": []}
    head["parameters"] = question["parameters"] | {"binary_data_output": True}
    behind = b""
    for tensor in question["inputs"]:
        packed = pack(tensor, in_base64=bool(samples.field))
        form = {name: tensor[name] for name in ("name", "datatype", "shape")}
        head["inputs"].append(form | {"parameters": {"binary_data_size": len(packed)}})
        behind += packed
    start = json.dumps(head).encode()
    response = service.client.post(
        f"/v2/models/{metadata['name']}/infer",
        content=start + behind,
        headers={HEADER: str(len(start))},
    )
    end = int(response.raise_for_status().headers[HEADER])
    answer = json.loads(response.content[:end])
    encoded = {form["name"] for form in metadata["outputs"] if is_base64(form)}
    for tensor in answer["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        data = response.content[end : end + size]
        in_base64 = tensor["name"] in encoded
        tensor["data"] = list(unpack(tensor["datatype"], data, in_base64=in_base64))
        end += size
    assert is_alike(outputs_of(answer), expected)


def test_ms_63_refused(
    service: Service, metadata: dict[str, Any], question: dict[str, Any]
) -> None:
    """What cannot be answered is refused in the protocol's own form."""
    url = f"/v2/models/{metadata['name']}/infer"
    wrong = {"name": metadata["inputs"][0]["name"], "shape": [2], "data": [1]}
    datatype = metadata["inputs"][0]["datatype"]
    for status, answer in [
        (404, service.client.get("/v2/models/no-such")),
        (404, service.client.post("/v2/models/no-such/infer", json=question)),
        (404, service.client.get(f"/v2/models/{metadata['name']}/versions/no-such/ready")),
        (400, service.client.post(url, content=b'{"')),
        (400, service.client.post(url, json={})),
        (400, service.client.post(url, json={"inputs": [wrong | {"datatype": "NUMBER"}]})),
        (400, service.client.post(url, json={"inputs": [wrong | {"datatype": datatype}]})),
        (400, service.client.post(url, content=b"{}", headers={HEADER: "9"})),
        (400, service.client.post(url, content=b"{}", headers={"Content-Encoding": "gzip"})),
    ]:
        assert answer.status_code == status, answer.text
        assert error(answer)


def test_ms_63_metadata(service: Service, metadata: dict[str, Any]) -> None:
    """Server and model describe themselves, and say that they are ready."""
    assert "binary_tensor_data" in service.client.get("/v2").json()["extensions"]
    assert metadata["inputs"]
    assert metadata["outputs"]
    assert service.client.get("/v2/health/live").json() == {"live": True}
    assert service.client.get("/v2/health/ready").json() == {"ready": True}
    ready = service.client.get(f"/v2/models/{metadata['name']}/ready")
    assert ready.json() == {"name": metadata["name"], "ready": True}


def test_ms_63_asked_by_triton(
    service: Service, metadata: dict[str, Any], question: dict[str, Any]
) -> None:
    """Triton's clients get configuration and statistics of the model, and the index of models."""
    path = f"/v2/models/{metadata['name']}"

    def count() -> int:
        [stats] = service.client.get(f"{path}/stats").raise_for_status().json()["model_stats"]
        return int(stats["inference_stats"]["success"]["count"])

    config = service.client.get(f"{path}/config").raise_for_status().json()
    assert [x["name"] for x in config["input"]] == [x["name"] for x in metadata["inputs"]]
    assert [x["dims"] for x in config["output"]] == [x["shape"] for x in metadata["outputs"]]
    [index] = service.client.post("/v2/repository/index").raise_for_status().json()
    assert (index["name"], index["state"]) == (metadata["name"], "READY")
    before = count()
    service.client.post(f"{path}/infer", json=question).raise_for_status()
    assert service.process is None or count() > before  # a deployment may have replicas
    for extension in ("systemsharedmemory/status", "logging"):
        assert error(service.client.get(f"/v2/{extension}"))


def test_ms_63_not_ready(
    launcher: Launcher, metadata: dict[str, Any], question: dict[str, Any]
) -> None:
    """Until the model is loaded the server lives, and all else is 503."""
    loading = launcher.start_fake("{}", load=HELD)
    loading.wait_until("/v2/health/live", 200)
    path = f"/v2/models/{metadata['name']}"
    for answer in (
        loading.client.get("/v2/health/ready"),
        loading.client.get(f"{path}/ready"),
        loading.client.post(f"{path}/infer", json=question),
    ):
        assert answer.status_code == 503
        assert error(answer) == "Model not loaded yet."
    assert loading.client.get(path).json() == metadata
    loading.kill()


def test_ms_68_over_oip(numbering: Service, samples: Samples) -> None:
    """Requests that wait together get each its own tensors."""
    metadata = describe(numbering)
    url = f"/v2/models/{metadata['name']}/infer"

    def ask_one(number: int) -> set[int]:
        question = make_question(metadata, replace(samples, valid=samples.numbered(number)))
        answer = numbering.client.post(url, json=question).raise_for_status().json()
        return set(outputs_of(answer)[NUMBER])

    assert ask_together(numbering, samples, ask_one) == [{number} for number in range(1, 9)]


def test_ms_70_over_oip(
    numbering: Service, metadata: dict[str, Any], question: dict[str, Any]
) -> None:
    """What the model fails with is not in the protocol's errors."""
    for _ in failing(numbering):
        answer = numbering.client.post(f"/v2/models/{metadata['name']}/infer", json=question)
        assert answer.is_server_error
        assert_tells_nothing(error(answer))
