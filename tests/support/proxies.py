"""Reverse proxies in front of replicas, which send requests to those whose /ready is 200."""

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live import free_port
from tests.support.variants import ROOT

CHECK_SECONDS = 0.1

CONFIGURATIONS = ROOT / "docs" / "how-to" / "proxies"
SERVER = "127.0.0.1:8000"
# What a test does not wait for, and what it needs to run beside others.
IN_TESTS: dict[str, list[tuple[str, str]]] = {
    "nginx.conf": [
        ("worker_processes auto;", "user root; worker_processes 1; daemon off; pid nginx.pid;"),
        (" 10s;", " 1s;"),
        ("http {", "http {\n    access_log off;\n{temporary}"),
        ("listen 80;", "listen 127.0.0.1:{port};"),
    ],
    "haproxy.cfg": [
        (" 10s\n", " 1s\n"),
        # A request that fails is not tried elsewhere: each loss shows.
        ("mode http\n", "mode http\n    retries 0\n"),
        ("inter 1s", "inter 100ms"),
        ("bind :80", "bind 127.0.0.1:{port}"),
    ],
}
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def wait_for(url: str) -> None:
    """Wait until a service answers through the proxy."""
    for _ in range(100):
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


@contextmanager
def haproxy(folder: Path, replicas: list[str]) -> Iterator[str]:
    """Run HAProxy as the docs have it, where it is installed."""
    with proxy("haproxy", "haproxy.cfg", ["-db", "-f"], folder, replicas) as url:
        yield url


@contextmanager
def nginx(folder: Path, replicas: list[str]) -> Iterator[str]:
    """Run nginx as the docs have it, where it is installed."""
    command = ["-e", "stderr", "-p", str(folder), "-c"]
    with proxy("nginx", "nginx.conf", command, folder, replicas) as url:
        yield url


@contextmanager
def proxy(
    name: str, file: str, options: list[str], folder: Path, replicas: list[str]
) -> Iterator[str]:
    """Run a proxy with a configuration of the docs, a port of its own, and shorter times."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    command = shutil.which(name, path=path) or pytest.skip(f"{name} is not installed")
    port = free_port()
    text = (CONFIGURATIONS / file).read_text(encoding="utf-8")
    temporary = "".join(f"    {kind}_temp_path {folder / kind};\n" for kind in TEMPORARY)
    for old, new in IN_TESTS[file]:
        assert old in text, old
        text = text.replace(old, new.replace("{port}", str(port)).replace("{temporary}", temporary))
    [line] = [line for line in text.splitlines() if SERVER in line]
    lines = [
        line.replace(SERVER, url.removeprefix("http://")).replace("replica1", f"replica{number}")
        for number, url in enumerate(replicas)
    ]
    config = folder / file
    config.write_text(text.replace(line, "\n".join(lines)), encoding="utf-8")
    process = subprocess.Popen([command, *options, str(config)])
    try:
        wait_for(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class SmallProxy:
    """Hands each connection to the next replica that is ready."""

    def __init__(self, replicas: list[str]) -> None:
        self.replicas = [url.removeprefix("http://").split(":") for url in replicas]
        self.ready: list[list[str]] = []
        self.port = free_port()
        self._turn = count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self.forward, "127.0.0.1", self.port)
        async with server:
            while True:
                self.ready = [replica for replica in self.replicas if await is_ready(*replica)]
                await asyncio.sleep(CHECK_SECONDS)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client with a replica."""
        replica = self.ready[next(self._turn) % len(self.ready)]
        back_reader, back_writer = await asyncio.open_connection(*replica)
        for work in (copy(reader, back_writer), copy(back_reader, writer)):
            self._keep(work)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what is read, until one side closes."""
    with suppress(OSError):
        while received := await reader.read(65536):
            writer.write(received)
            await writer.drain()
    writer.close()


async def is_ready(host: str, port: str) -> bool:
    """Ask a replica for /ready, on a connection of its own."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read(1024)
        writer.close()
    except OSError:
        return False
    return answer.startswith(b"HTTP/1.1 200")


@contextmanager
def small_proxy(_folder: Path, replicas: list[str]) -> Iterator[str]:
    """Run a proxy that needs nothing installed, on a thread."""
    proxy = SmallProxy(replicas)
    loop = asyncio.new_event_loop()
    task = loop.create_task(proxy.serve())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_for(f"http://127.0.0.1:{proxy.port}")
        yield f"http://127.0.0.1:{proxy.port}"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(5)
