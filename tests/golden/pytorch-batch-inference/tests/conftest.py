"""Starts the service as a live process, for the tests; your own fixtures go into fixtures.py."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fixtures import model_env

__all__ = ["model_env"]

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300  # a framework's first import takes its time on a busy machine

# A service whose model does what a test says, then answers what the real model says to EXAMPLE.
STAND_IN = """
import sys, time
from pathlib import Path

sys.path.insert(0, {root!r})
folder = Path(__file__).parent

import main

class StandIn:
    def __init__(self, device):
        exec((folder / "load.py").read_text())

    def predict(self, inputs):
        exec((folder / "predict.py").read_text())
        return [main.Output.model_validate_json({answer!r})] * len(inputs)

main.Model = StandIn
main.serve()
"""


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    folder: Path

    @property
    def log(self) -> str:
        """What the service has logged so far."""
        return (self.folder / "log").read_text(errors="replace")

    def predict_does(self, code: str) -> None:
        """Have the stand-in run this Python code in every call from now on."""
        (self.folder / "predict.py").write_text(code)

    def predict_hangs(self) -> None:
        """Have the stand-in's calls run until `predict_works` is called."""
        (self.folder / "called").unlink(missing_ok=True)
        (self.folder / "hang").touch()
        self.predict_does(
            "(folder / 'called').touch()\nwhile (folder / 'hang').exists(): time.sleep(0.05)"
        )

    def wait_for_call(self) -> None:
        """Wait until a call hangs in the stand-in, so that the next one has to queue."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (self.folder / "called").exists():
            if time.monotonic() > deadline:
                pytest.fail(f"No call came in {PATIENCE_SECONDS} s:\n{self.log}")
            time.sleep(0.01)

    def predict_works(self) -> None:
        """Have the stand-in answer at once again, hung calls included."""
        self.predict_does("")
        (self.folder / "hang").unlink(missing_ok=True)

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """Ask for a path until it answers with this status."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"The service exited with {self.process.returncode}:\n{self.log}")
            with suppress(httpx.TransportError):
                response = self.client.get(path)
                if response.status_code == status:
                    return response
            time.sleep(0.05)
        pytest.fail(f"{path} did not answer {status} in {PATIENCE_SECONDS} s:\n{self.log}")

    def wait_for_log(self, text: str) -> None:
        """Wait until the log holds this text."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.log:
            if time.monotonic() > deadline:
                pytest.fail(f"{text!r} is not in the log after {PATIENCE_SECONDS} s:\n{self.log}")
            time.sleep(0.05)

    def wait_for_exit(self) -> int:
        """Wait until the process has ended by itself, and return its exit status."""
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_for_exit()


class Launcher:
    """Starts services, each on a free port and in a folder of its own."""

    def __init__(self, env: dict[str, str], folders: Callable[[str], Path]) -> None:
        """Take the environment of every service, and what makes a folder."""
        self.env = env
        self.folders = folders
        self.services: list[Service] = []

    def start(self, **env: str) -> Service:
        """Start the service as it is, with these environment variables."""
        return self._run(ROOT / "main.py", self.folders("service"), env)

    def start_stand_in(self, answer: str, load: str = "", predict: str = "", **env: str) -> Service:
        """Start the service with a stand-in for the model.

        It runs the Python code `load` when it is loaded, `predict` in each call, and then answers
        with this JSON.
        """
        folder = self.folders("stand-in")
        (folder / "load.py").write_text(load)
        (folder / "predict.py").write_text(predict)
        script = folder / "service.py"
        script.write_text(STAND_IN.format(root=str(ROOT), answer=answer))
        return self._run(script, folder, {"DEVICE": "cpu"} | env)

    def _run(self, script: Path, folder: Path, env: dict[str, str]) -> Service:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(script)],
                cwd=ROOT,
                env=os.environ | self.env | {"PORT": str(port)} | env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS)
        self.services.append(Service(process, client, folder))
        return self.services[-1]

    def close(self) -> None:
        """Kill whatever still runs."""
        for service in self.services:
            service.client.close()
            service.process.kill()
            service.process.wait()


@pytest.fixture(scope="session")
def launcher(
    model_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launcher]:
    """Start services that are stopped when the tests end."""
    launcher = Launcher(model_env, tmp_path_factory.mktemp)
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def service(launcher: Launcher) -> Service:
    """Return the service as it is, ready."""
    running = launcher.start()
    running.wait_until("/ready", 200)
    return running
