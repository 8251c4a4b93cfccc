"""Answers in parts, by a live service, wherever its model runs."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live import Live, live, wait_for
from tests.support.rendering import render
from tests.support.updating import own_tests, put_model, python

MODEL = '''"""Counts."""

import os
import time
from collections.abc import Iterator

from pydantic import BaseModel

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "counting")


class Params(BaseModel):
    """The request's body."""

    pauses: list[float] = []


class Output(BaseModel):
    """How far it has counted."""

    count: int
    pid: int
    filler: str = 1000 * "a"


EXAMPLE: dict[str, object] = {"pauses": []}


class Model:
    """Counts, with a pause before each number."""

    def __init__(self, device: str) -> None:
        """Load nothing."""

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Return the last number."""
        return [self._output(len(item.params.pauses)) for item in inputs]

    def stream(self, item: Input[Params]) -> Iterator[Output]:
        """Yield the numbers."""
        for number, pause in enumerate(item.params.pauses):
            if pause < 0:
                os._exit(1)
            time.sleep(pause)
            with open("counted", "a") as counted:
                print(number, file=counted)
            yield self._output(number)

    def _output(self, count: int) -> Output:
        return Output(count=count, pid=os.getpid())
'''
MANY = 50_000  # parts of 1 kB: more than the system takes for a client that does not read
wait = partial(wait_for, seconds=60)


@pytest.fixture(
    scope="module",
    params=[
        ((), ()),
        (("batching",), ()),
        (("isolation",), ()),
        (("isolation",), ("model-engine",)),
    ],
    ids=str,
)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a service whose model can stream."""
    features, contracts = request.param
    answers: dict[str, Any] = {"model_type": "custom", "input_kind": "json"}
    answers |= {"features": ["streaming", *features], "contracts": list(contracts)}
    folder = render(tmp_path_factory.mktemp("streaming") / "service", answers)
    put_model(folder, MODEL)
    return folder


@contextmanager
def running(project: Path, log: Path, **env: str) -> Iterator[Live]:
    """Run the service until it is ready."""
    (project / "counted").unlink(missing_ok=True)
    with live(project, python(), log, WARMUP="0", **env) as service:
        service.ready()
        yield service


def route(service: Live) -> str:
    """Return the address of what answers in parts: Model Engine's, where the service has that."""
    paths = service.client.get("/openapi.json").json()["paths"]
    return service.url + ("/stream" if "/stream" in paths else "/infer/stream")


def stream(service: Live, *pauses: float) -> list[dict[str, Any]]:
    """Return the data of the events that a request gets."""
    response = httpx.post(route(service), json={"pauses": pauses}, timeout=60)
    response.raise_for_status()
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def counted(project: Path) -> int:
    """Return how many parts were made."""
    file = project / "counted"
    return len(file.read_text().split()) if file.exists() else 0


def test_requirements(project: Path) -> None:
    """The service keeps the requirements of streams, and the others' tests know of it."""
    result = own_tests(
        project, "tests/conformance/test_conformance.py", "-k", "test_ms_61_ or test_ms_24_answer"
    )
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout.splitlines()[-1]


def test_one_by_one(project: Path, tmp_path: Path) -> None:
    """Streams and other requests take turns; each gets its own answer."""
    with running(project, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        streams = [pool.submit(stream, service, *[0.01] * number) for number in range(1, 8)]
        answers = [
            pool.submit(service.client.post, "/infer", json={"pauses": [0.0] * number})
            for number in range(8)
        ]
        for number, parts in enumerate(streams, 1):
            assert [part.get("count") for part in parts.result()] == [*range(number), None]
        assert [answer.result().json()["count"] for answer in answers] == list(range(8))


def test_nothing_to_say(project: Path, tmp_path: Path) -> None:
    """A stream without a part is one that ends well."""
    with running(project, tmp_path / "log") as service:
        assert stream(service) == [{}]


def test_client_leaves(project: Path, tmp_path: Path) -> None:
    """The model is stopped, and the next client is served at once."""
    with running(project, tmp_path / "log") as service:
        request = {"pauses": [0.05] * 2000}
        with httpx.stream("POST", route(service), json=request) as response:
            next(response.iter_lines())
        assert [part.get("count") for part in stream(service, 0)] == [0, None]
        assert counted(project) < 100


def test_client_does_not_read(project: Path, tmp_path: Path) -> None:
    """A stream that nobody reads does not hold the model up."""
    with running(project, tmp_path / "log") as service:
        request = {"pauses": [0.0] * MANY}
        with httpx.stream("POST", route(service), json=request):
            assert [part.get("count") for part in stream(service, 0)] == [0, None]
        assert counted(project) < MANY


def test_hangs_on_the_way(project: Path, tmp_path: Path) -> None:
    """The client is told at the deadline of the part; then others are served."""
    with running(project, tmp_path / "log", INFER_TIMEOUT_SECONDS="1") as service:
        pid = stream(service, 0)[0]["pid"]
        first, failure = stream(service, 0, 4)
        assert first["count"] == 0
        assert failure == {"status": 504, "detail": "Inference timed out."}
        wait(lambda: service.client.get("/ready").status_code == 200)
        assert (stream(service, 0)[0]["pid"] == pid) == (pid == service.process.pid)


def test_first_part_is_too_late(project: Path, tmp_path: Path) -> None:
    """Before the first part the status is a real one."""
    with running(project, tmp_path / "log", INFER_TIMEOUT_SECONDS="1") as service:
        response = service.client.post(route(service), json={"pauses": [3]})
        assert response.status_code == 504


@pytest.mark.parametrize("project", [(("isolation",), ())], ids=str, indirect=True)
def test_crash_on_the_way(project: Path, tmp_path: Path) -> None:
    """In a process of its own the model may die; the client is told, and the next one is served."""
    with running(project, tmp_path / "log") as service:
        first, failure = stream(service, 0, -1)
        assert (first["count"], failure["status"]) == (0, 500)
        assert [part.get("count") for part in stream(service, 0)] == [0, None]


@pytest.mark.parametrize("project", [(("isolation",), ())], ids=str, indirect=True)
def test_death_between_streams(project: Path, tmp_path: Path) -> None:
    """A model that dies when it has nothing to do is replaced before the next stream."""
    with running(project, tmp_path / "log") as service:
        os.kill(stream(service, 0)[0]["pid"], signal.SIGKILL)
        wait(lambda: service.client.get("/ready").status_code == 503)
        wait(lambda: service.client.get("/ready").status_code == 200)
        for _ in range(5):
            assert [part.get("count") for part in stream(service, 0, 0)] == [0, 1, None]
        assert service.log.count("Loading the model again") == 1
