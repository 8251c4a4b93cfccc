"""WORKERS: several processes on one port."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.live import START_SECONDS, Live, is_alive, live, wait_for
from tests.support.rendering import render
from tests.support.updating import change, python

# Together, for they share services.
pytestmark = pytest.mark.xdist_group("replicas")

wait = partial(wait_for, seconds=START_SECONDS)

# /health tells which process answers, and a load takes a while.
LOAD = """\
        if os.getenv("BROKEN"):
            raise RuntimeError("no weights")
        __import__("time").sleep(1)
"""
EDITS = [
    ("main.py", '{"status": "ok"}', '{"status": str(__import__("os").getpid())}'),
    ("inference.py", "        self.device = device\n", LOAD),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the lightest service, with these edits."""
    answers = {"model_type": "custom", "features": ["observability", "replicas"]}
    project = render(tmp_path_factory.mktemp("project"), answers)
    for name, old, new in EDITS:
        change(project / name, old, new)
    return project


@pytest.fixture
def replicas(tmp_path: Path, project: Path) -> Iterator[Live]:
    """Start two processes, and wait until both answer."""
    with live(project, python(), tmp_path / "log", WORKERS="2") as service:
        service.ready()
        wait(lambda: len(answering(service)) == 2)
        yield service
        for process in children(service):  # where a test has failed
            os.kill(process, signal.SIGKILL)


def children(service: Live) -> set[int]:
    """Return the processes that the service has started."""
    process = service.process.pid
    with suppress(FileNotFoundError):
        return {*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())}
    return set()


def ask(service: Live, path: str) -> httpx.Response:
    """Ask by a connection of its own, which may lead to any of the processes."""
    return httpx.get(service.url + path, timeout=30)


def answering(service: Live) -> set[int]:
    """Return the processes that answer 64 connections."""
    return {int(ask(service, "/health").json()["status"]) for _ in range(64)}


def is_port_free(service: Live) -> bool:
    """Tell whether somebody else could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", service.port))
            return True
    return False


def test_processes_share_the_port(replicas: Live) -> None:
    """Both answer; SIGTERM ends them all with 0, and leaves the port free."""
    processes = children(replicas)
    assert len(processes) == 2
    assert answering(replicas) == processes
    replicas.process.send_signal(signal.SIGTERM)
    assert replicas.process.wait(START_SECONDS) == 0
    assert not any(map(is_alive, processes))
    assert is_port_free(replicas)


def test_stopped_for_a_while(replicas: Live) -> None:
    """Who watches over the processes may be stopped, by a debugger or a pause, and goes on."""
    processes = children(replicas)
    for _ in range(3):
        replicas.process.send_signal(signal.SIGSTOP)
        time.sleep(1)  # longer than it waits for a signal
        replicas.process.send_signal(signal.SIGCONT)
        time.sleep(1)
    assert children(replicas) == processes
    assert answering(replicas) == processes
    replicas.process.send_signal(signal.SIGTERM)
    assert replicas.process.wait(START_SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_dead_process_is_replaced(replicas: Live, number: int) -> None:
    """Another takes its place, and is sent no request before its model is loaded."""
    dead, alive = sorted(children(replicas))
    os.kill(dead, number)
    wait(lambda: not is_alive(dead))
    statuses = []
    while replicas.log.count("Model loaded") < 3:
        statuses.append(ask(replicas, "/ready").status_code)
        assert len(statuses) < 10_000
    assert set(statuses) == {200}
    processes = children(replicas)
    assert alive in processes
    assert dead not in processes
    wait(lambda: answering(replicas) == processes)
    assert f"Process {dead} ended with" in replicas.log
    replicas.process.send_signal(signal.SIGTERM)
    assert replicas.process.wait(START_SECONDS) == 0


def counted(service: Live) -> dict[str, float]:
    """Return what the process that happens to be asked says in /metrics, histograms left out."""
    lines = ask(service, "/metrics").raise_for_status().text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs if "_bucket" not in name}


def begin_request(service: Live) -> socket.socket:
    """Send the head of a request, whose body does not come."""
    connection = service.connect(START_SECONDS)
    head = "POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n"
    connection.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode())
    return connection


def test_metrics_of_all(tmp_path: Path, project: Path) -> None:
    """Whichever process is asked, it tells what all have counted, those that have died included."""
    asked = 'http_requests_total{method="GET",route="other",status="404"}'
    folder = tmp_path / "temporary"
    folder.mkdir()
    env = {"WORKERS": "2", "TMPDIR": str(folder)}
    with live(project, python(), tmp_path / "log", **env) as service:
        service.ready()
        wait(lambda: len(answering(service)) == 2)
        for _ in range(40):
            assert ask(service, "/missing").status_code == 404
        wait(lambda: counted(service)[asked] == 40)
        scrapes = [counted(service) for _ in range(16)]
        assert {scrape[asked] for scrape in scrapes} == {40}
        assert {scrape["http_requests_in_flight"] for scrape in scrapes} == {1}
        assert min(scrape["model_load_seconds"] for scrape in scrapes) > 0

        with ExitStack() as stack:
            for _ in range(16):  # to either process
                stack.enter_context(begin_request(service))
            wait(lambda: counted(service)["http_requests_in_flight"] == 17)
            dead = min(children(service))
            os.kill(dead, signal.SIGKILL)
            wait(lambda: dead not in children(service) and len(answering(service)) == 2)
        wait(lambda: counted(service)["http_requests_in_flight"] == 1)
        scrapes = [counted(service) for _ in range(16)]
        assert {scrape[asked] for scrape in scrapes} == {40}
        assert {scrape["model_worker_restarts_total"] for scrape in scrapes} == {1}
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(START_SECONDS) == 0
    assert not list(folder.iterdir())


def test_all_die(replicas: Live) -> None:
    """One that loads answers /health where no other is left."""
    before = children(replicas)
    for process in before:
        os.kill(process, signal.SIGKILL)
    wait(lambda: replicas.log.count("Application startup complete") == 3)
    assert ask(replicas, "/health").status_code == 200
    replicas.ready()
    wait(lambda: len(children(replicas) - before) == 2)


def test_orphans_end(replicas: Live) -> None:
    """The processes end when the one that watches over them was killed."""
    processes = children(replicas)
    replicas.process.kill()
    wait(lambda: not any(map(is_alive, processes)))
    assert is_port_free(replicas)


def test_failed_load_ends_all(tmp_path: Path, project: Path) -> None:
    """A model that cannot be loaded is one line, and ends everything with 1."""
    env = {"WORKERS": "3", "BROKEN": "1"}
    with live(project, python(), tmp_path / "log", **env) as service:
        assert service.process.wait(START_SECONDS) == 1
        assert service.log.count("CRITICAL") == 1
        assert is_port_free(service)


def test_signal_while_loading(tmp_path: Path, project: Path) -> None:
    """SIGTERM ends processes that load as well."""
    with live(project, python(), tmp_path / "log", WORKERS="2") as service:
        service.ready()
        wait(lambda: len(children(service)) == 2)
        processes = children(service)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(START_SECONDS) == 0
        assert service.log.count("Model loaded") == 1
        assert not any(map(is_alive, processes))


def test_port_is_taken(tmp_path: Path, project: Path) -> None:
    """A port that somebody listens on is not shared with them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with live(project, python(), tmp_path / "log", WORKERS="2", PORT=port) as service:
            assert service.process.wait(START_SECONDS) == 1
            [line] = service.log.splitlines()
            assert line == f"PORT={port} cannot be used: Address already in use"
