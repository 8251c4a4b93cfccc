"""SIGTERM, sent to live services: nothing that was accepted is lost, and it ends in time."""

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.live import Live, live, wait_for
from tests.support.proxies import haproxy, small_proxy
from tests.support.rendering import render
from tests.support.slow_service import ask, calls, document, slow_service, started
from tests.support.updating import change, python

PATIENCE_SECONDS = 30
wait = partial(wait_for, seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module", params=[(), ("isolation",)], ids=["thread", "process"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a rendered service that takes as long as a request says, with each isolation."""
    features = ["observability", *request.param]
    return slow_service(tmp_path_factory.mktemp("shutdown") / "service", features=features)


def wait_for_call(folder: Path, seconds: float) -> None:
    """Wait until a call of so many seconds has begun."""
    wait(lambda: -seconds in calls(folder))


def is_refused(url: str) -> bool:
    """Tell whether no connection can be made any more."""
    try:
        httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


def test_requests_are_finished(folder: Path, tmp_path: Path) -> None:
    """What runs and what waits is answered, nothing new comes in, and the process exits with 0."""
    with started(folder, tmp_path / "log") as service, ThreadPoolExecutor() as pool:
        running = pool.submit(ask, service.url, 2.0)
        wait_for_call(folder, 2.0)
        waiting = [pool.submit(ask, service.url, 0.2) for _ in range(3)]
        wait(lambda: "model_queue_depth 3.0" in service.client.get("/metrics").text)
        service.process.send_signal(signal.SIGTERM)
        wait(lambda: is_refused(service.url))
        assert not running.done()
        assert [call.result().status_code for call in [running, *waiting]] == [200] * 4
        assert service.process.wait(PATIENCE_SECONDS) == 0
    assert "ERROR" not in service.log


def test_drain(folder: Path, tmp_path: Path) -> None:
    """For DRAIN_SECONDS /ready is 503, and requests are answered all the same."""
    with started(folder, tmp_path / "log", DRAIN_SECONDS="6") as service:
        kept = service.client
        service.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        wait(lambda: kept.get("/ready").status_code == 503)
        ready = kept.get("/ready")
        assert ready.json() == {"detail": "Shutting down."}
        while time.monotonic() < sent + 1.5:
            assert kept.get("/health").status_code == 200
            answer = ask(service.url)
            assert answer.status_code == 200
            time.sleep(0.1)
        assert answer.headers["Connection"] == "close"
        wait(lambda: is_refused(service.url))
        assert service.process.wait(PATIENCE_SECONDS) == 0
        assert time.monotonic() - sent >= 6


def test_hung_call(folder: Path, tmp_path: Path) -> None:
    """A call that hangs gets its 504, and does not keep the process from exiting with 0."""
    seconds = {"INFER_TIMEOUT_SECONDS": "2", "INFER_HANG_SECONDS": "600"}
    with started(folder, tmp_path / "log", **seconds) as service, ThreadPoolExecutor() as pool:
        hung = pool.submit(ask, service.url, 600.0)
        wait_for_call(folder, 600.0)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_SECONDS) == 0
        assert hung.result().status_code == 504


def test_native_call_that_hangs(tmp_path: Path) -> None:
    """Nor does one in a framework's native code, which the end of the interpreter would abort."""
    answers = {"model_type": "onnxruntime", "input_kind": "json", "accelerator": "cpu"}
    service = render(tmp_path / "service", answers)
    change(
        service / "inference.py",
        '        return np.asarray(self.session.run(["logits"]',
        "        while features[0, 0] < 0:\n"
        '            self.session.run(["logits"], {"features": features})\n'
        '        return np.asarray(self.session.run(["logits"]',
    )
    env = {"INFER_TIMEOUT_SECONDS": "1"}
    with live(service, python("onnxruntime"), tmp_path / "log", **env) as running:
        running.ready()
        assert ask(running.url, 600.0).status_code == 504
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_SECONDS) == 0, running.log


def test_model_in_use_is_not_closed(tmp_path: Path) -> None:
    """`close` is called at the end, unless a call past its deadline still uses the model."""
    service = slow_service(tmp_path / "service")
    with (service / "inference.py").open("a", encoding="utf-8") as inference:
        inference.write("\n    def close(self) -> None:\n        print('closed', flush=True)\n")
    for seconds, status in ((0.0, 200), (600.0, 504)):
        with started(service, tmp_path / "log", INFER_TIMEOUT_SECONDS="1") as running:
            assert ask(running.url, seconds).status_code == status
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE_SECONDS) == 0
            assert ("closed" in running.log) == (status == 200)


def test_second_signal(folder: Path, tmp_path: Path) -> None:
    """A second signal ends the process at once, and its status says that it was no clean stop."""
    with started(folder, tmp_path / "log", DRAIN_SECONDS="600") as service:
        service.process.send_signal(signal.SIGTERM)
        wait(lambda: service.client.get("/ready").status_code == 503)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(5) == 128 + signal.SIGINT


def test_while_loading(folder: Path, tmp_path: Path) -> None:
    """SIGTERM during the load is a clean stop too, without a drain."""
    inference = folder / "inference.py"
    held = tmp_path / "service"
    shutil.copytree(folder, held)
    (held / "inference.py").write_text(
        inference.read_text().replace("        self.device = device\n", "        time.sleep(600)\n")
    )
    with live(held, python(), tmp_path / "log") as service:
        with suppress(httpx.TransportError):
            wait(lambda: "Uvicorn running" in service.log)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("hangs", [False, True])
def test_process_1(folder: Path, tmp_path: Path, *, hangs: bool) -> None:
    """As process 1, which has no default for signals, it exits with 0 as well."""
    namespace = ("unshare", "--pid", "--fork", "--kill-child")
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no process namespace can be made here; test_containers.py needs none")
    command = tmp_path / "as-process-1"
    command.write_text(f'#!/bin/sh\nexec {" ".join(namespace)} {python()} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    seconds = {"INFER_TIMEOUT_SECONDS": "1"}
    with started(folder, tmp_path / "log", str(command), **seconds) as service:
        pid = service.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
        with ThreadPoolExecutor() as pool:
            call = pool.submit(ask, service.url, 600.0 if hangs else 0.5)
            wait_for_call(folder, 600.0 if hangs else 0.5)
            subprocess.run(["kill", "-TERM", children.strip()], check=True)
            assert call.result().status_code == (504 if hangs else 200)
        assert service.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("proxy", [small_proxy, haproxy])
def test_rolling_restart(
    proxy: Callable[[Path, list[str]], AbstractContextManager[str]], folder: Path, tmp_path: Path
) -> None:
    """Behind a proxy that asks for /ready, two replicas are restarted under load without a loss."""
    answers: list[int | str] = []
    over = threading.Event()

    def send(url: str) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            while not over.is_set():
                try:
                    answers.append(client.post("/infer", json=document(0.01)).status_code)
                except httpx.TransportError as error:
                    answers.append(repr(error))

    with ExitStack() as stack:

        def start(number: int, port: str | None = None) -> Live:
            env = {"DRAIN_SECONDS": "1"} | ({"PORT": port} if port else {})
            log = tmp_path / f"log-{number}{'-again' if port else ''}"
            return stack.enter_context(live(folder, python(), log, **env))

        replicas = [start(number) for number in range(2)]
        for replica in replicas:
            replica.ready()
        url = stack.enter_context(proxy(tmp_path, [replica.url for replica in replicas]))
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(over.set)
        clients = [pool.submit(send, url) for _ in range(4)]
        for number in range(2):
            wait(lambda: len(answers) > 50)
            before = len(answers)
            replicas[number].process.send_signal(signal.SIGTERM)
            assert replicas[number].process.wait(PATIENCE_SECONDS) == 0
            start(number, replicas[number].url.rpartition(":")[2]).ready()
            time.sleep(0.5)  # until the proxy has seen that it is back
            assert len(answers) - before > 50
        over.set()
        for client in clients:
            client.result()
    assert set(answers) == {200}
