"""A live service behind Model Engine: what its forwarder sends, and what comes of the answers."""

import json
import math
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.slow_service import ask, fill, slow_service, started
from tests.support.slow_service import document as slow_document
from tests.support.updating import put_model, python
from tests.support.variants import choices, table

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("model-engine")

# What the API server adds to the fields of a request, which are under "args".
ENVELOPE = {
    "url": None,
    "cloudpickle": None,
    "callback_url": None,
    "callback_auth": None,
    "return_pickled": False,
}
# A model whose parameters are called as Model Engine's own, and which answers in parts.
MODEL = '''"""Adds up."""

import os
from collections.abc import Iterator

from pydantic import BaseModel

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "arguments")


class Params(BaseModel):
    """The request's body."""

    args: list[int]


class Output(BaseModel):
    """What came."""

    total: int


EXAMPLE: dict[str, list[int]] = {"args": [1, 2]}


class Model:
    """Adds up."""

    def __init__(self, device: str) -> None:
        """Load nothing."""
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the sums."""
        return [Output(total=sum(item.params.args)) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Yield the sums so far; a negative number is too much."""
        total = 0
        for number in item.params.args:
            if number < 0:
                raise ValueError("negative")
            total += number
            yield Output(total=total)
'''
CALL_SECONDS = 0.05
CLIENTS = 24


class RefusedError(Exception):
    """The forwarder's own error: the status, and the service's JSON as the detail."""


@dataclass
class Forwarder:
    """Does what Model Engine's forwarder does, and the API server that asks it."""

    service: Live
    unwraps: bool = True
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        """Ask the port on the machine that it shares with the service."""
        port = self.service.url.rpartition(":")[2]
        self.client = httpx.Client(base_url=f"http://localhost:{port}", timeout=30)

    def wait(self) -> None:
        """Ask for /readyz until it is 200; that it may not be there yet is no error."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.service.process.poll() is None:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.ConnectError:
                pass
            time.sleep(0.05)
        pytest.fail(self.service.log)

    def request(self, args: Any) -> dict[str, Any]:
        """Return what the service is sent of a request to the API server; nothing for none."""
        whole = {**ENVELOPE, "args": args}
        document = whole.get("args", whole) if self.unwraps else whole
        content = b"" if document is None else json.dumps(document).encode()
        return {"content": content, "headers": {"Content-Type": "application/json"}}

    def predict(self, args: Any) -> tuple[int, dict[str, str]]:
        """Return the status, and the JSON of the answer as a string, whatever the status is."""
        response = self.client.post("/predict", **self.request(args))
        return response.status_code, {"result": json.dumps(response.json())}

    def insist(self, args: Any) -> Counter[int]:
        """Ask until there is an answer, with longer pauses; return how often each status came."""
        statuses: Counter[int] = Counter()
        for attempt in range(200):
            status, _ = self.predict(args)
            statuses[status] += 1
            if status not in (429, 503):
                break
            time.sleep(min(0.02 * 1.2**attempt, 0.5))
        return statuses

    def stream(self, args: Any) -> Iterator[dict[str, Any]]:
        """Yield the data of each event, under whatever name it comes."""
        with self.client.stream("POST", "/stream", **self.request(args)) as response:
            if response.status_code != 200:
                response.read()
                raise RefusedError(response.status_code, response.json())
            data = ""
            for line in response.iter_lines():
                if not line and data:
                    yield {"result": json.loads(data)}
                    data = ""
                elif line.startswith("data:"):
                    data += line.removeprefix("data:").lstrip(" ")


def make_project(folder: Path, **answers: Any) -> Path:
    """Render a service for Model Engine that needs no framework."""
    answers = {
        "model_type": "custom",
        "accelerator": "cpu",
        "contracts": ["model-engine"],
    } | answers
    return render(folder, answers)


def native(service: Live, kind: str, files: list[bytes], fields: dict[str, Any]) -> httpx.Response:
    """Send the same to the service's own route."""
    row = table("input_kinds")[kind]
    if row["field"] == "json":
        content, head = json.dumps(fields), {"Content-Type": "application/json"}
        return service.client.post(f"/{row['endpoint']}", content=content, headers=head)
    forms: list[Any] = [
        (row["field"], ("name", file, "application/octet-stream")) for file in files
    ]
    forms = forms or [("other", (None, b"no file"))]  # a form all the same
    return service.client.post(f"/{row['endpoint']}", files=forms, data=fields)


@pytest.mark.parametrize("kind", choices("input_kind"))
def test_input_kind(kind: str, tmp_path: Path) -> None:
    """Every kind of input gets the answers of the own route, and its errors, in JSON."""
    features = ["isolation"] if kind in ("image-batch", "json") else []
    features += ["observability"] if kind != "image" else []
    project = make_project(tmp_path / "service", input_kind=kind, features=features)
    row = table("input_kinds")[kind]
    name = row["field"]
    files = [file.read_bytes() for file in project.glob("example*.*")]
    files *= 2 if name == "files" else 1
    fields: dict[str, Any] = {"values": [1.0, 2.0, 3.0, 4.0]} if name == "json" else {}
    if kind == "multimodal":
        fields = {"text": "a red picture"}

    def args(contents: list[bytes]) -> dict[str, Any]:
        texts = [b64encode(content).decode() for content in contents]
        return fields | ({name: texts if name == "files" else texts[0]} if texts else {})

    with live(project, python(), tmp_path / "log") as service:
        forwarder = Forwarder(service)
        forwarder.wait()
        own = native(service, kind, files, fields)
        answer = 200, {"result": json.dumps(own.raise_for_status().json())}
        assert forwarder.predict(args(files)) == answer
        assert Forwarder(service, unwraps=False).predict(args(files)) == answer
        assert forwarder.predict(None)[0] == 400
        assert Forwarder(service, unwraps=False).predict(None)[0] == 422
        assert forwarder.predict([args(files)])[0] == 422
        if not files:
            for values in "many", [math.inf, 1, 2, 3]:
                own = native(service, kind, [], {"values": values})
                answer = own.status_code, {"result": json.dumps(own.json())}
                assert forwarder.predict({"values": values}) == answer
                assert Forwarder(service, unwraps=False).predict({"values": values}) == answer
                assert own.status_code == 422
            return
        unreadable = 200 if kind == "file" else 400  # which any bytes are
        for contents, status in ([b"no such file"], unreadable), ([b""], 400), ([], 422):
            refused = native(service, kind, contents, fields)
            answer = refused.status_code, {"result": json.dumps(refused.json())}
            assert forwarder.predict(args(contents)) == answer, contents
            assert refused.status_code == status
        for text in ("no base64", "AAAAA", "é", 1, None, ["é"], {"a": "AAAA"}):
            status, body = forwarder.predict(fields | {name: text})
            assert status == 422, text
            [error] = json.loads(body["result"])["detail"]
            assert error["loc"] == ["body", name], text


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run a service whose one field is called "args", and which answers in parts."""
    folder = tmp_path_factory.mktemp("args")
    project = make_project(
        folder / "service", input_kind="json", features=["observability", "streaming"]
    )
    put_model(project, MODEL)
    with live(project, python(), folder / "log", MAX_UPLOAD_MB="1") as running:
        Forwarder(running).wait()
        yield running


def test_a_field_called_args(service: Live) -> None:
    """Where the model has a field of this name, it is the model's; the document says so."""
    forwarder = Forwarder(service)
    assert forwarder.predict({"args": [1, 2]}) == (200, {"result": '{"total": 3}'})
    assert forwarder.predict({"args": {"args": [1, 2]}})[0] == 422
    document = service.client.get("/openapi.json").json()
    for path in ("/predict", "/stream"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert set(body["schema"]["properties"]) == {"args"}
        assert "anyOf" not in body["schema"]


def test_stream(service: Live) -> None:
    """Each part is an item, the end an empty one; a failure after the first is the last item."""
    forwarder = Forwarder(service)
    whole = [{"result": part} for part in ({"total": 1}, {"total": 3}, {})]
    assert list(forwarder.stream({"args": [1, 2], "stream": True})) == whole
    assert list(forwarder.stream({"args": []})) == whole[2:]
    first, failure = forwarder.stream({"args": [1, -1]})
    assert first == whole[0]
    assert failure["result"]["status"] == 500
    for args, status in ({"args": [-1]}, 500), ({"args": "many"}, 422), ({}, 422):
        with pytest.raises(RefusedError) as refused:
            next(forwarder.stream(args))
        assert refused.value.args[0] == status


def test_errors_are_json(service: Live) -> None:
    """All that can go wrong on the two routes is a JSON object with a reason, large bodies too."""
    head = {"Content-Type": "application/json"}
    for path in ("/predict", "/stream"):
        refused: dict[int, list[Any]] = {
            400: [b"", b"{", b"\xff", b'"\\ud800"', 1000 * b"["],
            413: [2_000_000 * b" ", iter([1_000_000 * b" "] * 2), b'{"args":[]}'.ljust(2**20 + 1)],
            422: [b"1", b"[]", b"null", b"{}", b'{"args": {}}', b'{"args": 1e999}'],
        }
        for status, bodies in refused.items():
            for body in bodies:
                response = service.client.post(path, content=body, headers=head)
                assert (response.status_code, list(response.json())) == (status, ["detail"]), body
        others = {
            404: service.client.post(f"{path}/more", json={}),
            405: service.client.put(path, json={}),
            415: service.client.post(path, data={"args": "1"}),
        }
        for status, response in others.items():
            assert (response.status_code, list(response.json())) == (status, ["detail"])
        for content_type in ("application/vnd.of-mine+json", "Application/JSON; charset=utf-8"):
            headers = {"Content-Type": content_type}
            response = service.client.post(path, content=b'{"args": [1]}', headers=headers)
            assert response.status_code == 200
    counted = 'http_requests_total{method="POST",route="/predict",status="413"} 3.0'
    assert counted in service.client.get("/metrics").text


def test_probes_are_quiet(service: Live) -> None:
    """The forwarder and Kubernetes ask for /readyz all the time, so it is not in the log."""
    Forwarder(service).wait()
    assert "/readyz 200" not in service.log


def test_full(tmp_path: Path) -> None:
    """With a full queue it is 429, and 503 on the own route; who comes again is answered."""
    folder = slow_service(tmp_path / "service", contracts=["model-engine"])
    with (
        started(folder, tmp_path / "log", MAX_QUEUE_SIZE="1") as service,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        forwarders = [Forwarder(service) for _ in range(CLIENTS)]
        taken = fill(folder, service, pool)
        headers = {"X-Request-ID": "mine"}
        own = ask(service.url)
        theirs = service.client.post("/predict", json=slow_document(), headers=headers)
        assert (theirs.status_code, own.status_code) == (429, 503)
        assert theirs.json() == own.json()
        assert (theirs.headers["X-Request-ID"], theirs.headers["Retry-After"]) == ("mine", "1")
        wait_for(lambda: service.log.count("POST /predict 429") == 1, seconds=30)
        assert {call.result().status_code for call in taken} == {200}
        args = slow_document(CALL_SECONDS)
        crowd = pool.map(lambda forwarder: forwarder.insist(args), forwarders)
        counts: Counter[int] = sum(crowd, Counter())
        assert set(counts) <= {200, 429}
        assert counts[200] == CLIENTS
        metrics = service.client.get("/metrics").text
        assert f'route="/predict",status="429"}} {counts[429] + 1.0}' in metrics
        assert 'route="/infer",status="503"} 1.0' in metrics
