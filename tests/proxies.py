"""Reverse proxies in front of replicas, which send requests to those whose /ready is 200."""

import asyncio
import shutil
import socket
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

CHECK_SECONDS = 0.1

HAPROXY = """
defaults
    mode http
    # A request that fails is not tried elsewhere: each loss shows.
    retries 0
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
    timeout check 5s
frontend in
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance roundrobin
    http-reuse always
    option httpchk GET /ready
    default-server check inter 100ms fall 1 rise 1
"""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    """Run HAProxy, where it is installed."""
    command = shutil.which("haproxy") or pytest.skip("HAProxy is not installed")
    port = free_port()
    servers = [
        f"    server replica{number} {url.removeprefix('http://')}\n"
        for number, url in enumerate(replicas)
    ]
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port) + "".join(servers), encoding="utf-8")
    process = subprocess.Popen([command, "-db", "-f", str(config)])
    try:
        wait_for(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
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
