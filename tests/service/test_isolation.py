"""A model in a process of its own: what kills it harms nobody else."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.live import Live, is_alive, wait_for
from tests.support.scripted_model import WAIT_SECONDS, calls, make, post, queue_behind, running
from tests.support.updating import change


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the rendered service."""
    folder = tmp_path_factory.mktemp("isolation") / "service"
    return make(folder, features=["observability", "isolation"])


def wait(condition: Callable[[], bool], service: Live) -> None:
    """Wait until something is so; the log tells why it is not."""
    wait_for(condition, seconds=WAIT_SECONDS, complaint=lambda: service.log)


def test_a_call_past_its_deadline_is_killed(project: Path, tmp_path: Path) -> None:
    """It is 504, its process is gone, and those that waited are answered by the next."""
    env = {"INFER_TIMEOUT_SECONDS": "12"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        first = post(service).json()["pid"]
        assert first != service.process.pid
        (project / "hang").touch()
        hung = pool.submit(post, service, 1, "import time; time.sleep(600)")
        wait(lambda: [1] in calls(project), service)
        wait(lambda: service.client.get("/ready").status_code == 503, service)
        waiting = [pool.submit(post, service, number) for number in (2, 3)]
        assert service.client.get("/health").status_code == 200
        assert hung.result().status_code == 504
        pids = {response.result().json()["pid"] for response in waiting}
        assert len(pids) == 1
        assert first not in pids
        assert not is_alive(first)
        assert service.client.get("/ready").status_code == 200
        assert "past its deadline" in service.log
        assert "model_worker_restarts_total 1.0" in service.client.get("/metrics").text


# Sent after 1.85 s, takes 0.45 s to read, and leaves folders that take as long to remove.
SLOW_ERROR = """
import tempfile

class SlowError(Exception):
    def __reduce__(self):
        return time.sleep, (0.45,)

begin = time.monotonic()
for number in range(250):
    os.mkdir(f"{tempfile.gettempdir()}/{number}")
time.sleep(max(0, begin + 1.4 - time.monotonic()))
raise SlowError
"""


def test_a_kill_that_comes_too_late(project: Path, tmp_path: Path) -> None:
    """Where a call has ended as it is killed, the next does not go to the process that dies."""
    with running(project, tmp_path / "log", INFER_TIMEOUT_SECONDS="2") as service:
        for _ in range(2):
            assert post(service, 1, SLOW_ERROR).status_code == 504
            following = post(service, 2)  # which waits for as long as the model is loaded again
            assert following.status_code in (200, 504), following.text


@pytest.mark.parametrize(
    ("orders", "status", "logged"),
    [
        ("import signal; os.kill(os.getpid(), signal.SIGSEGV)", 500, "died of SIGSEGV"),
        ("os._exit(3)", 500, "ended with 3"),
        (
            "import signal; os.kill(os.getpid(), signal.SIGKILL)",
            503,
            "killed, most likely for its memory",
        ),
    ],
)
def test_a_crash_is_survived(
    project: Path, tmp_path: Path, orders: str, status: int, logged: str
) -> None:
    """The call that did it gets an error, those that waited get their answers."""
    with running(project, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        requests = [(1, orders), (2, ""), (3, "")]
        sent = queue_behind(pool, service, project, requests)
        (project / "hang").unlink()
        responses = [response.result() for response in sent]
        assert [response.status_code for response in responses] == [200, status, 200, 200]
        assert ("Retry-After" in responses[1].headers) == (status == 503)
        assert (responses[1].json()["detail"] == "Out of memory.") == (status == 503)
        assert calls(project) == [[0], [1], [2], [3]]
        assert logged in service.log
        assert service.client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("orders", "logged"),
    [
        ("", "killed, most likely for its memory"),
        ("import threading; threading.Timer(0.5, os._exit, [3]).start()", "ended with 3"),
    ],
    ids=["killed", "exits"],
)
def test_a_death_between_calls(project: Path, tmp_path: Path, orders: str, logged: str) -> None:
    """It is noticed before a request meets it; one that comes meanwhile waits for the next."""
    with running(project, tmp_path / "log") as service:
        first = post(service, orders=orders).json()["pid"]
        if not orders:
            os.kill(first, signal.SIGKILL)
        wait(lambda: service.client.get("/ready").status_code == 503, service)
        waited = post(service)
        assert (waited.status_code, service.client.get("/ready").status_code) == (200, 200)
        answers = [post(service) for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200] * 20
        assert {answer.json()["pid"] for answer in answers} == {waited.json()["pid"]} != {first}
        [line] = [line for line in service.log.splitlines() if " WARNING " in line]
        assert line.endswith(f"{logged}. Loading the model again")
        assert "model_worker_restarts_total 1.0" in service.client.get("/metrics").text


def make_loading(folder: Path, code: str) -> Path:
    """Return a rendered service that runs this line, too, when it loads its model."""
    project = make(folder, features=["isolation"])
    load = '        if os.path.exists("unloadable"):\n'
    change(project / "inference.py", load, f"        {code}\n{load}")
    return project


def test_a_load_that_takes_longer_than_a_call(tmp_path: Path) -> None:
    """The deadline of the call that crashed does not end the load after it."""
    project = make_loading(tmp_path / "service", "time.sleep(4)")
    with running(project, tmp_path / "log", INFER_TIMEOUT_SECONDS="2") as service:
        assert post(service, orders="os._exit(1)").status_code == 500
        assert service.ready().get("/ready").status_code == 200
        assert post(service).status_code == 200


def test_deaths_without_end(tmp_path: Path) -> None:
    """A model that dies after each load is not loaded again and again."""
    dies = "__import__('threading').Timer(0.5, os._exit, [3]).start()"
    project = make_loading(tmp_path / "service", dies)
    with running(project, tmp_path / "log") as service:
        assert service.process.wait(60) == 1
        assert service.log.count("Model loaded in") == 5
        assert "ended 5 times in a row" in service.log


@pytest.mark.parametrize("asks", [False, True])
def test_a_death_at_the_end(project: Path, tmp_path: Path, *, asks: bool) -> None:
    """After SIGTERM a model that died is loaded again only for a request that still comes."""
    seconds = "12" if asks else "4"  # in which the request has to come, however busy the machine is
    with running(project, tmp_path / "log", DRAIN_SECONDS=seconds) as service:
        pid = post(service).json()["pid"]
        service.process.terminate()
        wait(lambda: "Draining" in service.log, service)
        os.kill(pid, signal.SIGKILL)
        wait(lambda: not Path(f"/proc/{pid}").exists(), service)  # it has ended altogether
        if asks:
            assert post(service).status_code == 200
        assert service.process.wait(60) == 0
        assert ("Loading the model again" in service.log) == asks
        assert "CRITICAL" not in service.log


def test_a_crash_in_a_batch_harms_no_other(tmp_path: Path) -> None:
    """The requests of the batch are tried again, each by itself."""
    project = make(tmp_path / "service", features=["isolation", "batching"])
    with running(project, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        requests = [(1, ""), (2, "os._exit(1)"), (3, "")]
        sent = queue_behind(pool, service, project, requests)
        (project / "hang").unlink()
        assert [response.result().status_code for response in sent] == [200, 200, 500, 200]
        assert calls(project) == [[0], [1, 2, 3], [1], [2], [3]]


def test_a_batch_that_hangs(tmp_path: Path) -> None:
    """Calls that were past their deadline together are not tried again."""
    project = make(tmp_path / "service", features=["isolation", "batching"])
    env = {"INFER_TIMEOUT_SECONDS": "4"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        sleep = "import time; time.sleep(600)"
        sent = queue_behind(pool, service, project, [(1, sleep), (2, sleep)])
        (project / "hang").unlink()
        assert [response.result().status_code for response in sent] == [200, 504, 504]
        service.ready()
        assert post(service, 3).status_code == 200
        assert calls(project) == [[0], [1, 2], [3]]


def test_an_error_keeps_its_traceback(project: Path, tmp_path: Path) -> None:
    """A failure in the model is a 500 as in a thread, with the line that raised it in the log."""
    orders = "class Odd(Exception):\n    def __init__(self, a, b): pass\nraise Odd(1, 2)"
    with running(project, tmp_path / "log") as service:
        for failure in ("raise KeyError('missing')", orders):
            response = post(service, orders=failure)
            assert response.status_code == 500
            assert response.json()["error_id"] in service.log
        assert "KeyError: 'missing'" in service.log
        assert "in predict" in service.log
        assert post(service).status_code == 200


def test_a_model_that_cannot_be_loaded_again(project: Path, tmp_path: Path) -> None:
    """Where the model dies and does not load any more, the service ends, and says why."""
    with running(project, tmp_path / "log") as service:
        (project / "unloadable").touch()
        assert post(service, orders="os._exit(1)").status_code == 500
        assert service.process.wait(60) == 1
        assert "no such weights" in service.log


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_service(
    project: Path, tmp_path: Path, number: signal.Signals, *, hangs: bool
) -> None:
    """The model's process does not outlive the service, in the middle of a call neither."""
    env = {"INFER_TIMEOUT_SECONDS": "2"}
    with running(project, tmp_path / "log", **env) as service, ThreadPoolExecutor() as pool:
        pid = post(service).json()["pid"]
        if hangs:
            pool.submit(post, service, 1, "import time; time.sleep(600)")
            wait(lambda: [1] in calls(project), service)
        os.kill(service.process.pid, number)
        status = service.process.wait(60)
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert hangs or "again" not in service.log
        wait(lambda: not is_alive(pid), service)
