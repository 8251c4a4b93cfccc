"""Tasks: accepted, kept, and answered later, whatever happens to the process."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.cluster import running_redis, worker
from tests.support.environments import run, tool
from tests.support.live import Live, live, wait_for
from tests.support.scripted_model import (
    HANG,
    WAIT_SECONDS,
    calls,
    make,
    post,
    queue_behind,
    running,
)
from tests.support.updating import change, put_model, python

ROUTE = "/infer/tasks"
KEYS = ("a-key-of-the-first-owner", "a-key-of-the-second-owner")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
SECOND = """
@model_router.post("/second")
async def second(request: Request) -> Response:
    return await service.answer(request, parse)


app.include_router(create_tasks_router(service, "/second", parse, EXAMPLE))
# Your own endpoints, routers and middleware go here.
"""
FLIP = """
from pydantic import BaseModel

from serving import Decoder, Input, Picture

MODEL_NAME = "flip"
DECODER = Decoder()
EXAMPLE = {"file": "example.png"}


class Params(BaseModel):
    pass


Output = Picture


class Model:
    def __init__(self, device: str) -> None:
        self.device = device

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        return [Picture.of(item.image.transpose(2)) for item in inputs]
"""
SCRIPT = """
from fastapi.testclient import TestClient

from main import app

for number in (1, 2):
    with TestClient(app) as client:
        location = client.post("/infer/tasks", json={}).headers["location"]
        assert client.get(location, params={"wait": 30}).json()["status"] == "succeeded"
        assert len(client.get("/infer/tasks").json()["tasks"]) == number
"""
SCRIPT_OF_NONE = """
from fastapi.testclient import TestClient

from main import app

try:
    with TestClient(app):
        pass
except OSError as error:
    print(type(error).__name__)
"""
STREAMING = (
    "    def predict(self",
    """    def stream(self, item: Input[Params]) -> "Iterator[Output]":
        for number in range(20):
            yield Output(number=number, pid=os.getpid(), together=1)
            time.sleep(0.1)

    def predict(self""",
)
VERIFY = """
import json, sys
from standardwebhooks import Webhook
for message in json.load(sys.stdin):
    Webhook(sys.argv[1]).verify(message["body"], message["headers"])
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service that keeps its tasks itself."""
    return make(tmp_path_factory.mktemp("local") / "service", predictions="local")


@pytest.fixture(scope="module")
def celery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a service that keeps its tasks on a cluster."""
    return make(tmp_path_factory.mktemp("celery") / "service", predictions="celery")


@pytest.fixture(scope="module", params=["local", "celery"])
def project(request: pytest.FixtureRequest) -> Path:
    """Return either, for what is the same with both."""
    found: Path = request.getfixturevalue(request.param)
    return found


@contextmanager
def started(project: Path, folder: Path, **env: str) -> Iterator[Live]:
    """Run the service, with its tasks in a folder of the test's own, and what does them."""
    with ExitStack() as held:
        env["TASKS_DIR"] = str(folder / "tasks")
        if (project / "serving/tasks/worker.py").exists():
            env = held.enter_context(running_redis(folder)).env | env
        service = held.enter_context(running(project, folder / "log", **env))
        if "REDIS_URL" in env:
            held.enter_context(worker(service, project, folder / "worker", **env))
        yield service


def files_of(folder: Path) -> list[Path]:
    """Return the files of all tasks: what they ask, and have answered."""
    return [
        path for path in (folder / "tasks").rglob("*") if path.suffix in (".request", ".answer")
    ]


@pytest.fixture(scope="module")
def service(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run the service for all tests that leave it as it is."""
    with started(project, tmp_path_factory.mktemp("tasks")) as found:
        yield found


def submit(service: Live, number: int = 0, orders: str = "", **headers: str) -> httpx.Response:
    """Send one request, to be answered later."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post(ROUTE, json={"number": number, "orders": orders}, headers=given)


def accepted(service: Live, number: int = 0, orders: str = "", **headers: str) -> str:
    """Return the id of a task that was accepted."""
    response = submit(service, number, orders, **headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def ended(service: Live, task_id: str) -> dict[str, Any]:
    """Return a task when it has ended."""
    found: dict[str, Any] = {}

    def look() -> bool:
        response = service.client.get(f"{ROUTE}/{task_id}", params={"wait": 5})
        assert response.status_code == 200, response.text
        found.update(response.json())
        return found["status"] not in ("queued", "running")

    wait_for(look, seconds=WAIT_SECONDS, complaint=lambda: service.log)
    return found


def test_answered_later(service: Live) -> None:
    """202 says where to look; there is then what the endpoint itself answers."""
    response = submit(service, 7, X_Request_ID="my-request")
    assert response.status_code == 202
    task = response.json()
    assert (task["status"], task["attempts"], task["result"]) == ("queued", 0, None)
    assert response.headers["location"] == f"{ROUTE}/{task['id']}"
    assert response.headers["retry-after"] == "1"
    done = ended(service, task["id"])
    assert (done["status"], done["attempts"], done["error"]) == ("succeeded", 1, None)
    assert done["created"] <= done["started"] <= done["ended"]
    own = post(service, 7)
    assert done["result"] == own.json()
    result = service.client.get(f"{ROUTE}/{task['id']}/result")
    assert (result.status_code, result.content) == (200, own.content)
    assert result.headers["content-type"] == own.headers["content-type"]
    lines = [line for line in service.log.splitlines() if task["id"] in line]
    assert len(lines) >= 3
    assert all("[my-request]" in line for line in lines if "access" not in line)


def test_prefer(service: Live) -> None:
    """A request to the endpoint itself becomes a task where it prefers that."""
    body = {"number": 8}
    response = service.client.post("/infer", json=body, headers={"Prefer": "wait=9, respond-async"})
    assert response.status_code == 202
    assert ended(service, response.json()["id"])["result"]["number"] == 8
    assert service.client.post("/infer", json=body, headers={"Prefer": "wait=9"}).status_code == 200


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (422, {"json": {"number": "x"}}),
        (400, {"content": b'{"number":'}),
        (400, {"content": b""}),
        (415, {"content": b"<a/>", "headers": {"content-type": "text/xml"}}),
        (413, {"content": b" " * 21 * 2**20, "headers": {"content-type": "application/json"}}),
    ],
)
def test_rejected(service: Live, status: int, request_: dict[str, Any]) -> None:
    """What the endpoint would reject is rejected before it is kept, in the same words."""
    before = service.client.get(ROUTE, params={"limit": 100}).json()
    response = service.client.post(ROUTE, **request_)
    own = service.client.post("/infer", **request_)
    assert (response.status_code, response.json()) == (status, own.json())
    assert service.client.get(ROUTE, params={"limit": 100}).json() == before


def test_failed(service: Live) -> None:
    """A task fails with the status and the body that its request would have had."""
    task_id = accepted(service, 1, "raise ValueError('broken')")
    task = ended(service, task_id)
    assert (task["status"], task["result"], task["attempts"]) == ("failed", None, 1)
    assert (task["error"]["status"], task["error"]["detail"]) == (500, "Internal server error.")
    result = service.client.get(f"{ROUTE}/{task_id}/result")
    assert result.status_code == 500
    assert result.json()["error_id"] in service.log


def test_unknown(service: Live) -> None:
    """What is not there is 404, whatever is asked of it."""
    for path in (f"{ROUTE}/none", f"{ROUTE}/none/result"):
        assert service.client.get(path).status_code == 404
    assert service.client.delete(f"{ROUTE}/none").status_code == 404
    for query in ({"cursor": "x"}, {"status": "lost"}, {"limit": 0}):
        assert service.client.get(ROUTE, params=query).status_code in (400, 422)
    wait = service.client.get(f"{ROUTE}/none", params={"wait": 3600})
    assert wait.status_code == 422


def test_list(project: Path, tmp_path: Path) -> None:
    """The newest come first, page by page, also while further ones come."""
    with started(project, tmp_path) as service:
        ids = [accepted(service, number) for number in range(5)]
        failed = accepted(service, 5, "raise ValueError")
        for task_id in (*ids, failed):
            ended(service, task_id)
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 4}
        while True:
            page = service.client.get(ROUTE, params=query).json()
            seen += [task["id"] for task in page["tasks"]]
            if not page["next_cursor"]:
                break
            query["cursor"] = page["next_cursor"]
            accepted(service, 9)
        assert seen == [failed, *reversed(ids)]
        page = service.client.get(ROUTE, params={"status": "failed"}).json()
        assert [task["id"] for task in page["tasks"]] == [failed]


def test_idempotency(project: Path, tmp_path: Path) -> None:
    """The same key is the same task, however often and fast it comes; for each body one key."""
    with started(project, tmp_path) as service, ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(accepted, service, 3, Idempotency_Key="mine") for _ in range(8)]
        [task_id] = {response.result() for response in sent}
        assert ended(service, task_id)["status"] == "succeeded"
        assert accepted(service, 3, Idempotency_Key="mine") == task_id
        assert calls(project) == [[3]]
        assert accepted(service, 3, Idempotency_Key="another") != task_id
        other = submit(service, 4, Idempotency_Key="mine")
        assert (other.status_code, "another request" in other.json()["detail"]) == (422, True)


def test_cancel(project: Path, tmp_path: Path) -> None:
    """What waits never starts, what runs has no answer, what has ended stays."""
    with started(project, tmp_path, TASK_CONCURRENCY="1") as service:
        (project / "hang").touch()
        runs = accepted(service, 1, HANG)
        wait_for(lambda: [1] in calls(project), seconds=WAIT_SECONDS)
        waits, stays = accepted(service, 2), accepted(service, 3)
        for task_id in (waits, runs):
            canceled = service.client.delete(f"{ROUTE}/{task_id}")
            assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
        (project / "hang").unlink()
        assert ended(service, stays)["status"] == "succeeded"
        assert calls(project) == [[1], [3]]
        for task_id in (waits, runs):
            assert ended(service, task_id)["status"] == "canceled"
            assert service.client.get(f"{ROUTE}/{task_id}/result").status_code == 409
        for task_id in (waits, runs, stays):
            assert service.client.delete(f"{ROUTE}/{task_id}").status_code == 409


def test_out_of_memory(project: Path, tmp_path: Path) -> None:
    """A task that runs out of memory is begun again, a few times, and tells each of them."""
    once = "if not os.path.exists('once'): open('once', 'w').close(); raise MemoryError"
    with started(project, tmp_path) as service:
        again = ended(service, accepted(service, 1, once))
        assert (again["status"], again["attempts"]) == ("succeeded", 2)
        never = ended(service, accepted(service, 2, "raise MemoryError"))
        assert (never["status"], never["attempts"]) == ("failed", 3)
        assert (never["error"]["status"], never["error"]["detail"]) == (503, "Out of memory.")
        assert calls(project) == [[1]] * 2 + [[2]] * 3


@pytest.mark.parametrize("predictions", ["local", "celery"])
def test_cancel_with_isolation(tmp_path: Path, predictions: str) -> None:
    """The call itself is killed, and the next one is answered."""
    project = make(tmp_path / "service", predictions=predictions, features=["isolation"])
    with started(project, tmp_path) as service:
        runs = accepted(service, 1, "import time; time.sleep(600)")
        wait_for(lambda: [1] in calls(project), seconds=WAIT_SECONDS)
        assert service.client.delete(f"{ROUTE}/{runs}").status_code == 200
        assert ended(service, accepted(service, 2))["status"] == "succeeded"
        assert "was killed" in service.log


def test_streams_with_isolation(tmp_path: Path) -> None:
    """A client that leaves a stream costs no process: the model goes on with the next request."""
    project = make(tmp_path / "service", predictions="local", features=["isolation", "streaming"])
    change(project / "inference.py", *STREAMING)
    with started(project, tmp_path) as service:
        first = post(service).json()["pid"]
        for _ in range(3):
            with service.client.stream("POST", "/infer/stream", json={}) as response:
                next(response.iter_lines())
            time.sleep(0.5)  # in which a call that is overdue would be killed
        assert post(service).json()["pid"] == first


def test_queues(local: Path, tmp_path: Path) -> None:
    """Tasks have a queue of their own: it is bounded, and takes what the other one rejects."""
    env = {"MAX_QUEUE_SIZE": "1", "MAX_QUEUED_TASKS": "2", "TASK_CONCURRENCY": "1"}
    with started(local, tmp_path, **env) as service, ThreadPoolExecutor() as pool:
        sent = queue_behind(pool, service, local, [(1, "")])
        assert post(service).status_code == 503
        taken = [accepted(service, 2)]
        wait_for(
            lambda: "tasks_queued 0.0" in service.client.get("/metrics").text, seconds=WAIT_SECONDS
        )
        taken += [accepted(service, number) for number in (3, 4)]
        full = submit(service, 5)
        assert (full.status_code, full.headers["retry-after"]) == (503, "10")
        assert "tasks_queued 2.0" in service.client.get("/metrics").text
        (local / "hang").unlink()
        assert [response.result().status_code for response in sent] == [200, 200]
        assert {ended(service, task_id)["status"] for task_id in taken} == {"succeeded"}
        metrics = service.client.get("/metrics").text
        assert 'tasks_ended_total{status="succeeded"} 3.0' in metrics
        assert "task_attempts_total 3.0" in metrics


def test_killed(local: Path, tmp_path: Path) -> None:
    """Whatever was accepted is answered after kill -9, and what ran twice says so."""
    with started(local, tmp_path, TASK_CONCURRENCY="2") as service:
        first = ended(service, accepted(service, 100))
        (local / "hang").touch()
        ids = [accepted(service, number, HANG) for number in range(6)]
        wait_for(lambda: [0] in calls(local), seconds=WAIT_SECONDS)
        service.process.kill()
        service.process.wait()
    with started(local, tmp_path) as service:
        tasks = [ended(service, task_id) for task_id in ids]
        assert [task["status"] for task in tasks] == ["succeeded"] * 6
        assert [task["result"]["number"] for task in tasks] == list(range(6))
        assert {task["attempts"] for task in tasks[2:]} == {1}
        assert tasks[0]["attempts"] == 2
        assert service.client.get(f"{ROUTE}/{first['id']}").json() == first


def test_killed_at_any_time(local: Path, tmp_path: Path) -> None:
    """Nothing that was accepted is lost, though the process dies again and again."""
    ids: list[str] = []
    for pause in (0.0, 0.05, 0.1, 0.2, 0.4):
        with started(local, tmp_path) as service:
            ids += [accepted(service, number) for number in range(8)]
            time.sleep(pause)
            service.process.kill()
            service.process.wait()
    with started(local, tmp_path, TASK_ATTEMPTS="9") as service:
        assert {ended(service, task_id)["status"] for task_id in ids} == {"succeeded"}
        assert len(service.client.get(ROUTE, params={"limit": 100}).json()["tasks"]) == len(ids)


def test_poison(local: Path, tmp_path: Path) -> None:
    """A task that ends the process is given up at last; those beside it are answered."""
    now = local / "now"  # before it is there, a service has not ended and is seen to start
    poison, ids = "", []
    for _ in range(3):
        with started(local, tmp_path) as service:
            if not poison:
                (local / "hang").touch()
                ids = [accepted(service, number, HANG) for number in range(2)]
                wait = "while not os.path.exists('now'): time.sleep(0.02)"
                poison = accepted(service, 2, f"{wait}\nos._exit(9)")
                ids += [accepted(service, number) for number in (3, 4)]
                (local / "hang").unlink()
            now.touch()
            service.process.wait(WAIT_SECONDS)
            now.unlink()
    with started(local, tmp_path) as service:
        assert [ended(service, task_id)["status"] for task_id in ids] == ["succeeded"] * 4
        task = ended(service, poison)
        assert (task["status"], task["attempts"]) == ("failed", 3)
        assert task["error"]["detail"].startswith("Begun 3 times;")


def test_stopped(local: Path, tmp_path: Path) -> None:
    """SIGTERM lets what runs end; what waits is answered after the next start, each once."""
    with started(local, tmp_path, TASK_CONCURRENCY="1") as service:
        (local / "hang").touch()
        ids = [accepted(service, number, HANG) for number in range(3)]
        wait_for(lambda: [0] in calls(local), seconds=WAIT_SECONDS)
        service.process.terminate()
        time.sleep(1)
        (local / "hang").unlink()
        assert service.process.wait(WAIT_SECONDS) == 0
        assert calls(local) == [[0]]
    with started(local, tmp_path) as service:
        tasks = [ended(service, task_id) for task_id in ids]
        assert [(task["status"], task["attempts"]) for task in tasks] == [("succeeded", 1)] * 3
        assert sorted(calls(local)) == [[1], [2]]  # several are asked at once


def test_two_processes(local: Path, tmp_path: Path) -> None:
    """The second is not ready before the first has ended; then it goes on with its tasks."""
    with started(local, tmp_path) as first:
        (local / "hang").touch()
        task_id = accepted(first, 1, HANG)
        log = tmp_path / "second"
        env = {"TASKS_DIR": str(tmp_path / "tasks"), "WARMUP": "0"}
        with live(local, python(), log, **env) as second:
            wait_for(lambda: "Another process has the tasks" in second.log, seconds=WAIT_SECONDS)
            wait_for(lambda: "Model loaded" in second.log, seconds=WAIT_SECONDS)
            assert second.client.get("/ready").status_code == 503
            refused = submit(second, 2)
            assert (refused.status_code, "tasks" in refused.json()["detail"]) == (503, True)
            assert post(second, 3).status_code == 200
            first.process.kill()
            first.process.wait()
            (local / "hang").unlink()
            second.ready()
            assert ended(second, task_id)["status"] == "succeeded"
            second.process.terminate()
            assert second.process.wait(WAIT_SECONDS) == 0


def test_full_disk(local: Path, tmp_path: Path) -> None:
    """What cannot be kept is not accepted; what was accepted is answered when there is room."""
    with started(local, tmp_path, TASK_CONCURRENCY="1") as service:
        (local / "hang").touch()
        kept = accepted(service, 1, HANG)
        wait_for(lambda: [1] in calls(local), seconds=WAIT_SECONDS)
        pid = str(service.process.pid)
        room = (tmp_path / "tasks/tasks.db-wal").stat().st_size  # for the log, not for the table
        run(["prlimit", "--pid", pid, f"--fsize={room}:unlimited"])
        refused = submit(service, 2, "#" * room)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert len(service.client.get(ROUTE).json()["tasks"]) == 1
        assert len(list((tmp_path / "tasks/files").iterdir())) == 1
        (local / "hang").unlink()
        wait_for(lambda: "trying again" in service.log, seconds=WAIT_SECONDS)
        assert service.client.get("/ready").status_code == 200
        run(["prlimit", "--pid", pid, "--fsize=unlimited:unlimited"])
        assert ended(service, kept)["status"] == "succeeded"
        assert ended(service, accepted(service, 3))["status"] == "succeeded"
        assert calls(local) == [[1], [3]]


def test_expiry(project: Path, tmp_path: Path) -> None:
    """After RESULT_TTL_HOURS a task is gone, with all that was kept of it."""
    with started(project, tmp_path, RESULT_TTL_HOURS="0.0005") as service:
        task_id = accepted(service, 1)
        path = f"{ROUTE}/{task_id}"
        wait_for(
            lambda: service.client.get(path).status_code == 404,
            seconds=WAIT_SECONDS,
            complaint=lambda: service.log,
        )
        wait_for(lambda: not files_of(tmp_path), seconds=WAIT_SECONDS)
        assert service.client.get(f"{path}/result").status_code == 404


def test_unusable_folder(local: Path, tmp_path: Path) -> None:
    """A folder that cannot be used ends the start, and the log says which."""
    (tmp_path / "file").touch()
    env = {"TASKS_DIR": str(tmp_path / "file/tasks")}
    with live(local, python(), tmp_path / "log", **env) as service:
        assert service.process.wait(WAIT_SECONDS) == 1
        assert f"The tasks cannot be kept in {tmp_path / 'file/tasks'}" in service.log


@pytest.mark.parametrize("predictions", ["local", "celery"])
def test_owners(tmp_path: Path, predictions: str) -> None:
    """Nobody sees, cancels or repeats another's tasks, and nobody without a key sees any."""
    project = make(tmp_path / "service", predictions=predictions, auth="api-key", features=[])
    first, second = ({"X_API_Key": key} for key in KEYS)
    with started(project, tmp_path, API_KEYS=",".join(KEYS)) as service:
        assert submit(service).status_code == 401
        task_id = accepted(service, 1, Idempotency_Key="k", **first)
        assert accepted(service, 1, Idempotency_Key="k", **second) != task_id
        path = f"{ROUTE}/{task_id}"
        assert service.client.get(path).status_code == 401
        assert service.client.get(ROUTE).status_code == 401
        theirs, own = ({"X-API-Key": key} for key in reversed(KEYS))
        for other in (path, f"{path}/result"):
            assert service.client.get(other, headers=theirs).status_code == 404
        assert service.client.delete(path, headers=theirs).status_code == 404
        listed = service.client.get(ROUTE, headers=own).json()["tasks"]
        assert [task["id"] for task in listed] == [task_id]
        task = service.client.get(path, headers=own, params={"wait": 9})
        assert (task.status_code, task.json()["status"]) == (200, "succeeded")


@dataclass
class Receiver:
    """Somebody who wants to be told; answers with these statuses, then with 200."""

    url: str
    statuses: list[int]
    messages: list[dict[str, Any]] = field(default_factory=list)


def test_lost_file(project: Path, tmp_path: Path) -> None:
    """A task whose file was damaged has failed, and says why; the others are answered."""
    with started(project, tmp_path, TASK_CONCURRENCY="1") as service:
        (project / "hang").touch()
        ids = [accepted(service, 0, HANG), *(accepted(service, number) for number in range(1, 4))]
        files = {path.name.partition(".")[0]: path for path in files_of(tmp_path)}
        files[ids[1]].unlink()
        files[ids[2]].write_bytes(b"\0" * 100)
        (project / "hang").unlink()
        tasks = [ended(service, task_id) for task_id in ids]
        assert [task["status"] for task in tasks] == ["succeeded", "failed", "failed", "succeeded"]
        assert tasks[1]["error"] == {"status": 500, "detail": "What this task asked is lost."}


@contextmanager
def receiver(*statuses: int) -> Iterator[Receiver]:
    """Run a server that takes webhooks."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.messages.append({"path": self.path, "headers": headers, "body": body})
            status = found.statuses.pop(0) if found.statuses else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = Receiver(f"http://127.0.0.1:{server.server_port}/told", list(statuses))
        try:
            yield found
        finally:
            server.shutdown()


def has_logged(service: Live, text: str) -> bool:
    """Tell whether this stands in the log."""
    return text in service.log


def told(service: Live, task_id: str, status: str) -> dict[str, Any]:
    """Return what a task says of its webhook when it is so."""
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(service.client.get(f"{ROUTE}/{task_id}").json()["webhook"] or {})
        return found.get("status") == status

    wait_for(look, seconds=WAIT_SECONDS, complaint=lambda: f"{found}\n{service.log}")
    return found


def test_webhook(project: Path, tmp_path: Path) -> None:
    """The operator's URL is told of each end until it listens, across kill -9, and in one form."""
    env = {"WEBHOOK_SECRET": SECRET, "WEBHOOK_PAUSE_SECONDS": "0.2"}
    with receiver(500, 302) as listener:
        env["WEBHOOK_URL"] = listener.url
        with started(project, tmp_path, **env) as service:
            good = accepted(service, 1)
            assert told(service, good, "delivered")["attempts"] == 3
            bad = accepted(service, 2, "raise ValueError")
            told(service, bad, "delivered")
            listener.statuses = [500]
            waits = accepted(service, 3)
            wait_for(lambda: len(listener.messages) == 5, seconds=WAIT_SECONDS)
            service.process.kill()
            service.process.wait()
        with started(project, tmp_path, **env) as service:
            told(service, waits, "delivered")
            assert (
                'webhook_attempts_total{outcome="delivered"} 1.0'
                in service.client.get("/metrics").text
            )
    command = [tool("standardwebhooks", "standardwebhooks>=1,<2"), "-c", VERIFY, SECRET]
    subprocess.run(command, input=json.dumps(listener.messages), text=True, check=True)
    assert {message["path"] for message in listener.messages} == {"/told"}
    bodies = [json.loads(message["body"]) for message in listener.messages]
    assert [body["data"]["id"] for body in bodies[:4]] == [good, good, good, bad]
    assert [body["type"] for body in bodies[2:5]] == [
        "task.succeeded",
        "task.failed",
        "task.succeeded",
    ]
    assert bodies[0]["data"]["result"]["number"] == 1
    ids = [message["headers"]["webhook-id"] for message in listener.messages]
    assert len(set(ids)) == 3


def test_webhook_of_a_client(project: Path, tmp_path: Path) -> None:
    """Only hosts that the operator allows are told, and none that is not of the internet."""
    env = {"WEBHOOK_SECRET": SECRET, "WEBHOOK_HOSTS": "*localhost,127.0.0.1"}
    with receiver() as listener:
        named = listener.url.replace("127.0.0.1", "localhost")
        with started(project, tmp_path, WEBHOOK_PAUSE_SECONDS="0.2", **env) as service:
            for url in (
                "http://example.com/",
                "ftp://localhost/",
                "localhost",
                "http://a@localhost/",
            ):
                refused = submit(service, 1, Webhook_URL=url)
                assert (refused.status_code, "localhost" in refused.text) == (422, True)
            long = f"http://{'a' * 70}.localhost/"  # no name that a host can have
            for url in (named, listener.url, long):
                task_id = accepted(service, 1, Webhook_URL=url)
                wait_for(
                    partial(has_logged, service, f"Webhook of task {task_id}, attempt 2"),
                    seconds=WAIT_SECONDS,
                )
            assert "not of the internet" in service.log
            assert not listener.messages
        env["WEBHOOK_NETWORKS"] = "127.0.0.0/8,::1/128"
        with started(project, tmp_path, **env) as service:
            told(service, accepted(service, 1, Webhook_URL=named), "delivered")
            assert listener.messages[-1]["headers"]["host"].startswith("localhost:")


def test_webhook_gone(project: Path, tmp_path: Path) -> None:
    """Whoever answers 410 is not told again, and the task says so."""
    with receiver(410) as listener:
        env = {"WEBHOOK_SECRET": SECRET, "WEBHOOK_URL": listener.url}
        with started(project, tmp_path, **env) as service:
            assert told(service, accepted(service, 1), "failed")["attempts"] == 1
            assert len(listener.messages) == 1


def test_webhook_settings(project: Path, tmp_path: Path) -> None:
    """A secret that is none ends the start with one line."""
    env = {"WEBHOOK_URL": "http://127.0.0.1/", "WEBHOOK_SECRET": "secret"}
    with live(project, python(), tmp_path / "log", **env) as service:
        assert service.process.wait(WAIT_SECONDS) == 1
        assert service.log.startswith("WEBHOOK_SECRET must be whsec_")


def test_second_endpoint(tmp_path: Path) -> None:
    """An endpoint of the owner's has tasks of its own, and they do not mix."""
    project = make(tmp_path / "service", predictions="local", features=[])
    place = "# Your own endpoints, routers and middleware go here."
    change(project / "main.py", place, SECOND)
    with started(project, tmp_path) as service:
        task_id = service.client.post("/second/tasks", json={"number": 2}).json()["id"]
        assert service.client.get(f"{ROUTE}/{task_id}").status_code == 404
        done = service.client.get(f"/second/tasks/{task_id}", params={"wait": 30}).json()
        assert done["result"]["number"] == 2
        assert service.client.get(ROUTE).json()["tasks"] == []


def test_file(tmp_path: Path) -> None:
    """A task may be asked with a file and be answered by one; what cannot be read is not kept."""
    project = make(tmp_path / "service", predictions="local", features=[], input_kind="image")
    put_model(project, FLIP)
    picture = BytesIO()
    Image.new("RGB", (8, 6), "red").save(picture, "PNG")
    files = {"file": ("a.png", picture.getvalue(), "image/png")}
    with live(project, python(), tmp_path / "log", TASKS_DIR=str(tmp_path / "tasks")) as service:
        service.ready()
        cut = {"file": ("a.png", picture.getvalue()[:40], "image/png")}
        assert service.client.post("/classify/tasks", files=cut).status_code == 400
        assert service.client.get("/classify/tasks").json()["tasks"] == []
        keys = {"Idempotency-Key": "k"}
        sent = [service.client.post("/classify/tasks", files=files, headers=keys) for _ in range(2)]
        [location] = {response.headers["location"] for response in sent}
        task = service.client.get(location, params={"wait": 30}).json()
        assert (task["status"], task["result"]) == ("succeeded", None)
        result = service.client.get(f"{location}/result")
        own = service.client.post("/classify", files=files)
        assert result.headers["content-type"] == "image/png"
        assert result.content == own.content
        assert Image.open(BytesIO(result.content)).size == (6, 8)


def test_client_of_tests(tmp_path: Path) -> None:
    """FastAPI's TestClient waits until tasks can be taken, and can be used twice."""
    project = make(tmp_path / "service", predictions="local", features=[])
    (project / "script.py").write_text(SCRIPT, encoding="utf-8")
    env = os.environ | {"TASKS_DIR": str(tmp_path / "tasks")}
    run([python(), "script.py"], cwd=project, env=env)


def test_client_of_an_unusable_folder(tmp_path: Path) -> None:
    """There the error is the test's own, and ends no process."""
    project = make(tmp_path / "service", predictions="local", features=[])
    (project / "script.py").write_text(SCRIPT_OF_NONE, encoding="utf-8")
    (tmp_path / "file").touch()
    env = os.environ | {"TASKS_DIR": str(tmp_path / "file/tasks")}
    assert run([python(), "script.py"], cwd=project, env=env) == "NotADirectoryError\n"
