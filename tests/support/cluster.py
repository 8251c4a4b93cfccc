"""A Redis, and workers, for services that keep their tasks there."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.live import START_SECONDS, Live, free_port, wait_for
from tests.support.updating import python


@dataclass
class Redis:
    """A Redis that keeps what it is told in a folder, whatever happens to its process."""

    folder: Path
    port: int
    lease: ClassVar[str] = "2"  # of a task, in seconds

    @property
    def env(self) -> dict[str, str]:
        """Return what services and workers have to know."""
        return {
            "REDIS_URL": f"redis://127.0.0.1:{self.port}/0",
            "TASKS_DIR": str(self.folder / "tasks"),
            "TASK_LEASE_SECONDS": self.lease,
        }

    def ask(self, *command: str) -> str:
        """Return what it answers to a command."""
        asked = ["redis-cli", "-p", str(self.port), *command]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    def start(self) -> None:
        """Start it, and wait until it has read what it kept."""
        server = shutil.which("redis-server")
        if not server:
            pytest.skip("redis-server is missing")
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes"}
        command = [server, "--save", ""]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: self.ask("ping") == "PONG", seconds=START_SECONDS)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Have it answer nothing meanwhile, as if the network had swallowed it."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running_redis(folder: Path) -> Iterator[Redis]:
    """Run a Redis, and leave none behind."""
    found = Redis(folder, free_port())
    found.start()
    try:
        yield found
    finally:
        found.kill()


def start_worker(service: Live, project: Path, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """Start a worker beside a service."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [python(), "-m", "serving.tasks.worker"],
            cwd=project,
            env=os.environ | env | {"SERVICE_URL": service.url},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def worker(
    service: Live, project: Path, log: Path, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker beside a service, and leave none behind."""
    process = start_worker(service, project, log, **env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
