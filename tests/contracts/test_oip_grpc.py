"""The Open Inference Protocol over gRPC, beside what its clients see: its life as a server."""

import base64
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import driver
from tests.support.live import Live, live, wait_for
from tests.support.scripted_model import HANG, calls, make, post, queue_behind, running
from tests.support.updating import change, python

pytestmark = pytest.mark.xdist_group("open-inference")

PATIENCE_SECONDS = 60
SERVICE = "inference.GRPCInferenceService"
wait = partial(wait_for, seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service whose model does what a request says."""
    folder = tmp_path_factory.mktemp("grpc") / "service"
    return make(folder, contracts=["oip-grpc"], features=["batching", "replicas"])


@pytest.fixture
def service(project: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    """Return it, started with the variables that the test is marked with."""
    env = {"MAX_QUEUE_SIZE": "2", "MAX_UPLOAD_MB": "1"} | getattr(request, "param", {})
    with running(project, tmp_path / "log", **env) as service:
        yield service


def address_of(service: Live) -> str:
    """Return host and port."""
    return f"127.0.0.1:{service.grpc_port}"


def message(number: int = 0, orders: str = "") -> dict[str, Any]:
    """Return a request."""
    return {
        "model_name": "my-model-server",
        "inputs": [
            {
                "name": "number",
                "datatype": "INT64",
                "shape": [1],
                "contents": {"int64_contents": [number]},
            }
        ],
        "parameters": {"orders": {"string_param": orders}},
    }


def together(outcome: dict[str, Any]) -> int:
    """Return how many requests shared the model's call."""
    message = outcome["message"]
    place = [x["name"] for x in message["outputs"]].index("together")
    return int.from_bytes(base64.b64decode(message["raw_output_contents"][place]), "little")


def test_ready_with_the_port(project: Path, tmp_path: Path) -> None:
    """The service is ready when the port for gRPC is open, too."""
    slow = shutil.copytree(project, tmp_path / "service")
    change(
        slow / "serving" / "contracts" / "oip" / "grpc_server.py",
        "    import grpc.aio\n",
        "    time.sleep(2)\n    import grpc.aio\n",
    )
    change(
        slow / "serving" / "contracts" / "oip" / "grpc_server.py",
        "import asyncio\n",
        "import asyncio\nimport time\n",
    )
    with live(slow, python(), tmp_path / "log", WARMUP="0") as service:
        service.ready()
        socket.create_connection(("127.0.0.1", service.grpc_port), PATIENCE_SECONDS).close()


def test_crowd(service: Live, project: Path) -> None:
    """Requests of both protocols share batches and places; who leaves makes room for others."""
    grpc, address = driver("bare_grpc"), address_of(service)
    with ThreadPoolExecutor() as pool:
        sent = queue_behind(pool, service, project, [(1, "")])
        second = grpc("begin", address, message(2))
        wait(lambda: service.client.get("/ready").status_code == 503)
        crowded = grpc("infer", address, message(3))
        assert crowded == {"code": "UNAVAILABLE", "words": "Too many requests are waiting."}
        health = grpc("health", address)
        assert health == {"code": "OK", "status": "NOT_SERVING"}
        (project / "hang").unlink()
        assert together(grpc("end", second)) == 2
        assert [answer.result().status_code for answer in sent] == [200, 200]
        assert calls(project)[-1] == [1, 2]
        # A client that gives up, or whose time is over, leaves its place to others.
        sent = queue_behind(pool, service, project, [])
        left = grpc("begin", address, message(4))
        late = grpc("infer", address, message(5), seconds=0.5)
        assert late["code"] == "DEADLINE_EXCEEDED"
        grpc("cancel", left)
        assert grpc("end", left)["code"] == "CANCELLED"
        places = [grpc("begin", address, message(number)) for number in (6, 7)]
        wait(lambda: service.client.get("/ready").status_code == 503)
        (project / "hang").unlink()
        assert {grpc("end", place)["code"] for place in places} == {"OK"}
        assert sent[0].result().status_code == 200
        assert calls(project)[-1] == [6, 7]


def test_refusals(service: Live) -> None:
    """Each failure has its status, and the words that it has over HTTP."""
    grpc, address = driver("bare_grpc"), address_of(service)
    infer = partial(grpc, "infer", address)
    assert infer(message())["code"] == "OK"
    assert infer(message() | {"model_name": "other"})["code"] == "NOT_FOUND"
    unknown = infer(message() | {"model_version": "7"})
    assert unknown["words"] == "Request for unknown model: there is my-model-server, version 1."
    wrong = infer(message() | {"parameters": {"number": {"string_param": "x"}}, "inputs": []})
    assert wrong["code"] == "INVALID_ARGUMENT"
    assert wrong["words"].startswith("number: Input should be a valid integer")
    raw = infer(message() | {"raw_input_contents": ["", ""]})
    assert raw["words"] == "raw_input_contents has 2 elements for 1 inputs."
    assert infer(message(orders="#" * 2**20))["code"] == "OK"
    large = infer(message(orders="#" * 2**21))
    assert large["code"] == "RESOURCE_EXHAUSTED"
    assert grpc("send", address, "/////w==")["words"] == "The message cannot be read."
    broken = infer(message(orders="raise ValueError('secret')"))
    assert broken["code"] == "INTERNAL"
    assert "secret" not in broken["words"]
    assert broken["words"].split()[-1].strip(".") in service.log
    assert "BadInput" not in service.log
    memory = infer(message(orders="raise MemoryError"))
    assert memory == {"code": "UNAVAILABLE", "words": "Out of memory."}


@pytest.mark.parametrize("service", [{"INFER_TIMEOUT_SECONDS": "1"}], indirect=True)
def test_deadline(service: Live, project: Path) -> None:
    """INFER_TIMEOUT_SECONDS holds for gRPC, too."""
    (project / "hang").touch()
    slow = driver("bare_grpc")("infer", address_of(service), message(orders=HANG))
    (project / "hang").unlink()
    assert slow == {"code": "DEADLINE_EXCEEDED", "words": "Inference timed out."}


@pytest.mark.parametrize("service", [{"DRAIN_SECONDS": "3"}], indirect=True)
def test_end(service: Live, project: Path) -> None:
    """SIGTERM is told to those who watch; what came is answered; open calls do not hold it up."""
    grpc, address = driver("bare_grpc"), address_of(service)
    names = grpc("services", address)
    assert {"grpc.health.v1.Health", SERVICE} <= set(names)
    assert grpc("health", address, SERVICE) == {"code": "OK", "status": "SERVING"}
    assert grpc("health", address, "other")["code"] == "NOT_FOUND"
    watch, other = grpc("watch", address), grpc("watch", address, "other")
    wait(lambda: grpc("watched", watch) == ["SERVING"])
    wait(lambda: grpc("watched", other) == ["SERVICE_UNKNOWN"])
    (project / "hang").touch()
    call = grpc("begin", address, message(1, HANG))
    wait(lambda: calls(project) == [[1]])
    service.process.send_signal(signal.SIGTERM)
    wait(lambda: grpc("watched", watch) == ["SERVING", "NOT_SERVING"])
    waiting = grpc("begin", address, message(2))
    wait(lambda: "Shutting down" in service.log)
    (project / "hang").unlink()
    assert grpc("end", call)["code"] == "OK"
    assert grpc("end", waiting)["code"] == "OK"
    assert service.process.wait(PATIENCE_SECONDS) == 0
    wait(lambda: grpc("watched", watch) == ["SERVING", "NOT_SERVING", "end"])
    assert "Traceback" not in service.log


def test_port_is_taken(project: Path, tmp_path: Path) -> None:
    """The process ends with 1, and says why."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104 -- as the service does
        taken.listen()
        port = taken.getsockname()[1]
        with live(project, python(), tmp_path / "log", GRPC_PORT=str(port)) as service:
            assert service.process.wait(PATIENCE_SECONDS) == 1
    assert f"gRPC cannot be served on GRPC_PORT={port}: Failed to bind" in service.log
    assert "Traceback" not in service.log


def test_port_is_no_number(project: Path) -> None:
    """Nor does it start with what is no port."""
    result = subprocess.run(
        [python(), "main.py"],
        cwd=project,
        env={"GRPC_PORT": "http"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "GRPC_PORT must be a valid integer; not 'http'\n"


@pytest.mark.parametrize("service", [{"WORKERS": "2"}], indirect=True)
def test_two_servers(service: Live) -> None:
    """With WORKERS=2 both serve on the one port, and end together."""
    grpc, address = driver("bare_grpc"), address_of(service)
    assert post(service).status_code == 200
    assert grpc("infer", address, message())["code"] == "OK"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in service.log
