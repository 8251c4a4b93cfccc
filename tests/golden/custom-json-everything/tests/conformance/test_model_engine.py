"""Model Engine's contract, asked of a live process as its forwarder does."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    numbers_in,
)


@pytest.fixture(scope="module")
def document(samples: Samples) -> Any:
    """Return the valid request as one JSON document, its files in base64."""
    return samples.document()


@pytest.mark.parametrize(
    "wrap", [lambda fields: fields, lambda fields: {"args": fields}], ids=["plain", "args"]
)
def test_ms_66_predict(
    service: Service,
    samples: Samples,
    document: Any,
    wrap: Callable[[Any], Any],
) -> None:
    """/predict takes the fields as they are, or under "args", and answers as the own route does.

    That is JSON, whatever a client takes.
    """
    response = service.client.post("/predict", json=wrap(document), headers={"Accept": "*/*"})
    assert response.headers["content-type"] == "application/json"
    assert is_alike(response.raise_for_status().json(), ask(service, samples.valid).json())


def test_ms_66_errors_are_json(service: Service, document: Any) -> None:
    """Every error is a JSON object with its reason: the forwarder reads the body of each."""
    client, text = service.client, json.dumps(document)
    refused = {
        "empty": (400, client.post("/predict", headers={"Content-Type": "application/json"})),
        "in tatters": (400, as_json(service, text[:-1])),
        "no document": (422, client.post("/predict", json={"args": 1})),
        "no JSON": (415, client.post("/predict", content=text, headers={"Content-Type": "a/b"})),
        "GET": (405, client.get("/predict")),
        "no such path": (404, client.post("/predict/no-such", json=document)),
    }
    for name, (status, response) in refused.items():
        assert response.status_code == status, name
        assert response.json()["detail"], name


def as_json(service: Service, text: str) -> httpx.Response:
    """Send a text that is said to be JSON."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return service.client.post("/predict", content=text, headers=headers)


def test_ms_66_readyz(launcher: Launcher, answer: str) -> None:
    """/readyz is 200 when requests would be served, and not before: the forwarder waits for it."""
    running = launcher.start_fake(answer, load=HELD)
    running.wait_until("/health", 200)
    assert running.client.get("/readyz").status_code == 503
    (running.folder / "go").touch()
    assert running.wait_until("/readyz", 200).json() == {"status": "ready"}


def test_ms_66_full(launcher: Launcher, answer: str, samples: Samples, document: Any) -> None:
    """With a full queue a request is 429 before its body is looked at."""
    running = launcher.start_fake(answer, MAX_QUEUE_SIZE="1")
    running.wait_until("/readyz", 200)
    running.predict_hangs()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(running.client.post, "/predict", json=document)]
        running.wait_for_call()
        calls.append(pool.submit(running.client.post, "/predict", json=document))
        running.wait_until("/readyz", 503)
        refused = as_json(running, "no JSON")
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 0) == (429, True)
        assert refused.json() == {"detail": "Too many requests are waiting."}
        assert ask(running, samples.valid).status_code == 503
        running.predict_works()
        assert [call.result().status_code for call in calls] == [200, 200]


def test_ms_66_stream(
    service: Service, launcher: Launcher, answer: str, samples: Samples, document: Any
) -> None:
    """Where the model answers in parts, /stream sends the events of the own route."""
    own = f"{samples.route}/stream"
    if own not in service.client.get("/openapi.json").json()["paths"]:
        pytest.skip("the model answers in one piece")
    running = launcher.start_fake(answer)
    running.wait_until("/readyz", 200)
    response = running.client.post("/stream", json={"args": document})
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert response.text == running.client.post(own, json=document).text
    assert response.text.count("data: ") == 4
    assert running.client.post("/stream", json={"args": 1}).status_code == 422


def test_ms_68_at_predict(numbering: Service, samples: Samples, document: Any) -> None:
    """Requests that wait together get each its own answer."""

    def ask_one(number: int) -> set[int]:
        fields = document | {NUMBER: number}
        return numbers_in(numbering.client.post("/predict", json={"args": fields}), samples)

    assert ask_together(numbering, samples, ask_one) == [{number} for number in range(1, 9)]


def test_ms_70_at_predict(numbering: Service, document: Any) -> None:
    """What the model fails with is not in the answer."""
    for _ in failing(numbering):
        response = numbering.client.post("/predict", json=document)
        assert response.is_server_error
        assert_tells_nothing(response.text)
