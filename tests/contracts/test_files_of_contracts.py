"""Each kind of input and each form of a file, alone and as a field, by each contract.

A service for each kind, which has all contracts, gives back what it was sent, in every form.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import driver
from tests.support.live import Live
from tests.support.open_inference import INFER, make, started, tensor
from tests.support.updating import put_model
from tests.support.variants import choices, example_of, table

# Where Output is a file; for the other kinds it has fields of each form. So each contract has each
# form in both ways.
ALONE = {"image", "image-batch", "audio", "file"}
NAME = "my-model-server"
TYPES = {
    "picture": "image/webp",
    "recording": "audio/flac",
    "clip": "video/webm",
    "other": "text/csv; header=absent",
}
HEAD = bytes(range(256))  # before what was sent, so that each byte occurs
MODEL = '''"""Gives back what it is sent."""

from typing import Any, Literal

from pydantic import BaseModel

import serving
from serving import {names}

MODEL_NAME = "echo"
{decoder}


class Params(BaseModel):
    """Which form the answer has, where it is a file."""

    form: Literal["picture", "recording", "clip", "other"] = "other"
    text: str = ""


EXAMPLE: dict[str, Any] = {example}
TYPES: dict[str, Any] = {types}
# Services of pictures have no types for these: they are Files.
CLASSES: dict[str, type[File]] = {{
    "picture": Picture,
    "recording": getattr(serving, "Recording", File),
    "clip": getattr(serving, "Clip", File),
    "other": File,
}}
{output}


class Model:
    """Gives back."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Any]:
        """Return what came, in the form that is wanted, or in each."""
        return [self._answer(item) for item in inputs]

    def _answer(self, item: Input[Params]) -> Any:
        content = bytes(range(256)) + {content}
        files = {{
            form: kind(data=content, content_type=TYPES[form], name=form)
            for form, kind in CLASSES.items()
        }}
        return {answer}
'''
FIELDS = '''

class Output(BaseModel):
    """A file of each form, one of them in a list, and a number."""

    picture: Picture
    recording: CLASSES["recording"]
    clip: CLASSES["clip"]
    other: list[File]
    size: int
'''

File = tuple[str, bytes]  # content type and content


@dataclass(frozen=True)
class Echo:
    """A live service, and what it is asked."""

    service: Live
    kind: str
    sent: bytes

    @property
    def field(self) -> str:
        """The field of the request that has the file."""
        return str(table("input_kinds")[self.kind]["field"])

    @property
    def route(self) -> str:
        """The service's own route."""
        return f"/{table('input_kinds')[self.kind]['endpoint']}"

    @property
    def forms(self) -> list[str]:
        """The forms that the service has to be asked for, one by one."""
        return list(TYPES) if self.kind in ALONE else ["other"]

    def document(self, form: str) -> dict[str, Any]:
        """Return a request as JSON."""
        if self.field == "json":
            return {"text": self.sent.decode(), "form": form}
        text = b64encode(self.sent).decode()
        return {self.field: [text] if self.field == "files" else text, "form": form}

    def tensors(self, form: str) -> list[dict[str, Any]]:
        """Return a request as tensors, for the driver of a client."""
        name = "text" if self.field == "json" else self.field
        named = {"form": form.encode(), name: self.sent}
        return [tensor(key, "BYTES", [1], [b64encode(x).decode()]) for key, x in named.items()]

    def read(self, answer: Any) -> dict[str, File]:
        """Return the files of an answer in JSON, by their fields; alone it is called data."""
        if self.field == "files":
            [answer] = answer["outputs"]
        if self.kind in ALONE:
            return {"data": (answer["content_type"], b64decode(answer["data"]))}
        assert answer.pop("size") == len(HEAD + self.sent)
        [answer["other"]] = answer["other"]
        return {
            name: (file["content_type"], b64decode(file["data"])) for name, file in answer.items()
        }

    def read_tensors(self, answer: Any) -> dict[str, File]:
        """Return the files of an answer in tensors."""
        values = {
            each["name"]: each["data"][0].encode(errors="surrogateescape")
            for each in answer["outputs"]
            if each["datatype"] == "BYTES"
        }
        kinds = {name: x.decode() for name, x in values.items() if name.endswith("content_type")}
        if self.kind in ALONE:
            return {"data": (kinds["content_type"], values["data"])}
        return {name: (kinds[f"{name}_content_type"], values[name]) for name in TYPES}


def own_route(echo: Echo, form: str) -> dict[str, File]:
    """Ask by the service's own route."""
    client = echo.service.client
    if echo.field == "json":
        response = client.post(echo.route, json=echo.document(form))
    else:
        response = client.post(echo.route, files={echo.field: echo.sent}, data={"form": form})
    return of_http(echo, response)


def of_http(echo: Echo, response: Any) -> dict[str, File]:
    """Return the files of an answer that may be one, where its client takes anything."""
    kind = response.raise_for_status().headers["content-type"]
    if echo.kind not in ALONE or echo.field == "files":
        assert kind == "application/json"
        return echo.read(response.json())
    assert response.headers["x-content-type-options"] == "nosniff"
    return {"data": (kind, response.content)}


def sagemaker(echo: Echo, form: str) -> dict[str, File]:
    """Ask as SageMaker does: a file as the whole body, or a document."""
    client = echo.service.client
    if echo.field == "json":
        return of_http(echo, client.post("/invocations", json=echo.document(form)))
    headers = {"Content-Type": "application/octet-stream"}
    options: dict[str, Any] = {"params": {"form": form}, "headers": headers}
    return of_http(echo, client.post("/invocations", content=echo.sent, **options))


def json_lines(echo: Echo, form: str) -> dict[str, File]:
    """Ask by JSON Lines, in the second of two."""
    lines = "\n".join(json.dumps(echo.document(each)) for each in ("other", form))
    headers = {"Content-Type": "application/jsonlines"}
    answer = echo.service.client.post("/invocations", content=lines, headers=headers)
    first, second = map(json.loads, answer.raise_for_status().text.split("\n"))
    assert echo.read(first).keys() <= {"data", *TYPES}
    return echo.read(second)


def model_engine(echo: Echo, form: str) -> dict[str, File]:
    """Ask as Model Engine's forwarder does."""
    answer = echo.service.client.post("/predict", json={"args": echo.document(form)})
    return echo.read(answer.raise_for_status().json())


def oip_json(echo: Echo, form: str) -> dict[str, File]:
    """Ask by the Open Inference Protocol, in JSON, where content is base64 of base64."""
    inputs = echo.tensors(form)
    for each in inputs:
        if each["name"] != echo.field:
            each["data"] = [b64decode(each["data"][0]).decode()]
    answer = echo.service.client.post(INFER, json={"inputs": inputs}).raise_for_status().json()
    for each in answer["outputs"]:
        if each.get("parameters", {}).get("content_type") == "base64":
            content = b64decode(each["data"][0])
            each["data"] = [content.decode(errors="surrogateescape")]
    return echo.read_tensors(answer)


def oip_http(echo: Echo, form: str) -> dict[str, File]:
    """Ask by Triton's client over HTTP, in binary tensors."""
    address = echo.service.url.removeprefix("http://")
    return echo.read_tensors(driver("triton")("http", address, NAME, echo.tensors(form)))


def oip_grpc(echo: Echo, form: str) -> dict[str, File]:
    """Ask by Triton's client over gRPC."""
    address = f"127.0.0.1:{echo.service.grpc_port}"
    return echo.read_tensors(driver("triton")("grpc", address, NAME, echo.tensors(form)))


CONTRACTS: list[Callable[[Echo, str], dict[str, File]]] = [
    own_route,
    sagemaker,
    json_lines,
    model_engine,
    oip_json,
    oip_http,
    oip_grpc,
]


def make_echo(folder: Path, kind: str) -> Path:
    """Render a service of this kind that gives back what it is sent."""
    contracts = ["oip-grpc", "sagemaker", "model-engine"]
    project = make(folder, input_kind=kind, features=[], contracts=contracts)
    is_json, alone = table("input_kinds")[kind]["field"] == "json", kind in ALONE
    field, example = table("input_kinds")[kind]["field"], example_of(kind)
    code = MODEL.format(
        names="File, Input, Picture" if is_json else "Decoder, File, Input, Picture",
        decoder="" if is_json else "DECODER = Decoder()",
        example={} if is_json else {field: [example] if field == "files" else example},
        types=TYPES,
        output="Output = File" if alone else FIELDS,
        content="item.params.text.encode()" if is_json else "item.file.content",
        answer="files[item.params.form]"
        if alone
        else 'Output(**files | {"other": [files["other"]]}, size=len(content))',
    )
    put_model(project, code)
    return project


@pytest.mark.parametrize("kind", choices("input_kind"))
def test_files(kind: str, tmp_path: Path) -> None:
    """By every contract come the bytes that the model gave, with their content type."""
    project = make_echo(tmp_path / "service", kind)
    is_json = table("input_kinds")[kind]["field"] == "json"
    sent = "Grüße\r\n".encode() if is_json else (project / example_of(kind)).read_bytes()
    with started(project, tmp_path / "log") as service:
        echo = Echo(service, kind, sent)
        for contract in CONTRACTS:
            for form in echo.forms:
                found = contract(echo, form)
                wanted = {"data": TYPES[form]} if kind in ALONE else TYPES
                assert found == {name: (x, HEAD + sent) for name, x in wanted.items()}, contract
    assert "ERROR" not in service.log
