"""SageMaker's contract, asked of a live process, or of the deployment at --url."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conformance.fake_model import NUMBER
from conformance.plugin import Launcher, Service
from conformance.samples import Request, Samples
from conformance.test_conformance import (
    ask,
    ask_together,
    assert_tells_nothing,
    detail,
    failing,
    is_alike,
    numbers_in,
)

SCRIPT = """
from fastapi import Request, Response
from model_hosting_container_standards import sagemaker

@sagemaker.custom_ping_handler
async def my_ping(request: Request) -> Response:
    return Response(status_code=201)

@sagemaker.custom_invocation_handler
async def my_invocations(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}
"""


def to_invocations(request: Request) -> Request:
    """Return a request of the service's own route as SageMaker sends it."""
    return request | {"url": "/invocations"}


def in_base64(samples: Samples) -> Request:
    """Return the valid request as one JSON document."""
    return {"url": "/invocations", "json": samples.document()}


def test_ms_65_invocations(service: Service, samples: Samples) -> None:
    """Each form of a request gets the answer that the service's own route gives."""
    expected = ask(service, samples.valid).raise_for_status().json()
    for request in (to_invocations(samples.valid), in_base64(samples)):
        assert is_alike(ask(service, request).raise_for_status().json(), expected)
    if samples.raw:
        raw = ask(service, to_invocations(samples.raw)).raise_for_status().json()
        assert is_alike(raw, ask(service, samples.raw).json())


def test_ms_65_refusals(service: Service, samples: Samples) -> None:
    """What is wrong with a request is told as the service's own route tells it."""
    for request in samples.rejected:
        expected, response = ask(service, request), ask(service, to_invocations(request))
        assert (response.status_code, response.json()) == (expected.status_code, expected.json())
    document = {"url": "/invocations", "headers": {"Content-Type": "application/json"}}
    for content in (b"{", b"\xff", b"[" * 100_000):
        response = ask(service, document | {"content": content})
        assert (response.status_code, "not JSON" in response.text) == (400, True)
    assert ask(service, document | {"content": b"[]"}).status_code == 422


def test_ms_65_ping(launcher: Launcher, service: Service, samples: Samples) -> None:
    """/ping is 503 while the model is loaded, then 200: also with a full queue, which is a 503."""
    body = ask(service, samples.valid).raise_for_status().json()
    answer = json.dumps(body["outputs"][0] if samples.several else body)
    load = "while not (folder / 'go').exists(): time.sleep(0.02)"
    running = launcher.start_fake(answer, load=load, MAX_QUEUE_SIZE="1")
    running.wait_until("/health", 200)
    assert detail(running.client.get("/ping")) == "Model not loaded yet."
    (running.folder / "go").touch()
    running.wait_until("/ping", 200)
    running.predict_hangs()
    valid = to_invocations(samples.valid)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, running, valid)]
        running.wait_for_call()
        calls.append(pool.submit(ask, running, valid))
        running.wait_until("/ready", 503)
        refused = ask(running, valid)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert running.client.get("/ping").status_code == 200
        running.predict_works()
        assert [call.result().status_code for call in calls] == [200, 200]


def test_ms_65_override(launcher: Launcher, answer: str, tmp_path: Path) -> None:
    """The handlers in model.py win over the service's own, which stays as it is."""
    (tmp_path / "model.py").write_text(SCRIPT)
    running = launcher.start_fake(answer, SAGEMAKER_MODEL_PATH=str(tmp_path))
    running.wait_until("/ping", 201)
    running.wait_until("/ready", 200)
    assert running.client.post("/invocations", content=b"12345").json() == {"bytes": 5}
    assert "Model loaded in" in running.log


def test_ms_65_broken_script(launcher: Launcher, answer: str, tmp_path: Path) -> None:
    """A script that cannot be used ends the start with 1, and one line that says where and why."""
    (tmp_path / "model.py").write_text("import json\nmistake = nothing\n")
    running = launcher.start_fake(answer, SAGEMAKER_MODEL_PATH=str(tmp_path))
    assert running.wait_for_exit() == 1
    [line] = running.log.splitlines()
    for words in ("CRITICAL", "name 'nothing' is not defined", "model.py, line 2"):
        assert words in line


def test_ms_68_at_invocations(numbering: Service, samples: Samples) -> None:
    """Requests that wait together get each its own answer, in either form."""

    def ask_one(number: int) -> set[int]:
        request = to_invocations(samples.numbered(number))
        if number % 2:
            request = in_base64(samples)
            request["json"] = request["json"] | {NUMBER: number}
        return numbers_in(ask(numbering, request), samples)

    assert ask_together(numbering, samples, ask_one) == [{number} for number in range(1, 9)]


def test_ms_70_at_invocations(numbering: Service, samples: Samples) -> None:
    """What the model fails with is not in the answer."""
    for _ in failing(numbering):
        response = ask(numbering, to_invocations(samples.valid))
        assert response.is_server_error
        assert_tells_nothing(response.text)
