"""A Redis for the tests' services, and workers that take their tasks."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
START_SECONDS = 30
DATABASES = 1000


class Broker:
    """One Redis, with a database for each folder of tasks, so that services have their own."""

    def __init__(self, reserve_port: Callable[[], int]) -> None:
        """Take what finds a free port."""
        self._reserve_port = reserve_port
        self._databases: dict[str, int] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port: int | None = None

    def url(self, tasks: str) -> str:
        """Return what a service whose tasks are in this folder gets as REDIS_URL."""
        if SERVER and not self._port:
            self._port = self._start(SERVER)
        number = self._databases.setdefault(tasks, len(self._databases))
        return f"redis://127.0.0.1:{self._port or 1}/{number}"

    def start_worker(self, env: dict[str, str], log: Path) -> None:
        """Start a worker beside a service with this environment."""
        if not SERVER:
            pytest.skip("needs redis-server: apt install redis-server, or brew install redis")
        command = [sys.executable, "-m", "serving.tasks.worker"]
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
                )
            )

    def close(self) -> None:
        """End all, and wait until they have ended."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, server: str) -> int:
        port = self._reserve_port()
        command = [server, "--bind", "127.0.0.1", "--port", str(port)]
        command += ["--databases", str(DATABASES), "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return port
            time.sleep(0.05)
        pytest.fail(f"{server} does not start on port {port}")
