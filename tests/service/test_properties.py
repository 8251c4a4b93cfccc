"""Requests made from a service's own OpenAPI document: every answer is what the document says."""

import re
import wave
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case, Config, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.openapi.checks import RejectedPositiveData

from tests.support.environments import environment, run
from tests.support.fuzzing import exchanges
from tests.support.live import live
from tests.support.rendering import render
from tests.support.updating import put_model
from tests.support.variants import choices, table

FORM = "multipart/form-data"
OF_NO_KIND = "x-of-no/kind"  # which is taken where all types are
CONFIG: dict[str, Any] = {
    # The same requests in each run, and nothing kept from one run to the next.
    "generation": {"deterministic": True, "database": "none"},
    "cache": {"enabled": False},
    "continue-on-failure": True,
    "request-timeout": 120,
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["200"]},
        "negative_data_rejection": {"expected-statuses": ["400", "415", "422"]},
    },
}

# A model that answers with its parameters, which are of all types that a user may well take.
MODEL = """
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serving import Input

IMPORTS

MODEL_NAME = "echo"


class Mode(StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Nested(BaseModel):
    children: "list[Nested]" = Field(default=[], max_length=2)
    mode: Mode = Mode.FAST


class Params(BaseModel):
    mode: Mode
    other_mode: Mode = Field(default=Mode.SLOW, description="a default beside a reference")
    limit: int = Field(default=3, ge=1, le=12)
    ratio: float = Field(default=0.5, gt=0, lt=1)
    switch: bool = False
    day: date = date(2026, 1, 1)
    letter: Literal["a", "b"] = "a"
    code: str = Field(default="ab", pattern="^[a-z]{2,4}$")
    tags: list[str] = Field(default=[], max_length=3)
    modes: set[Mode] = set()
    numbers: Annotated[list[int], Field(max_length=3)] | None = None
    name: str | None = Field(default=None, max_length=10)
    FIELDS


class Output(BaseModel):
    params: Params


EXAMPLE: dict[str, Any] = SAMPLE


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Output(params=item.params) for item in inputs]
"""
# What more to import, further fields where they can be sent, and one valid request.
PARAMETERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "image-params": (
        "from serving import Decoder\n\nDECODER = Decoder()",
        "",
        {"file": "example.png", "mode": "fast", "numbers": [1, 2]},
    ),
    "json": (
        "",
        "children: list[Nested] = []\n    by_name: dict[str, Nested] = {}",
        {"mode": "fast", "children": [{"children": [{}]}]},
    ),
}


def picture(file_format: str, width: int, height: int, mode: str = "RGB") -> bytes:
    """Return a picture in a format."""
    file = BytesIO()
    Image.new(mode, (width, height), "red" if mode == "RGB" else 1).save(file, file_format)
    return file.getvalue()


def recording(rate: int, samples: int) -> bytes:
    """Return a recording of silence."""
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, samples, "NONE", ""))
        writer.writeframes(bytes(2 * samples))
    return file.getvalue()


# What a decoder can read; the service's own example comes on top.
FILES: dict[str, list[bytes]] = {
    "image": [
        *(picture(name, 3, 2) for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")),
        *(picture("PNG", 1, 1, mode) for mode in ("1", "L", "I;16", "P")),
        picture("PNG", 60, 1),
    ],
    "audio": [recording(8_000, 800), recording(16_000, 1), recording(48_000, 4_800)],
    "video": [],
    "file": [bytes(1)],
}


@contextmanager
def serve(folder: Path, stack: str, **env: str) -> Iterator[str]:
    """Start a service, and return its address; what it logs must hold no error."""
    python = str(environment(stack) / "bin" / "python")
    with live(folder, python, folder / "log", **{"DEVICE": "cpu"} | env) as running:
        running.ready()
        yield running.url
    assert not re.search("Traceback|ERROR|CRITICAL", text := running.log), text


@dataclass(frozen=True)
class Oracle:
    """Knows which answers are right though a general check objects, for it cannot know so much."""

    readable: list[bytes]
    answers_with_parameters: bool = False

    def allows(self, failure: Failure, case: Case[Any], response: Response) -> bool:
        """Tell whether an answer is right nevertheless."""
        if isinstance(failure, RejectedPositiveData):
            return self._may_refuse(case, response)
        if isinstance(failure, AcceptedNegativeData):
            return self._may_accept(case)
        return False

    def _may_refuse(self, case: Case[Any], response: Response) -> bool:
        detail: Any = response.json()["detail"]
        if response.status_code == 400:
            # Any bytes fit the schema of a file; not all of them are one.
            if not all(file in self.readable for file in files_of(case)):
                return bool(re.search("Empty upload|No readable|cannot be read", detail))
            # The stock model for a picture and a text: no schema says which words are colours.
            return str(detail).startswith("The text names no colour.")
        body: Any = case.body
        if isinstance(body, Mapping):
            # An optional parameter may be null in the schema, but a form has text only.
            return response.status_code == 422 and None in body.values()
        # A required field may be in the form or in the query: neither can be said to need it.
        return response.status_code == 422 and {error["type"] for error in detail} == {"missing"}

    def _may_accept(self, case: Case[Any]) -> bool:
        if self.answers_with_parameters:
            # Pydantic reads more than the schema says: 0 is a date, and a set drops what comes
            # twice. What it made of it is in the answer, and is checked there.
            return True
        # Likewise, "1" and true are numbers.
        body: Any = case.body
        values = body.get("values", []) if isinstance(body, Mapping) else []
        return any(isinstance(value, bool | str) for value in values)


def files_of(case: Case[Any]) -> list[Any]:
    """Return the files of a request."""
    body: Any = case.body
    if isinstance(body, Mapping):
        body = body.get("file", body.get("files"))
    return [getattr(part, "data", part) for part in (body if isinstance(body, list) else [body])]


def map_case(_context: HookContext, case: Case[Any]) -> Case[Any]:
    """Leave out a field of the form where the query's is meant to be wrong, and the reverse.

    Of a field that is in both the form's counts, and the query's is not looked at.
    """
    if case.meta and case.query and isinstance(case.body, Mapping):
        if case.meta.is_negative_at(ParameterLocation.BODY):
            case.query = {}
        elif case.meta.is_negative_at(ParameterLocation.QUERY):
            case.body = {name: case.body[name] for name in case.body if name not in case.query}
    return case


def with_raw_body(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document that has in schemas what the service's own has in words: the raw body."""
    [operation] = [path["post"] for path in document["paths"].values() if "post" in path]
    content = operation["requestBody"]["content"]
    if FORM in content:
        description = operation["requestBody"]["description"]
        [types] = re.findall(r"a file alone \((.+?)\)", description)
        types = types.replace("*/*", f"application/pdf, {OF_NO_KIND}")
        file = {"type": "string", "format": "binary"}
        content |= {name: {"schema": file} for name in types.split(", ")}
        fields = content[FORM]["schema"]["properties"].items()
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in fields
            if name not in ("file", "files")
        ]
    return document


def check(address: str, oracle: Oracle, examples: int) -> None:
    """Send requests made from the service's document, and hold the answers against it."""
    config = CONFIG | {"generation": {**CONFIG["generation"], "max-examples": examples}}
    config["base-url"] = address
    document = with_raw_body(httpx.get(f"{address}/openapi.json").json())
    api = schemathesis.openapi.from_dict(document, config=Config.from_dict(config))
    api.validate()
    api.hook(map_case)

    @api.hook
    def filter_failure(
        _context: HookContext, failure: Failure, case: Case[Any], response: Response
    ) -> bool:
        return not oracle.allows(failure, case, response)

    [route] = set(api) - {"/health", "/ready", "/gpu", "/metrics"}
    operation = api[route]["POST"].definition.raw
    content_types = set(operation["requestBody"]["content"])
    if oracle.readable:
        files = st.one_of(st.sampled_from(oracle.readable), st.binary(max_size=64))
        schemathesis.openapi.format("binary", files)
        assert "application/octet-stream" in content_types
        for name in content_types - {FORM}:
            schemathesis.openapi.media_type(name, files)

    statuses: set[int] = set()
    answered: set[str | None] = set()
    for case, response in exchanges(api):
        if response.status_code >= 400:
            assert response.json()["detail"]
        if case.path == route:
            statuses.add(response.status_code)
            if response.status_code == 200:
                answered.add(case.media_type)
    assert answered == content_types
    if OF_NO_KIND not in content_types:
        assert 415 in statuses
    assert statuses - {415} == {200, 400, 405, 422}
    # Schemathesis does not look at the answers to other methods and content types.
    assert {str(status) for status in statuses - {405}} <= set(operation["responses"])


@pytest.mark.parametrize("kind", choices("input_kind"))
def test_input_kind(kind: str, tmp_path: Path) -> None:
    """Each stock model's service does what its document says, and takes what it promises."""
    folder = render(tmp_path, {"model_type": "custom", "input_kind": kind})
    with serve(folder, "custom") as address:
        check(address, Oracle(readable_files(folder, kind)), examples=50)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters(kind: str, tmp_path: Path) -> None:
    """So does a service whose parameters are of all the types that go over a form, or in JSON."""
    folder = render(tmp_path, {"model_type": "custom", "input_kind": kind})
    imports, fields, example = PARAMETERS[kind]
    model = MODEL.replace("IMPORTS", imports).replace("FIELDS", fields)
    put_model(folder, model.replace("SAMPLE", repr(example)))
    oracle = Oracle(readable_files(folder, kind), answers_with_parameters=True)
    with serve(folder, "custom") as address:
        check(address, oracle, examples=100)
        document = httpx.get(f"{address}/openapi.json").json()
    [body] = [path["post"]["requestBody"] for path in document["paths"].values() if "post" in path]
    described = body["content"]["application/json" if kind == "json" else FORM]["schema"]
    # What Pydantic writes beside a reference is in place of it, and what the reference led to.
    assert described["properties"]["other_mode"] == {
        "title": "Mode",
        "type": "string",
        "enum": ["fast", "slow"],
        "default": "slow",
        "description": "a default beside a reference",
    }


@pytest.mark.parametrize("preset", ["rapidocr", "minilm"])
def test_preset(preset: str, tmp_path: Path) -> None:
    """So does a service whose model is a real one."""
    folder = render(tmp_path, {"preset": preset})
    env = {}
    if preset == "minilm":
        find = "from checkpoint import make_checkpoint; print(make_checkpoint('.'))"
        python = str(environment(preset) / "bin" / "python")
        env["MODEL_NAME"] = run([python, "-c", find], cwd=folder / "tests").strip()
    oracle = Oracle(readable_files(folder, table("presets")[preset]["input_kind"]))
    with serve(folder, preset, **env) as address:
        check(address, oracle, examples=10)


def readable_files(folder: Path, kind: str) -> list[bytes]:
    """Return files that a service of the kind can read, its example among them."""
    examples = [file.read_bytes() for file in folder.glob("example*.*")]
    return [*examples, *FILES[table("input_kinds")[kind]["media"]]] if examples else []
