"""Starts the service as a live process for the tests; your own fixtures go into conftest.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest

from conformance import fake_model, spec
from conformance.broker import Broker
from conformance.report import pytest_terminal_summary
from conformance.samples import Samples, find_route, make_samples

__all__ = ["pytest_terminal_summary"]

ROOT = Path(__file__).parents[2]
# A framework's first import takes its time on a busy machine; so does the load of a model.
PATIENCE_SECONDS = float(os.getenv("PATIENCE_SECONDS", "300"))
# What a service that runs does, it does soon: a test that waits in vain should not take minutes.
REACTION_SECONDS = max(10.0, PATIENCE_SECONDS / 30)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the conformance tests ask any deployment."""
    group = parser.getgroup("conformance")
    group.addoption("--url", help="ask the service that runs there, instead of starting this one")
    group.addoption("--endpoint", help="with --url: its inference route, where there are several")
    group.addoption(
        "--example",
        metavar="FILE",
        help="with --url: a JSON file with one valid request in the form of EXAMPLE",
    )
    group.addoption(
        "--header",
        metavar="HEADER",
        action="append",
        default=[],
        help="with --url: send it with each request, e.g. 'Authorization: Bearer …'",
    )
    group.addoption(
        "--report",
        metavar="DIR",
        default=str(ROOT / ".conformance"),
        help="where report.json and junit.xml go",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the test that stops the service to the end: the real model is loaded once, for all."""
    items.sort(key=lambda item: item.name == "test_ms_50_sigterm")


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Name what a socket has waited for in vain."""
    try:
        yield
    except TimeoutError:
        pytest.fail(f"{what} did not come in {REACTION_SECONDS:g} s")


@dataclass
class Service:
    """A running service: one that the tests have started, or a deployment somewhere."""

    client: httpx.Client
    process: subprocess.Popen[bytes] | BaseProcess | None = None
    home: Path | None = None
    grpc_port: int | None = None
    env: dict[str, str] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the process, with its log and what tells a fake model what to do."""
        return self.home or pytest.skip("the deployment's log cannot be seen")

    @property
    def log(self) -> str:
        """What the service has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def devices(self) -> list[str]:
        """What each load of a fake model was told to run on."""
        file = self.folder / "devices"
        return file.read_text().split() if file.exists() else []

    def wait_for_load(self) -> None:
        """Wait until a fake model has been told to load."""
        self.wait_for(lambda: bool(self.devices), "The model was not loaded")

    def predict_does(self, code: str) -> None:
        """Have the fake model run this Python code in every call from now on."""
        (self.folder / "predict.py").write_text(code)

    def predict_hangs(self) -> None:
        """Have the fake model's calls run until `predict_works` is called."""
        (self.folder / "called").unlink(missing_ok=True)
        (self.folder / "hang").touch()
        self.predict_does(
            "(folder / 'called').touch()\nwhile (folder / 'hang').exists(): time.sleep(0.05)"
        )

    def wait_for_call(self) -> None:
        """Wait until a call hangs in the fake model, so that the next one has to queue."""
        self.wait_for((self.folder / "called").exists, "No call came", REACTION_SECONDS)

    def predict_works(self) -> None:
        """Have the fake model answer at once again, hung calls included."""
        self.predict_does("")
        (self.folder / "hang").unlink(missing_ok=True)

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """Ask for a path until it has this status; a success may have to wait for a load."""
        answers: list[httpx.Response] = []

        def has_answered() -> bool:
            if self._exit_status() is not None:
                pytest.fail(f"The service exited with {self._exit_status()}:\n{self.log}")
            with suppress(httpx.TransportError):
                answers[:] = [self.client.get(path)]
            return bool(answers) and answers[0].status_code == status

        seconds = PATIENCE_SECONDS if httpx.codes.is_success(status) else REACTION_SECONDS
        self.wait_for(has_answered, f"{path} did not answer {status}", seconds)
        return answers[0]

    def wait_for_log(self, text: str) -> None:
        """Wait until the log of a service that has started holds this text."""
        complaint = f"{text!r} did not come into the log"
        self.wait_for(lambda: text in self.log, complaint, REACTION_SECONDS)

    def wait_for_exit(self) -> int:
        """Wait until the process has ended by itself, and return its exit status."""
        self.wait_for(lambda: self._exit_status() is not None, "The service did not exit")
        return self._exit_status() or 0

    def wait_until_closed(self) -> None:
        """Wait until the service takes no connections any more."""

        def is_closed() -> bool:
            try:
                self.client.get("/health")
            except httpx.TransportError:
                return True
            return False

        self.wait_for(is_closed, "The port did not close", REACTION_SECONDS)

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.process and self.process.pid:
            os.kill(self.process.pid, signal.SIGTERM)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.terminate()
        return self.wait_for_exit()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.client.close()
        if self.process:
            self.process.kill()
            self.wait_for_exit()

    def _exit_status(self) -> int | None:
        if isinstance(self.process, BaseProcess):
            return self.process.exitcode
        return self.process.poll() if self.process else None

    def wait_for(
        self, condition: Callable[[], bool], complaint: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until something is so; else the test fails, with the complaint and the log."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = f":\n{self.log}" if self.home else ""
                pytest.fail(f"{complaint} in {seconds:g} s{log}")
            time.sleep(0.05)


class Launcher:
    """Starts services, each on a free port and in a folder of its own."""

    def __init__(self, env: dict[str, str], folders: Callable[[str], Path]) -> None:
        """Take the environment of every service, and what makes a folder."""
        self.env = env
        self.folders = folders
        self.services: list[Service] = []
        self.holders: list[socket.socket] = []  # of the services' ports
        self.broker = Broker(self._reserve_port)

    def start(self, **env: str) -> Service:
        """Start the service as it is, with these environment variables."""

        def run(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
            command = [sys.executable, str(ROOT / "main.py")]
            with (folder / "log").open("wb") as log:
                return subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
                )

        return self._run(run, self.folders("service"), env)

    def start_fake(
        self, answer: str, *, start: str = "", load: str = "", predict: str = "", **env: str
    ) -> Service:
        """Start the service with a fake model.

        It runs the Python code `start` before anything else, `load` when it is loaded, `predict` in
        each call, and then answers with this JSON.
        """
        folder = self.folders("fake")
        for name, text in {"start.py": start, "load.py": load, "predict.py": predict}.items():
            (folder / name).write_text(text)
        return self._run(partial(fake_model.start, answer), folder, {"DEVICE": "cpu"} | env)

    def _run(
        self,
        run: Callable[[Path, dict[str, str]], subprocess.Popen[bytes] | BaseProcess],
        folder: Path,
        env: dict[str, str],
    ) -> Service:
        port, grpc_port = self._reserve_port(), self._reserve_port()
        (folder / "log").touch()
        own = {"PORT": str(port), "GRPC_PORT": str(grpc_port), "TASKS_DIR": str(folder / "tasks")}
        env = os.environ | spec.ENVIRONMENT | self.env | own | env
        env["REDIS_URL"] = self.broker.url(env["TASKS_DIR"])
        process = run(folder, env)
        client = connect(f"http://127.0.0.1:{port}", spec.credentials())
        service = Service(client, process, folder, grpc_port, env)
        self.services.append(service)
        return service

    def start_worker(self, service: Service) -> None:
        """Have a worker take the service's tasks."""
        if service.env:
            self.broker.start_worker(service.env, service.folder / "worker.log")

    def _reserve_port(self) -> int:
        """Return a free port; where the system can keep it from others, it does so to the end."""
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform == "linux":  # where a server can listen on it all the same
            self.holders.append(holder)
        else:
            holder.close()
        return port

    def close(self) -> None:
        """Kill whatever still runs."""
        for service in self.services:
            service.kill()
        for holder in self.holders:
            holder.close()
        self.broker.close()


def connect(url: str, headers: dict[str, str]) -> httpx.Client:
    """Return a client for the service at this URL, which sends these headers with each request.

    It asks for JSON, which has an answer whole, also where that is a file by default.
    """
    headers = {"Accept": "application/json"} | headers
    return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def model_env() -> dict[str, str]:
    """Return the environment of the tests' services, where conftest.py has none of its own."""
    return {}


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> str | None:
    """Return the address of the deployment that is asked, if one was given."""
    address: str | None = request.config.getoption("--url")
    return address


@pytest.fixture(scope="session")
def launcher(
    url: str | None, model_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launcher]:
    """Start services that are stopped when the tests end."""
    if url:
        pytest.skip("needs a service that the tests start themselves")
    launcher = Launcher(model_env, tmp_path_factory.mktemp)
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def numbering(launcher: Launcher, answer: str) -> Service:
    """Return a service whose fake model answers with the number of the request."""
    running = launcher.start_fake(answer, MAX_BATCH_SIZE="2", **{fake_model.NUMBERED: "1"})
    running.wait_until("/ready", 200)
    return running


@pytest.fixture(scope="session")
def service(url: str | None, request: pytest.FixtureRequest) -> Service:
    """Return the service as it is, ready: this one, or the deployment at --url."""
    if url:
        lines = [line.partition(":") for line in request.config.getoption("--header")]
        running = Service(connect(url, {name.strip(): value.strip() for name, _, value in lines}))
        try:
            running.client.get("/health")
        except httpx.TransportError as error:
            pytest.fail(f"Nothing answers at {url}: {error}. Try --url http://localhost:8000")
    else:
        running = request.getfixturevalue("launcher").start()
    running.wait_until("/ready", 200)
    return running


@pytest.fixture(scope="session")
def samples(service: Service, request: pytest.FixtureRequest) -> Samples:
    """Return requests of every kind for the service's endpoint."""
    document = service.client.get("/openapi.json").raise_for_status().json()
    route = find_route(document, request.config.getoption("--endpoint"), spec.ROUTE)
    if file := request.config.getoption("--example"):
        path = Path(file)
        return make_samples(document, route, json.loads(path.read_text("utf-8")), path.parent)
    return make_samples(document, route, spec.example(), ROOT)


@pytest.fixture(scope="session")
def answer(service: Service, samples: Samples) -> str:
    """Return one output of the real model for EXAMPLE, as JSON; for fake models to repeat."""
    body = service.client.post(**samples.valid).raise_for_status().json()
    return json.dumps(body["outputs"][0] if samples.several else body)
