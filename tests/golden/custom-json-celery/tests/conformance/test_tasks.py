"""Answers later (MS-74), asked of a live process, or of the deployment at --url."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance.plugin import Launcher, Service
from conformance.samples import Request, Samples
from conformance.test_conformance import ask

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def _worker(service: Service, request: pytest.FixtureRequest) -> None:
    """Start a worker beside the service; a deployment has workers of its own."""
    if service.process:
        request.getfixturevalue("launcher").start_worker(service)


@pytest.fixture(scope="module")
def faked(launcher: Launcher, answer: str) -> Service:
    """Return a service with a fake model."""
    running = launcher.start_fake(answer, TASK_CONCURRENCY="1")
    running.wait_until("/ready", 200)
    launcher.start_worker(running)
    return running


def submit(service: Service, request: Request, **headers: str) -> httpx.Response:
    """Send a request for an endpoint, to be answered later."""
    given = request.get("headers", {}) | {name.replace("_", "-"): x for name, x in headers.items()}
    return ask(service, request | {"url": f"{request['url']}/tasks", "headers": given})


def accepted(service: Service, request: Request, **headers: str) -> str:
    """Send it, and return where the task is."""
    response = submit(service, request, **headers)
    assert response.status_code == 202, response.text
    location = response.headers["Location"]
    assert location.endswith(f"{request['url']}/tasks/{response.json()['id']}")
    assert int(response.headers["Retry-After"]) > 0
    return str(location)


def ended(service: Service, location: str) -> dict[str, Any]:
    """Return a task when it has ended."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        task: dict[str, Any] = service.client.get(location, params={"wait": 5}).json()
        if task["status"] not in ("queued", "running"):
            return task
    pytest.fail(f"The task has not ended: {task}")


def test_ms_74_answered(service: Service, samples: Samples) -> None:
    """A task is accepted, found, listed, and answered as the endpoint answers."""
    location = accepted(service, samples.valid)
    task = ended(service, location)
    assert (task["status"], task["error"]) == ("succeeded", None)
    result = service.client.get(f"{location}/result")
    own = ask(service, samples.valid)
    kinds = [each.headers["Content-Type"] for each in (result, own)]
    assert (result.status_code, kinds[0]) == (own.status_code, kinds[1])
    listed = service.client.get(f"{samples.route}/tasks").json()["tasks"]
    assert task["id"] in [each["id"] for each in listed]


def test_ms_74_same_answer(faked: Service, samples: Samples) -> None:
    """The answer is the same to the byte; a request that prefers it becomes a task as well."""
    own = ask(faked, samples.valid)
    location = accepted(faked, samples.valid)
    ended(faked, location)
    assert faked.client.get(f"{location}/result").content == own.content
    headers = samples.valid.get("headers", {}) | {"Prefer": "respond-async"}
    preferred = ask(faked, samples.valid | {"headers": headers})
    assert preferred.status_code == 202


def test_ms_74_rejected(service: Service, samples: Samples) -> None:
    """What the endpoint rejects is rejected before it is accepted."""
    for request in samples.rejected:
        assert submit(service, request).status_code == ask(service, request).status_code
    for path in ("none", "none/result"):
        assert service.client.get(f"{samples.route}/tasks/{path}").status_code == 404


def test_ms_74_failed(faked: Service, samples: Samples) -> None:
    """A task fails with the status that its request would have had, and tells no more."""
    faked.predict_does("raise KeyError('inside')")
    task = ended(faked, accepted(faked, samples.valid))
    faked.predict_works()
    assert (task["status"], task["error"]["status"], task["result"]) == ("failed", 500, None)
    assert "inside" not in str(task)


def test_ms_74_one_key_one_task(faked: Service, samples: Samples) -> None:
    """A request that comes again with its key is the same task; with another body it is 422."""
    location = accepted(faked, samples.valid, Idempotency_Key="once")
    assert accepted(faked, samples.valid, Idempotency_Key="once") == location
    other = samples.changed()
    if other != samples.valid:  # there may be nothing to change
        assert submit(faked, other, Idempotency_Key="once").status_code == 422
    assert ended(faked, location)["attempts"] == 1


def test_ms_74_canceled(faked: Service, samples: Samples) -> None:
    """A task that has not ended can be canceled; it is never answered."""
    faked.predict_hangs()
    runs, waits = accepted(faked, samples.valid), accepted(faked, samples.valid)
    faked.wait_for_call()
    for location in (waits, runs):
        assert faked.client.delete(location).json()["status"] == "canceled"
    faked.predict_works()
    ended(faked, accepted(faked, samples.valid))  # which comes after them
    for location in (waits, runs):
        assert faked.client.get(location).json()["status"] == "canceled"
        assert faked.client.delete(location).status_code == 409
        assert faked.client.get(f"{location}/result").status_code == 409


def test_ms_74_kept(launcher: Launcher, answer: str, samples: Samples, tmp_path: Path) -> None:
    """What was accepted is answered after the process was killed, and says that it ran twice."""
    env = {"TASKS_DIR": str(tmp_path), "TASK_CONCURRENCY": "1", "TASK_LEASE_SECONDS": "2"}
    first = launcher.start_fake(answer, **env)
    first.wait_until("/ready", 200)
    launcher.start_worker(first)
    first.predict_hangs()
    locations = [accepted(first, samples.valid) for _ in range(2)]
    first.wait_for_call()
    first.kill()
    second = launcher.start_fake(answer, **env)
    second.wait_until("/ready", 200)
    launcher.start_worker(second)
    tasks = [ended(second, location) for location in locations]
    assert [task["status"] for task in tasks] == ["succeeded"] * 2
    assert [task["attempts"] for task in tasks] == [2, 1]
