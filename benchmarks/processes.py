"""Servers and measurements as processes, each pinned to a core of the machine."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.live import free_port, is_alive

Sample = dict[str, Any]

HERE = Path(__file__).parent
START_SECONDS = 60
END_SECONDS = 10
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[-1], CORES[0]


@dataclass(frozen=True)
class Request:
    """What is sent, and the answer that it must get."""

    path: str
    body: bytes
    content_type: str
    expected: Any


@dataclass(frozen=True)
class Server:
    """A running server and all the processes that it has started."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def members(self) -> list[int]:
        """Return the ids of the server's processes, parents first; some start a session each."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    found.extend(map(int, children.read_text().split()))
        return found

    def cpu_seconds(self) -> float:
        """Return the seconds of processor time that the server's processes have used."""
        ticks = 0
        for pid in self.members():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def going(self) -> Iterator[None]:
        """Let a server that stands go on meanwhile."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kill every process, and wait until they are gone.

        They are not asked: some of the peers leave children behind on SIGTERM.
        """
        self.signal(signal.SIGSTOP)  # so that none starts another meanwhile
        members = self.members()
        self.signal(signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + END_SECONDS
        while any(map(is_alive, members)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def wait_until(self, request: Request) -> None:
        """Wait until the request succeeds; its answer must be right then."""
        deadline = time.monotonic() + START_SECONDS
        last = "no answer"
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                response = httpx.post(
                    self.url + request.path,
                    content=request.body,
                    headers={"Content-Type": request.content_type},
                    timeout=30,
                )
                if response.is_success:
                    assert matches(response.json(), request.expected), response.text
                    return
                last = f"{response.status_code} {response.text}"
            time.sleep(0.1)
        raise RuntimeError(f"{last} from {self.url}:\n{self.log.read_text(errors='replace')}")


def matches(answer: Any, expected: Any) -> bool:
    """Tell whether an answer is right; numbers may differ by what rounding makes of them."""
    if isinstance(expected, Mapping):
        return isinstance(answer, Mapping) and all(
            name in answer and matches(answer[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(answer, list)
            and len(answer) == len(expected)
            and all(map(matches, answer, expected))
        )
    if isinstance(expected, float):
        return isinstance(answer, int | float) and abs(answer - expected) < 1e-3
    return bool(answer == expected)


@contextmanager
def serving(
    command: list[str], folder: Path, env: Mapping[str, str], log: Path, cores: int = 1
) -> Iterator[Server]:
    """Start a server on a free port, on the server's core or more; leave nothing of it running."""
    port = str(free_port())
    command = [part.replace("{port}", port) for part in command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", ",".join(map(str, CORES[-cores:])), *command],
            cwd=folder,
            env={**os.environ, "PORT": port, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        yield server
    finally:
        server.end()


def load(server: Server, request: Request, connections: int, seconds: int) -> Sample:
    """Send the request over and over from the other core; any answer but a 2xx is an error."""
    server.wait_until(request)  # what an earlier load left in the queue is done then
    body = server.log.with_suffix(".body")
    body.write_bytes(request.body)
    command = [
        *("taskset", "--cpu-list", str(LOAD_CORE), wrk(), "--threads", "1", "--timeout", "30s"),
        *("--connections", str(connections), "--duration", f"{seconds}s"),
        *("--script", str(HERE / "post.lua"), server.url + request.path),
    ]
    env = os.environ | {"BODY": str(body), "CONTENT_TYPE": request.content_type}
    used = server.cpu_seconds()
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    used = server.cpu_seconds() - used
    counts: dict[str, float] = json.loads(result.stderr)
    if counts["errors"] or not counts["requests"]:
        log = server.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{counts} from {server.url}:\n{result.stdout}\n{log}")
    return {
        "connections": connections,
        "rate": counts["requests"] / counts["seconds"],
        "cpu": used / counts["requests"] * 1e3,
        "p50": counts["p50"],
        "p99": counts["p99"],
    }


class Loop:
    """Work with no service around it, in a process that does it when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take the process, which reads a number of seconds and prints its figures."""
        self.process = process

    def run(self, seconds: float) -> Sample:
        """Have it work for so long, and return its figures."""
        assert self.process.stdin
        assert self.process.stdout
        print(seconds, file=self.process.stdin, flush=True)
        figures: Sample = json.loads(self.process.stdout.readline())
        return figures


@contextmanager
def looping(command: list[str], folder: Path, env: Mapping[str, str]) -> Iterator[Loop]:
    """Start such a process on the server's core, and end it."""
    with subprocess.Popen(
        ["taskset", "--cpu-list", str(SERVER_CORE), *command],
        cwd=folder,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Loop(process)


def wrk() -> str:
    """Return the load generator's path."""
    found = shutil.which("wrk")
    assert found, "wrk is missing; on Debian and Ubuntu: apt-get install wrk"
    return found
