"""What a live service makes of the details of HTTP: odd JSON, paths, origins, events."""

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.live import Live, live
from tests.support.rendering import render
from tests.support.updating import put_model, python

MODEL = '''"""Repeats what it is told."""

import time
from collections.abc import Iterator

from pydantic import BaseModel

from serving import Input

MODEL_NAME = "echo"


class Params(BaseModel):
    """The request's body."""

    values: list[float] = []
    by_name: dict[str, list[float]] = {}
    text: str = ""
    most: float = float("inf")
    answer: float = 0
    pause: float = 0


class Output(BaseModel):
    """What came."""

    number: float = 0
    maybe: float | None = None
    text: str = ""


EXAMPLE: dict[str, object] = {"values": [1]}


class Model:
    """Repeats."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Repeat the text; as told, overflow in either field."""
        outputs = []
        for params in (item.params for item in inputs):
            large = 1e308 * params.answer * 1e308
            texts = {"required": Output(number=large), "optional": Output(maybe=large)}
            outputs.append(texts.get(params.text, Output(text=params.text)))
        return outputs

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Repeat the text twice."""
        yield Output(text=item.params.text)
        time.sleep(item.params.pause)
        yield Output(text=item.params.text)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the service."""
    answers = {"model_type": "custom", "input_kind": "json", "accelerator": "cpu"}
    features = ["observability", "streaming"]
    folder = tmp_path_factory.mktemp("http") / "service"
    put_model(render(folder, {**answers, "features": features}), MODEL)
    return folder


@pytest.fixture(scope="module")
def service(project: Path) -> Iterator[Live]:
    """Run the service."""
    with live(project, python(), project / "log") as running:
        running.ready()
        yield running


def post(service: Live, body: bytes, **headers: str) -> tuple[int, Any]:
    """Return the status and the detail of the answer to a body, or all of the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = service.client.post("/infer", content=body, headers=named)
    return answer.status_code, answer.json().get("detail", answer.json())


@pytest.mark.parametrize(
    "number",
    [
        *("NaN", "Infinity", "-Infinity", "1e999", "-1E+400", "1" + 400 * "0", '"nan"', '"-inf"'),
        *("1.7976931348623159e308", '"1e999"', '"Infinity"'),
    ],
)
@pytest.mark.parametrize("field", ['"values": [0, %s]', '"by_name": {"a": [%s]}', '"most": %s'])
def test_number_that_is_none(service: Live, number: str, field: str) -> None:
    """NaN, infinity and what a float cannot hold never reach the model, however it is written."""
    body = f"{{{field % number}}}"
    status, detail = post(service, body.encode())
    assert (status, detail) == (
        400,
        "JSON has no NaN, no infinity, and no number beyond 1.79e308.",
    )


@pytest.mark.parametrize("text", ["NaN", "Infinity", "information", "1e999", '"NaN"'])
def test_words_are_no_numbers(service: Live, text: str) -> None:
    """A text may say what it likes."""
    status, answer = post(service, json.dumps({"text": text, "values": [1.7e308]}).encode())
    assert (status, answer["text"]) == (200, text)


def test_answer_that_is_no_number(service: Live) -> None:
    """NaN becomes null where the answer's schema allows that; else it is a 500, and logged."""
    for answer in (1, -1):
        assert post(service, json.dumps({"text": "optional", "answer": answer}).encode()) == (
            200,
            {"number": 0, "maybe": None, "text": ""},
        )
        body = json.dumps({"text": "required", "answer": answer}).encode()
        assert post(service, body) == (500, "Internal server error.")
    assert service.log.count("ValueError: NaN or infinity in number of the answer") == 2


def test_no_content_type(service: Live) -> None:
    """A body that does not say what it is, is taken for JSON; one that says otherwise is not."""
    assert post(service, b'{"text": "a"}')[0] == 200
    assert post(service, b'{"text": "a"}', Content_Type="")[0] == 200
    assert post(service, b"text=a", Content_Type="application/x-www-form-urlencoded") == (
        415,
        "Send application/json.",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark(service: Live, encoding: str) -> None:
    """It is named."""
    status, detail = post(service, '{"text": "a"}'.encode(encoding))
    assert (status, "byte order mark" in detail) == (400, True)


@pytest.mark.parametrize(
    "text", ["\\ud800", "\\udc00", "\\ud800\\u0041", "a\\udbff b", "\\uDFFF\\uD800"]
)
def test_lone_surrogate(service: Live, text: str) -> None:
    """It is named, in a text and in a key; a pair of them is a character."""
    for body in (f'{{"text": "{text}"}}', f'{{"{text}": 1}}'):
        status, detail = post(service, body.encode())
        assert (status, "surrogate" in detail) == (400, True), detail
    assert post(service, b'{"text": "\\ud83d\\ude00"}')[1]["text"] == "\U0001f600"


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "X-Gzip", "gzip, identity"])
def test_compressed_body(service: Live, encoding: str) -> None:
    """Nothing is unpacked, and the answer says so."""
    body = gzip.compress(b'{"text": "a"}')
    expected = (415, f"Content-Encoding {encoding} is not taken: send the body unpacked.")
    assert post(service, body, Content_Encoding=encoding) == expected
    for none in ("identity", "Identity", ""):
        assert post(service, b'{"text": "a"}', Content_Encoding=none)[0] == 200


def test_large_document(service: Live) -> None:
    """What is parsed beside the event loop is checked like any other document."""
    numbers = 4_000_000 * "0,"
    assert post(service, f'{{"values": [{numbers}0]}}'.encode())[0] == 200
    assert post(service, f'{{"values": [{numbers}1e999]}}'.encode())[0] == 400
    assert post(service, f'{{"values": [{numbers}"a"]}}'.encode())[0] == 422
    assert post(service, f'{{"values": [{numbers}'.encode())[0] == 400
    assert not math.isnan(post(service, b'{"text": "a"}')[1]["number"])
