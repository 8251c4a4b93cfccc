"""Starts a service as a live process, for as long as a test needs it."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START_SECONDS = 120  # a framework's first import takes its time on a busy machine


@dataclass
class Live:
    """A live service."""

    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client
    file: Path
    grpc_port: int = 0

    @property
    def log(self) -> str:
        """What the service has printed so far."""
        return self.file.read_text(encoding="utf-8", errors="replace")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    @property
    def peak_bytes(self) -> int:
        """The most memory that its process has had so far; 0 where it has ended."""
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
            if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
                return 1024 * int(peak[1])
        return 0

    def connect(self, timeout: float) -> socket.socket:
        """Open a connection, to send what no client would; it waits so many seconds."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ready(self) -> httpx.Client:
        """Wait until it is ready, and return what to ask it with."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if self.client.get("/ready").status_code == 200:
                    return self.client
            time.sleep(0.05)
        pytest.fail(self.log)


def wait_for(
    condition: Callable[[], object], *, seconds: float, complaint: Callable[[], str] = str
) -> None:
    """Wait until something is so, at most so long; what is amiss is asked for when it is not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and that nobody asked about does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def receive_all(connection: socket.socket) -> bytes:
    """Return all that comes until the service closes the connection."""
    answer = b""
    with suppress(ConnectionResetError):
        while received := connection.recv(65536):
            answer += received
    return answer


@contextmanager
def live(
    folder: Path, python: str, log: Path, *, script: str = "main.py", **env: str
) -> Iterator[Live]:
    """Start a service on PORT, or a free port, logging into this file, and leave none running."""
    with ExitStack() as held:
        port = env.setdefault("PORT", held.enter_context(held_port()))
        grpc_port = env.setdefault("GRPC_PORT", held.enter_context(held_port()))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, *script.split()],
                cwd=folder,
                env=os.environ | env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(base_url=url, timeout=30) as client:
                yield Live(url, process, client, log, int(grpc_port))
        finally:
            process.kill()
            process.wait()


@contextmanager
def held_port() -> Iterator[str]:
    """Yield a port that the system gives to nobody else meanwhile.

    A server that asks for it by its number, and sets SO_REUSEADDR as servers do, may have it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield str(holder.getsockname()[1])


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
