"""Asks a live service in the Open Inference Protocol, by clients that others have written.

Each client is driven in an environment of its own, by a process that stays for the whole run: most
take seconds to import, and then answer within milliseconds.
"""

import atexit
import base64
import json
import math
import subprocess
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from tests.support.environments import run, tool
from tests.support.live import Live
from tests.support.open_inference import EXTENSIONS
from tests.support.updating import answers_of
from tests.support.variants import example_of, table

HERE = Path(__file__).parent
REQUIREMENTS = {
    "triton": ["tritonclient[http,grpc]>=2.73,<3", "ml-dtypes>=0.5,<1"],
    "of_kserve": ["kserve>=0.21,<0.22"],
    "of_mlserver": ["mlserver>=1.7.1,<2"],
    "bare_grpc": [
        "tritonclient[grpc]>=2.73,<3",
        "grpcio-health-checking>=1.75,<2",
        "grpcio-reflection>=1.75,<2",
    ],
    "of_openai": [
        "openai>=3.57,<4",
        "litellm>=1.110,<2",
        "langchain-openai>=1.7,<2",
        "pydantic-ai-slim[openai]>=2.68,<3",
        "numpy>=2.3,<3",
    ],
    # Its newest wants an older client of OpenAI's than the others.
    "of_instructor": ["instructor>=1.17,<2", "numpy>=2.3,<3"],
}
# Run by the service's own Python in its folder: what its decoder makes of a file.
DECODE = """
import base64, json, sys
from pathlib import Path

import numpy as np

from inference import DECODER
from serving import Upload

[item] = DECODER.decode([Upload(Path(sys.argv[1]).read_bytes())], None)
form = DECODER.tensor
is_file = form.name == "bytes"
found = np.frombuffer(item.file.content, "u1") if is_file else getattr(item, form.name)
found = np.asarray(found)
tensor = {"name": form.name, "datatype": form.datatype, "shape": [1, *found.shape]}
if form.name == "frames":
    tensor["shape"] = list(found.shape)
# A whole number, as KServe's client takes no others.
parameters = {"fps": round(1 / item.times[1])} if form.name == "frames" else {}
raw = base64.b64encode(found.tobytes()).decode()
print(json.dumps([tensor | {"raw": raw}, parameters]))
"""
# Of tritonclient's options over HTTP each pair of values, once at least: binary or JSON there and
# back (None is unsaid), and what is compressed on the way there and back.
BACK = [None, True, False]
COMPRESSION = [None, "gzip", "deflate"]
WAYS: list[tuple[bool, bool | None, str | None, str | None]] = [
    (bool(n % 2), BACK[n // 3], COMPRESSION[n % 3], COMPRESSION[n // 3 - n % 3]) for n in range(9)
]
WAYS += [(not way[0], *way[1:]) for way in WAYS if way[3] == COMPRESSION[1]]

Tensor = dict[str, Any]


class Driver:
    """A client, in a process of its own."""

    def __init__(self, name: str) -> None:
        """Start it, in an environment that is made once."""
        self.process = subprocess.Popen(
            [tool(name, *REQUIREMENTS[name]), str(HERE / f"{name}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.kill)

    def __call__(self, order: str, *arguments: Any, **options: Any) -> Any:
        """Have the client do something; ClientError tells what it raised."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([order, arguments, options]), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]


class ClientError(Exception):
    """What a client raised."""


@cache
def driver(name: str) -> Driver:
    """Return the one driver of a client that this process has."""
    return Driver(name)


@dataclass(frozen=True)
class Question:
    """EXAMPLE in the protocol's words, and what a service answers to it at its own route."""

    model: str
    media: list[Tensor]  # the file, where there is one: as binary data
    media_in_json: list[Tensor]
    fields: list[Tensor]  # the others, as tensors
    parameters: dict[str, Any]  # the same as the request's parameters, as far as they have lists
    outputs: list[Tensor]  # of the metadata
    expected: list[Tensor]

    def metadata_shape(self, name: str) -> list[int]:
        """Return the shape that an output is said to have."""
        return next(list(form["shape"]) for form in self.outputs if form["name"] == name)

    def check(
        self, answer: dict[str, Any], names: list[str] | None = None, *, in_batch: bool = False
    ) -> None:
        """Compare a client's answer, which may be a batch of one."""
        expected = [x for x in self.expected if x["name"] in (names or [x["name"]])]
        assert [x["name"] for x in answer["outputs"]] == [x["name"] for x in expected]
        for given, wanted in zip(answer["outputs"], expected, strict=True):
            shape = wanted["shape"]
            if in_batch and self.metadata_shape(wanted["name"]) != [1]:
                shape = [1, *shape]
            assert (given["datatype"], given["shape"]) == (wanted["datatype"], shape)
            data = list(map(json.loads, given["data"])) if wanted["is_json"] else given["data"]
            assert is_alike(data, wanted["data"]), (given, wanted)


def is_alike(one: Any, other: Any) -> bool:
    """Compare two answers: parallel sums may differ in their last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return bool(one == other)


def question(service: Live, project: Path, *, files: int = 1) -> Question:
    """Make the question for a service from its metadata and its OpenAPI document."""
    answers = answers_of(project)
    row = table("input_kinds")[answers["input_kind"]]
    model, route = answers["project_name"], f"/{answers['endpoint']}"
    document = service.client.get("/openapi.json").raise_for_status().json()
    content = document["paths"][route]["post"]["requestBody"]["content"]
    metadata = service.client.get(f"/v2/models/{model}").raise_for_status().json()
    forms = {form["name"]: form for form in metadata["inputs"]}
    media: list[Tensor] = []
    in_json: list[Tensor] = []
    if row["field"] == "json":
        example = content["application/json"]["example"]
        native = [service.client.post(route, json=example).raise_for_status().json()]
    else:
        properties = content["multipart/form-data"]["schema"]["properties"]
        example = {name: x["example"] for name, x in properties.items() if "example" in x}
        name, file = row["field"], next(project.glob("example*.*")).read_bytes()
        answer = service.client.post(
            route, data=example, files=[(name, file)] * (files if name == "files" else 1)
        )
        found = answer.raise_for_status().json()
        native = found["outputs"] if name == "files" else [found] * files
        code = base64.b64encode(file)
        media = [tensor(forms[name], [code.decode()] * files)]
        in_json = [tensor(forms[name], [base64.b64encode(code).decode()] * files)]
    given = [tensor(forms[name], elements(forms[name], x)) for name, x in example.items()]
    return Question(
        model=model,
        media=media,
        media_in_json=in_json,
        fields=given,
        parameters={name: x for name, x in example.items() if not isinstance(x, list | dict)},
        outputs=metadata["outputs"],
        expected=[expected(form, native, in_rows=bool(media)) for form in metadata["outputs"]],
    )


def tensor(form: Tensor, data: list[Any]) -> Tensor:
    """Return a tensor of one dimension, or as many as its data have."""
    shape, flat = flatten(data, len(form["shape"]))
    return {"name": form["name"], "datatype": form["datatype"], "shape": shape, "data": flat}


def elements(form: Tensor, value: Any) -> list[Any]:
    """Return a field's value as elements: those of BYTES in base64, for the driver."""

    def element(item: Any) -> Any:
        if form["datatype"] != "BYTES":
            return item
        text = json.dumps(item) if is_json(form) else item
        return base64.b64encode(text.encode()).decode()

    def change(item: Any, depth: int) -> Any:
        return [change(x, depth - 1) for x in item] if depth else element(item)

    value = [value] if form["shape"] == [1] else value
    return list(change(value, len(form["shape"])))


def expected(form: Tensor, answers: list[dict[str, Any]], *, in_rows: bool) -> Tensor:
    """Return the output that the service's own answers make."""
    values: Any = [answer[form["name"]] for answer in answers]
    if not in_rows and form["shape"] != [1]:
        [values] = values
    shape, flat = flatten(values, len(form["shape"]))
    return {**form, "shape": shape, "data": flat, "is_json": is_json(form)}


def is_json(form: Tensor) -> bool:
    """Tell whether a tensor's elements hold JSON."""
    return bool(form.get("parameters", {}).get("content_type") == "json")


def flatten(value: Any, depth: int) -> tuple[list[int], list[Any]]:
    """Return the shape and the elements of lists in lists."""
    shape: list[int] = []
    flat = [value]
    for _ in range(depth):
        shape.append(len(flat[0]) if flat else 0)
        flat = list(chain.from_iterable(flat))
    return shape, flat


def decoded(service: Live, project: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return a service's example file as its own decoder makes it a tensor, and its parameters."""
    file = example_of(answers_of(project)["input_kind"])
    [interpreter, *_] = service.process.args  # type: ignore[misc]
    found: list[Any] = json.loads(run([str(interpreter), "-c", DECODE, file], cwd=project))
    return found[0], found[1]


def check(service: Live, project: Path) -> None:
    """Every client gets what the service answers at its own route; `live` has to be ready."""
    has_grpc = "oip-grpc" in answers_of(project)["contracts"]
    asked = question(service, project, files=2)
    check_triton(service, asked)
    check_kserve(service, asked)
    if has_grpc:
        check_grpc(service, asked)
    one = question(service, project)
    check_mlserver(service, one)
    if one.media:
        check_decoded(service, one, *decoded(service, project), has_grpc=has_grpc)


def check_triton(service: Live, asked: Question) -> None:
    """Triton's client, over HTTP."""
    triton, address = driver("triton"), address_of(service)
    about = triton("about", address, asked.model, grpc=False)
    assert all(about[name] for name in ("live", "ready", "model_ready", "other_ready"))
    assert about["server"]["extensions"] == EXTENSIONS
    assert about["model"]["outputs"] == asked.outputs
    names = [form["name"] for form in asked.outputs]
    for binary, binary_output, there, back in WAYS:
        media = asked.media if binary else asked.media_in_json
        answer = triton(
            "http",
            address,
            asked.model,
            media + asked.fields,
            binary=binary,
            binary_output=binary_output,
            outputs=names,
            request_id="42",
            request_compression_algorithm=there,
            response_compression_algorithm=back,
        )
        asked.check(answer)
        assert answer["id"] == "42"
        assert set(answer["binary"]) == {binary_output is not False}
    some = names[-1:]
    options = {"binary_output": True, "outputs": some}
    asked.check(triton("http", address, asked.model, asked.media + asked.fields, **options), some)
    if asked.media:
        options = {"parameters": asked.parameters}
        asked.check(triton("http", address, asked.model, asked.media, **options))


def check_grpc(service: Live, asked: Question) -> None:
    """Triton's client and KServe's, over gRPC."""
    triton, kserve = driver("triton"), driver("of_kserve")
    address, inputs = f"127.0.0.1:{service.grpc_port}", asked.media + asked.fields
    about = triton("about", address, asked.model, grpc=True)
    assert all(about[name] for name in ("live", "ready", "model_ready", "other_ready"))
    assert [form["name"] for form in about["model"]["outputs"]] == [
        form["name"] for form in asked.outputs
    ]
    for compression in COMPRESSION:
        answer = triton(
            "grpc",
            address,
            asked.model,
            inputs,
            request_id="42",
            compression_algorithm=compression,
        )
        asked.check(answer)
        assert answer["id"] == "42"
    some = [asked.outputs[-1]["name"]]
    asked.check(triton("grpc", address, asked.model, inputs, outputs=some), some)
    if asked.media:
        options = {"parameters": asked.parameters}
        asked.check(triton("grpc", address, asked.model, asked.media, **options))
    assert all(kserve("about", address, asked.model, grpc=True).values())
    for binary in (True, False):
        if binary or not asked.media:  # its BYTES are text, where they are not binary
            asked.check(kserve("infer", address, asked.model, inputs, grpc=True, binary=binary))


def check_kserve(service: Live, asked: Question) -> None:
    """KServe's client, over HTTP."""
    kserve, address = driver("of_kserve"), address_of(service)
    assert all(kserve("about", address, asked.model, grpc=False).values())
    names = [form["name"] for form in asked.outputs]
    for binary in (True, False):
        inputs = (asked.media if binary else asked.media_in_json) + asked.fields
        options = {"binary": binary, "id": "42"}
        answer = kserve("infer", address, asked.model, inputs, outputs=names, **options)
        asked.check(answer)
        assert answer["id"] == "42"
        asked.check(kserve("infer", address, asked.model, inputs, **options))


def check_mlserver(service: Live, asked: Question) -> None:
    """`mlserver infer`; its requests are JSON, in which a file is base64.

    It takes everything for a batch.
    """

    def text(data: list[str]) -> list[str]:
        return [base64.b64decode(item).decode() for item in data]

    inputs = [
        {
            **x,
            "shape": x["shape"] if x in asked.media_in_json else [1, *x["shape"]],
            "data": text(x["data"]) if x["datatype"] == "BYTES" else x["data"],
        }
        for x in asked.media_in_json + asked.fields
    ]
    requests = [{"id": name, "inputs": inputs} for name in ("one", "two")]
    for binary in {False, not asked.media}:
        answers = driver("of_mlserver")(
            "infer", address_of(service), asked.model, requests, binary=binary
        )
        assert [answer.get("id") for answer in answers] == ["one", "two"], answers
        for answer in answers:
            for output in answer["outputs"]:  # its codec makes a column of what has one dimension
                if len(output["shape"]) == 2 and output["shape"][1] == 1:
                    output["shape"].pop()
            asked.check(answer, in_batch=not asked.media)


def check_decoded(
    service: Live,
    asked: Question,
    media: Tensor,
    parameters: dict[str, Any],
    *,
    has_grpc: bool,
) -> None:
    """Send what is decoded already: it makes the same answer."""
    triton, kserve, address = driver("triton"), driver("of_kserve"), address_of(service)
    inputs = [media, *asked.fields]
    for binary in (True, False):
        options = {"binary": binary, "parameters": parameters or None}
        asked.check(triton("http", address, asked.model, inputs, **options))
    asked.check(kserve("infer", address, asked.model, inputs, parameters=parameters or None))
    if has_grpc:
        address = f"127.0.0.1:{service.grpc_port}"
        options = {"parameters": parameters or None}
        asked.check(triton("grpc", address, asked.model, inputs, **options))
        asked.check(kserve("infer", address, asked.model, inputs, grpc=True, **options))


def address_of(service: Live) -> str:
    """Return host and port."""
    return service.url.removeprefix("http://")
